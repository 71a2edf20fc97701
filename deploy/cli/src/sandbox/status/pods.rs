//! How each pod fares in the mesh, from the objects with the statuses merged in. Pure.

use chrono::{DateTime, Utc};
use culvert_api::names::ENROLLED_CONDITION;
use culvert_objects::enrolment::{Wanted, wanted};
use culvert_objects::types::{ConditionStatus, PodSpec, PodStatus};
use culvert_objects::{Kind, Object, Objects};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::sandbox::get::{enrolment, find_condition};
use crate::sandbox::store::{Statuses, merge};

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodReport {
    pub namespace: String,
    pub name: String,
    pub node: String,
    pub phase: String,
    pub ready: bool,
    /// `Enrolled`, `Waiting`, `NotEnrolled`, `Leaving`, `Failed`; empty while nobody has said anything.
    pub enrolment: String,
    /// Why it is as it is.
    pub message: String,
    /// SPIFFE ID, once there is a certificate.
    pub identity: Option<String>,
    pub certificate_not_after: Option<DateTime<Utc>>,
    /// Connections older than the enrolment that are still open, in plaintext.
    pub uncaptured_connections: u64,
}

impl PodReport {
    /// Whether the pod sends and accepts plaintext for want of enrolment.
    #[must_use]
    pub fn is_plaintext(&self) -> bool {
        self.enrolment != "Enrolled" || self.uncaptured_connections > 0
    }
}

/// Every pod that has not finished.
#[must_use]
pub fn pods(objects: &Objects, statuses: &Statuses) -> Vec<PodReport> {
    objects
        .of_kind(Kind::Pod)
        .map(|pod| merge(pod, statuses))
        .filter(|pod| !pod.status::<PodStatus>().unwrap_or_default().is_finished())
        .map(|pod| report(&pod, objects.namespace(pod.namespace()).map(AsRef::as_ref)))
        .collect()
}

fn report(pod: &Object, namespace: Option<&Object>) -> PodReport {
    let spec: PodSpec = pod.spec().unwrap_or_default();
    let status: PodStatus = pod.status().unwrap_or_default();
    let ready = status
        .conditions
        .iter()
        .any(|condition| condition.kind == "Ready" && condition.status == ConditionStatus::True);
    let said = find_condition(pod, ENROLLED_CONDITION)
        .and_then(|condition| condition.get("message")?.as_str())
        .unwrap_or_default();
    let detail = |field: &str| pod.body.get("status").and_then(|status| status.get("culvert")?.get(field));
    let text = |field: &str| detail(field).and_then(Value::as_str);
    // What the rule says stands in until the controller has spoken.
    let (enrolment, message) = match (enrolment(pod), wanted(pod, namespace)) {
        (told, _) if !told.is_empty() => (told, said.to_owned()),
        (_, Wanted::NotEnrolled(why)) => ("NotEnrolled".to_owned(), why.to_string()),
        (_, Wanted::Enrolled) => ("Waiting".to_owned(), "the controller has not spoken of it yet".to_owned()),
    };
    PodReport {
        namespace: pod.namespace().to_owned(),
        name: pod.name().to_owned(),
        node: spec.node_name.unwrap_or_default(),
        phase: status.phase,
        ready,
        enrolment,
        message,
        identity: text("identity").filter(|identity| !identity.is_empty()).map(str::to_owned),
        certificate_not_after: text("certificateNotAfter").and_then(|at| at.parse().ok()),
        uncaptured_connections: detail("uncapturedConnections").and_then(Value::as_u64).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, status: Value) -> Object {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name,
            "namespace": "shop", "uid": name}, "spec": {"nodeName": "node1"}, "status": status}))
        .unwrap()
    }

    #[test]
    fn the_controllers_word_counts_and_the_rule_until_then() {
        let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        let objects: Objects =
            [pod("told", ready.clone()), pod("untold", ready), pod("done", json!({"phase": "Succeeded"}))]
                .into_iter()
                .collect();
        let statuses: Statuses = [pod("told", json!({
            "conditions": [{"type": "culvert.dev/Enrolled", "status": "True", "reason": "Enrolled", "message": "in force"}],
            "culvert": {"identity": "spiffe://cluster.local/ns/shop/sa/default", "uncapturedConnections": 2,
                "certificateNotAfter": "2030-01-02T03:04:05Z"}}))]
        .into_iter()
        .collect();
        let [told, untold] = pods(&objects, &statuses).try_into().unwrap();
        assert_eq!(told.enrolment, "Enrolled");
        assert!(told.ready && told.is_plaintext(), "its old connections still are");
        assert_eq!(told.certificate_not_after.unwrap().to_rfc3339(), "2030-01-02T03:04:05+00:00");
        assert_eq!(untold.enrolment, "NotEnrolled");
        assert!(untold.message.contains("label culvert.dev/mesh"), "{}", untold.message);
    }
}
