//! Waiting until the sandbox is as its objects say: components ready, pods ready, labelled pods enrolled.

use culvert_api::names::ENROLLED_CONDITION;
use culvert_objects::enrolment::wanted;
use culvert_objects::types::{Condition, ConditionStatus, PodStatus};
use culvert_objects::{Kind, Object};
use std::time::Duration;

use super::protocol::Response;
use super::server::Served;
use crate::sandbox::components::health;
use crate::sandbox::controllers::endpoint_slices;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// Waits at most that long.
pub async fn run(served: &Served, limit: Duration) -> Response {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        let missing = missing(served).await;
        if missing.is_empty() {
            return Response::Done;
        }
        if tokio::time::Instant::now() >= deadline {
            return Response::failed(format!(
                "not ready after {} s:\n  {}",
                limit.as_secs(),
                missing.join("\n  ")
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn missing(served: &Served) -> Vec<String> {
    let mut missing = Vec::new();
    for state in served.components.states() {
        let Some(netns) = served.network.namespace(&state.namespace) else { continue };
        if let Err(why) = health::ready(netns, state.admin).await {
            missing.push(format!("{name}: {why}; see `culvert sandbox logs {name}`", name = state.name));
        }
    }
    let objects = served.store.objects();
    for pod in objects.of_kind(Kind::Pod) {
        let Some(merged) = served.store.merged(&pod.key()) else { continue };
        let namespace = objects.namespace(pod.namespace()).map(AsRef::as_ref);
        if let Some(why) = pod_is_missing(&merged, namespace) {
            missing.push(format!("pod {}/{}: {why}", pod.namespace(), pod.name()));
        }
    }
    if endpoint_slices::are_behind(&objects) {
        missing.push("EndpointSlices do not follow their pods yet".to_owned());
    }
    for node in served.service_rules.behind(&objects, &served.cluster) {
        missing.push(format!("{node}: its rules for Services do not follow their endpoints yet"));
    }
    missing
}

/// What a pod lacks. Finished and leaving pods lack nothing.
fn pod_is_missing(pod: &Object, namespace: Option<&Object>) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let status: PodStatus = pod.status().unwrap_or_default();
    let find = |kind: &str| status.conditions.iter().find(|condition| condition.kind == kind);
    let is_true = |kind: &str| find(kind).is_some_and(|condition| condition.status == ConditionStatus::True);
    match status.phase.as_str() {
        "Succeeded" => return None,
        "Failed" => return Some(format!("failed: {} {}", status.reason, status.message)),
        _ => {}
    }
    if !is_true("Ready") {
        let why = ["PodScheduled", "PodReadyToStartContainers", "Initialized", "Ready"]
            .into_iter()
            .filter_map(find)
            .find(|condition| condition.status != ConditionStatus::True)
            .map_or_else(|| "no kubelet has spoken of it yet".to_owned(), describe);
        return Some(format!("not ready: {why}{}", containers(&status)));
    }
    if wanted(pod, namespace).is_enrolled() && !is_true(ENROLLED_CONDITION) {
        let why =
            find(ENROLLED_CONDITION).map_or_else(|| "no node proxy has spoken of it".to_owned(), describe);
        return Some(format!("not enrolled: {why}"));
    }
    None
}

fn describe(condition: &Condition) -> String {
    match (condition.reason.as_str(), condition.message.as_str()) {
        ("", "") => format!("{} is {:?}", condition.kind, condition.status),
        (reason, "") => reason.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    }
}

/// What the waiting containers say, in parentheses.
fn containers(status: &PodStatus) -> String {
    let waiting =
        status.container_statuses.iter().chain(&status.init_container_statuses).filter_map(|container| {
            let waiting = container.state.waiting.as_ref()?;
            (!waiting.message.is_empty())
                .then(|| format!("{}: {}: {}", container.name, waiting.reason, waiting.message))
        });
    match waiting.collect::<Vec<_>>().join("; ") {
        text if text.is_empty() => text,
        text => format!(" ({text})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(conditions: serde_json::Value) -> Object {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "shop", "labels": {"culvert.dev/mesh": "enabled"}},
            "status": {"phase": "Running", "conditions": conditions}}))
        .unwrap()
    }

    #[test]
    fn a_labelled_pod_must_be_ready_and_enrolled() {
        let ready = json!({"type": "Ready", "status": "True"});
        let unready =
            json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "[c]"});
        let enrolled = json!({"type": "culvert.dev/Enrolled", "status": "True"});
        assert_eq!(pod_is_missing(&pod(json!([ready, enrolled])), None), None);
        let text = pod_is_missing(&pod(json!([ready])), None).unwrap();
        assert_eq!(text, "not enrolled: no node proxy has spoken of it");
        let text = pod_is_missing(&pod(json!([unready, enrolled])), None).unwrap();
        assert_eq!(text, "not ready: ContainersNotReady: [c]");
    }
}
