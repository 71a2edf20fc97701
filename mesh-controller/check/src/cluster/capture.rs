//! Pods that should be in the mesh and are not.

use chrono::TimeDelta;
use culvert_api::names::ENROLLED_CONDITION;
use culvert_objects::enrolment::wanted;
use culvert_objects::types::PodSpec;
use culvert_objects::{Kind, Object};
use serde_json::Value;

use super::facts::ClusterFacts;
use super::finding;
use super::mesh::is_released;
use super::report::ClusterFinding;
use crate::code::Code;

/// A pod that is younger may just be on its way.
const YOUNG: TimeDelta = TimeDelta::seconds(60);

pub fn find(facts: &ClusterFacts) -> Vec<ClusterFinding> {
    facts.of_kind(Kind::Pod).filter_map(|pod| of_pod(facts, pod)).collect()
}

fn of_pod(facts: &ClusterFacts, pod: &Object) -> Option<ClusterFinding> {
    let namespace = facts.objects.namespace(pod.namespace()).map(AsRef::as_ref);
    let node = pod.spec::<PodSpec>().ok()?.node_name.filter(|node| !node.is_empty())?;
    let is_young = pod.metadata.creation_timestamp.is_some_and(|at| facts.now - at < YOUNG);
    let is_ending = pod.metadata.deletion_timestamp.is_some();
    if is_young || is_ending || !wanted(pod, namespace).is_enrolled() {
        return None;
    }
    let condition = condition(pod);
    let text = |field: &str| condition.and_then(|of| of.get(field)?.as_str()).unwrap_or_default();
    if text("status") == "True" {
        return None;
    }
    // It is let go, as is told of the node.
    if facts.objects.find(Kind::Node, "", &node).is_some_and(|node| is_released(node)) {
        return None;
    }
    let (what, remedy) = match condition {
        None => (
            format!(
                "the pod is to be in the mesh, and the controller has said nothing of it (it runs on {node})"
            ),
            "see that a controller is ready and leads: `culvert status`".to_owned(),
        ),
        Some(_) => (
            format!(
                "the pod is to be in the mesh and is not: {}: {} (it runs on {node})",
                text("reason"),
                text("message")
            ),
            format!(
                "see the node proxy: `culvert proxy config {node}`; without the mesh the pod works with the label \
                 culvert.dev/mesh=disabled"
            ),
        ),
    };
    Some(finding(Code::NotCaptured, pod.key().to_string(), "status.conditions", what, remedy))
}

fn condition(pod: &Object) -> Option<&Value> {
    let conditions = pod.body.get("status")?.get("conditions")?.as_array()?;
    conditions.iter().find(|of| of.get("type").and_then(Value::as_str) == Some(ENROLLED_CONDITION))
}
