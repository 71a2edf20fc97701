//! GatewayClasses: which are Culvert's, and what it does for them.

use std::collections::BTreeMap;

use culvert_api::names::GATEWAY_CONTROLLER;
use culvert_objects::types::{ConditionStatus, GatewayClassSpec};
use culvert_objects::{Kind, Objects};
use serde_json::{Value, json};

use crate::status::{DesiredCondition, DesiredStatus};
use crate::translate::Statuses;

/// What is built so far, sorted. `Gateway` itself is not in the list: its core has TLS, which listeners do not have yet.
pub const FEATURES: &[&str] = &[
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "GatewayAddressEmpty",
    "GatewayHTTPListenerIsolation",
    "GatewayInfrastructurePropagation",
    "GatewayPort8080",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteRetryBackendTimeout",
    "HTTPRouteRetryConnectionError",
    "HTTPRouteSchemeRedirect",
    "ReferenceGrant",
];

/// Whether each class of Culvert's is accepted, by name.
pub fn ours(objects: &Objects, statuses: &mut Statuses) -> BTreeMap<String, bool> {
    let mut classes = BTreeMap::new();
    for object in objects.of_kind(Kind::GatewayClass) {
        let Ok(spec) = object.spec::<GatewayClassSpec>() else { continue };
        if spec.controller_name != GATEWAY_CONTROLLER {
            continue;
        }
        let condition = accepted(&spec);
        let is_accepted = condition.status == ConditionStatus::True;
        let mut status = DesiredStatus::of(object).with_condition(condition);
        if is_accepted {
            let features: Vec<Value> = FEATURES.iter().map(|name| json!({"name": name})).collect();
            status.fields.insert("supportedFeatures".to_owned(), features.into());
        }
        statuses.insert(object.key(), status.into());
        classes.insert(object.name().to_owned(), is_accepted);
    }
    classes
}

fn accepted(spec: &GatewayClassSpec) -> DesiredCondition {
    if let Some(parameters) = &spec.parameters_ref {
        let message = format!(
            "spec.parametersRef: {} {} is not known; the class has no parameters in this version",
            parameters.kind, parameters.name
        );
        return DesiredCondition::no("Accepted", "InvalidParameters", message);
    }
    match spec.rest.keys().next() {
        Some(field) => {
            let message = format!("spec.{field}: this version of Culvert does not do this field");
            DesiredCondition::no("Accepted", "Unsupported", message)
        }
        None => DesiredCondition::yes("Accepted", "Accepted", "served by Culvert"),
    }
}

#[cfg(test)]
mod tests {
    use super::FEATURES;

    #[test]
    fn features_are_sorted() {
        assert!(FEATURES.is_sorted_by(|a, b| a < b));
    }
}
