//! Workloads that another mesh takes too.

use std::collections::BTreeMap;

use culvert_api::names::{MESH_ENABLED, MESH_LABEL};
use culvert_objects::enrolment::wanted;
use culvert_objects::{Kind, Object};
use serde_json::Value;

use super::facts::ClusterFacts;
use super::finding;
use super::report::ClusterFinding;
use crate::code::Code;

/// Containers that other meshes add.
const SIDECARS: &[(&str, &str)] =
    &[("istio-proxy", "Istio's sidecar"), ("linkerd-proxy", "Linkerd's sidecar")];

pub fn find(facts: &ClusterFacts) -> Vec<ClusterFinding> {
    let namespaces = facts.of_kind(Kind::Namespace).filter(|of| of.label(MESH_LABEL) == Some(MESH_ENABLED));
    let of_namespaces = namespaces.filter_map(|namespace| Some((namespace, claim(namespace)?)));
    let pods = facts
        .of_kind(Kind::Pod)
        .filter(|pod| wanted(pod, facts.objects.namespace(pod.namespace()).map(AsRef::as_ref)).is_enrolled());
    let of_pods = pods.filter_map(|pod| Some((pod, sidecar(pod).or_else(|| claim(pod))?)));
    of_namespaces.chain(of_pods).map(|(object, claim)| of(object, &claim)).collect()
}

fn of(object: &Object, claim: &Claim) -> ClusterFinding {
    finding(
        Code::OtherMesh,
        object.key().to_string(),
        &claim.field,
        format!(
            "{} and Culvert both take its connections: what one has captured the other does not understand",
            claim.by
        ),
        format!(
            "leave it to one of them: {}, restart the pods, then label for Culvert; or take {MESH_LABEL} away",
            claim.undo
        ),
    )
}

/// That another mesh takes an object's connections.
struct Claim {
    field: String,
    by: &'static str,
    undo: String,
}

/// By labels and annotations, which on pods are as on namespaces.
fn claim(object: &Object) -> Option<Claim> {
    let (labels, annotations) = (&object.metadata.labels, &object.metadata.annotations);
    let is = |of: &BTreeMap<String, String>, key: &str, values: &[&str]| {
        of.get(key).is_some_and(|value| values.contains(&value.as_str()))
    };
    let label = |key: &str, by| {
        Some(Claim {
            field: format!("metadata.labels.{key}"),
            by,
            undo: format!("take the label {key} away"),
        })
    };
    if is(labels, "istio.io/dataplane-mode", &["ambient"]) {
        return label("istio.io/dataplane-mode", "Istio's ambient mode");
    }
    if is(labels, "sidecar.istio.io/inject", &["false"]) || is(labels, "istio-injection", &["disabled"]) {
        return None;
    }
    if is(labels, "istio-injection", &["enabled"]) {
        return label("istio-injection", "Istio's sidecar");
    }
    if is(labels, "sidecar.istio.io/inject", &["true"]) {
        return label("sidecar.istio.io/inject", "Istio's sidecar");
    }
    if object.kind == Kind::Namespace && labels.contains_key("istio.io/rev") {
        return label("istio.io/rev", "Istio's sidecar");
    }
    let key = "linkerd.io/inject";
    is(annotations, key, &["enabled", "ingress"]).then(|| Claim {
        field: format!("metadata.annotations.{key}"),
        by: "Linkerd's sidecar",
        undo: format!("take the annotation {key} away"),
    })
}

fn sidecar(pod: &Object) -> Option<Claim> {
    let spec = pod.body.get("spec")?;
    ["containers", "initContainers"].into_iter().find_map(|list| {
        let containers = spec.get(list)?.as_array()?;
        let mut names = containers.iter().filter_map(|of| of.get("name").and_then(Value::as_str)).enumerate();
        names.find_map(|(index, name)| {
            let (_, by) = SIDECARS.iter().find(|(known, _)| *known == name)?;
            Some(Claim { field: format!("spec.{list}[{index}]"), by, undo: "stop its injection".to_owned() })
        })
    })
}
