//! Gateways and listeners: those that are not served as written, those of others, those without routes.

use std::collections::BTreeSet;

use culvert_api::names::GATEWAY_CONTROLLER;
use culvert_controller::status::{DesiredListener, DesiredStatus};
use culvert_controller::translate::outcomes::Place;
use culvert_objects::types::ConditionStatus;
use culvert_objects::{Kind, ObjectKey};

use super::list;
use crate::code::Code;
use crate::context::Context;
use crate::finding::Finding;

pub fn find(context: &Context) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, status) in &context.translation.statuses {
        match key.kind {
            Kind::Gateway if context.is_foreign(key) => {}
            Kind::GatewayClass if context.foreign.contains(&key.name) => {}
            Kind::Gateway => {
                findings.extend(of_gateway(context, key, status));
                findings.extend(without_routes(context, key, status));
            }
            Kind::GatewayClass => findings.extend(of_conditions(context, key, "spec", &status.conditions)),
            _ => {}
        }
    }
    findings.extend(foreign(context));
    findings
}

fn of_gateway(context: &Context, key: &ObjectKey, status: &DesiredStatus) -> Vec<Finding> {
    // That listeners are not valid they say themselves, where there are any.
    let own = status.conditions.iter().filter(|condition| {
        (condition.reason != "ListenersNotValid" || status.listeners.is_empty())
            && condition.reason != "Pending"
    });
    let own: Vec<_> = own.cloned().collect();
    let mut findings = of_conditions(context, key, "spec", &own);
    for (index, listener) in status.listeners.iter().enumerate() {
        findings.extend(of_conditions(
            context,
            key,
            &format!("spec.listeners[{index}]"),
            &listener.conditions,
        ));
    }
    findings
}

fn of_conditions(
    context: &Context,
    key: &ObjectKey,
    at: &str,
    conditions: &[culvert_controller::status::DesiredCondition],
) -> Vec<Finding> {
    // `Conflicted` says again what `Accepted` says.
    let bad = conditions.iter().filter(|of| {
        of.status == ConditionStatus::False && matches!(of.kind.as_str(), "Accepted" | "ResolvedRefs")
    });
    let told = bad.filter_map(|condition| {
        let (field, what) = match condition.message.split_once(": ") {
            Some((field, rest)) if field.starts_with("spec.") => (field.to_owned(), rest.to_owned()),
            _ => (at.to_owned(), condition.message.clone()),
        };
        let (code, remedy) = match condition.message.contains("this version") {
            true => (Code::NotDone, "leave it out until Culvert does it; nothing of it is served until then"),
            false => (Code::Listener, remedy(&condition.reason)),
        };
        context.finding(code, key, field, what, remedy)
    });
    told.collect()
}

fn remedy(reason: &str) -> &'static str {
    match reason {
        "HostnameConflict" => "give each listener of a port a hostname of its own, or keep one of them",
        "ProtocolConflict" => "give each protocol a port of its own",
        "PortUnavailable" => "take another port",
        "InvalidRouteKinds" => "name kinds that the listener's protocol carries",
        _ => "write what is expected",
    }
}

/// Gateways of a class that the files give to another implementation.
fn foreign(context: &Context) -> Vec<Finding> {
    let gateways = context.written.of_kind(Kind::Gateway).map(|gateway| gateway.key());
    let told = gateways.filter(|key| context.is_foreign(key)).filter_map(|key| {
        let what = "the class is another implementation's: Culvert does not serve this Gateway; it is judged only by what the API \
                    says of all of them";
        let remedy = format!("if Culvert is to serve it, name a class with controllerName: {GATEWAY_CONTROLLER}");
        context.finding(Code::ForeignClass, &key, "spec.gatewayClassName", what, remedy)
    });
    told.collect()
}

/// Listeners without a route, where the files have routes for others of the same Gateway.
fn without_routes(context: &Context, key: &ObjectKey, status: &DesiredStatus) -> Vec<Finding> {
    let gateway = format!("{}/{}/", key.namespace.as_deref().unwrap_or_default(), key.name);
    let mut used: BTreeSet<&str> = BTreeSet::new();
    for outcome in &context.translation.outcomes {
        if let Ok(Place::Listeners(listeners)) = &outcome.attached {
            used.extend(listeners.iter().filter_map(|(name, _)| name.strip_prefix(&gateway)));
        }
    }
    if used.is_empty() {
        return Vec::new();
    }
    let is_idle = |listener: &&DesiredListener| {
        let is_accepted =
            listener.conditions.iter().any(|of| of.kind == "Accepted" && of.status == ConditionStatus::True);
        is_accepted && !used.contains(listener.name.as_str())
    };
    let idle = status.listeners.iter().enumerate().filter(|(_, listener)| is_idle(listener));
    let told = idle.filter_map(|(index, listener)| {
        let what = format!(
            "no route of the files is attached to listener {}, only to {}: what arrives there is answered 404",
            listener.name,
            list(&used)
        );
        let remedy = "attach a route (parentRefs without sectionName attaches to every listener), or take it away";
        context.finding(Code::UnusedListener, key, format!("spec.listeners[{index}]"), what, remedy)
    });
    told.collect()
}
