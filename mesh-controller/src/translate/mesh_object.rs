//! What the XMeshes of Culvert's are told (GEP-3949).

use culvert_objects::types::XMeshSpec;
use culvert_objects::{Kind, Objects};
use serde_json::{Value, json};

use super::Statuses;
use super::gateways::FEATURES;
use crate::CONTROLLER_NAME;
use crate::status::{DesiredCondition, DesiredStatus};

/// Of meshes alone; [`features`] adds those of routes.
const MESH_FEATURES: &[&str] = &[
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
];

/// Names of features, sorted: those of meshes, and what routes do at any parent.
fn features() -> Vec<&'static str> {
    let of_routes =
        FEATURES.iter().filter(|name| name.starts_with("HTTPRoute") || name.starts_with("GRPCRoute"));
    let mut all: Vec<&str> = MESH_FEATURES.iter().chain(of_routes).copied().collect();
    all.sort_unstable();
    all
}

/// Says what each is told.
pub fn statuses(objects: &Objects, statuses: &mut Statuses) {
    for object in objects.of_kind(Kind::XMesh) {
        let Ok(spec) = object.spec::<XMeshSpec>() else { continue };
        if spec.controller_name != CONTROLLER_NAME {
            continue;
        }
        let fault = fault(&spec, objects);
        let mut status = DesiredStatus::of(object).with_condition(match &fault {
            None => DesiredCondition::yes(
                "Accepted",
                "Accepted",
                concat!("served by Culvert ", env!("CARGO_PKG_VERSION")),
            ),
            Some(fault) => DesiredCondition::no("Accepted", "InvalidParameters", fault.as_str()),
        });
        let names: Vec<Value> = features().into_iter().map(|name| json!({"name": name})).collect();
        status.fields.insert("supportedFeatures".to_owned(), names.into());
        statuses.insert(object.key(), status.into());
    }
}

/// What is wrong with the parameters.
fn fault(spec: &XMeshSpec, objects: &Objects) -> Option<String> {
    let parameters = spec.parameters_ref.as_ref()?;
    let kind = Kind::MeshConfig;
    if parameters.group != "culvert.dev" || parameters.kind != kind.as_str() {
        let (group, of) = (&parameters.group, &parameters.kind);
        return Some(format!("spec.parametersRef: {of}.{group} is not known, expected {kind}.culvert.dev"));
    }
    if objects.find(kind, "", &parameters.name).is_none() {
        return Some(format!(
            "spec.parametersRef: there is no {kind} {}; the defaults are in force",
            parameters.name
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(manifests: &str) -> Vec<(String, std::sync::Arc<DesiredStatus>)> {
        let read = culvert_objects::manifest::parse(manifests, std::path::Path::new("m.yaml"))
            .into_result()
            .unwrap();
        let objects: Objects = read.objects.into_iter().map(|at| at.object).collect();
        let mut all = Statuses::new();
        statuses(&objects, &mut all);
        all.into_iter().map(|(key, status)| (key.name, status)).collect()
    }

    const KIND: &str = "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XMesh\n";

    #[test]
    fn own_meshes_are_accepted_and_others_left_alone() {
        let own = format!("{KIND}metadata: {{name: culvert}}\nspec: {{controllerName: {CONTROLLER_NAME}}}\n");
        let other = format!("{KIND}metadata: {{name: x}}\nspec: {{controllerName: example.com/x}}\n");
        let told = told(&format!("{own}---\n{other}"));
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].0.as_str(), told[0].1.conditions[0].reason.as_str()), ("culvert", "Accepted"));
        let names = told[0].1.fields["supportedFeatures"].as_array().unwrap();
        assert!(names.len() <= 64 && names.contains(&json!({"name": "MeshConsumerRoute"})));
        assert!(features().is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn parameters_that_are_not_there_are_named() {
        let with = |parameters: &str| {
            let text = format!(
                "{KIND}metadata: {{name: culvert}}\nspec: {{controllerName: {CONTROLLER_NAME}, parametersRef: {parameters}}}\n"
            );
            told(&text)[0].1.conditions[0].clone()
        };
        let missing = with("{group: culvert.dev, kind: MeshConfig, name: strict}");
        assert_eq!(missing.reason, "InvalidParameters");
        assert!(missing.message.contains("no MeshConfig strict"), "{}", missing.message);
        assert!(with("{group: example.com, kind: X, name: a}").message.contains("X.example.com"));
    }
}
