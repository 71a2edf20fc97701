//! From what the API server sends to the objects that everybody else sees. What nobody reads is left out, so that memory
//! holds what matters and a change of the rest is none.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use culvert_api::names::ENROLLED_LABEL;
use culvert_objects::manifest::drop_nulls;
use culvert_objects::{FieldError, Kind, Metadata, Object, ObjectKey, OwnerReference, Scope, schema};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::DynamicObject;
use serde_json::{Map, Value};

use super::Purpose;
use crate::discovery::Resource;

/// Whole copies of what was applied, beside what came of it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Prefix of the condition types of Culvert's own.
pub const OWN_CONDITIONS: &str = "culvert.dev/";

/// What is kept of a pod's `spec`.
const POD_SPEC: &[&str] = &[
    "containers",
    "initContainers",
    "nodeName",
    "serviceAccountName",
    "hostNetwork",
    "hostname",
    "subdomain",
    "restartPolicy",
    "terminationGracePeriodSeconds",
];
const CONTAINER: &[&str] =
    &["name", "image", "ports", "livenessProbe", "readinessProbe", "startupProbe", "restartPolicy"];
const POD_STATUS: &[&str] = &["phase", "podIP", "podIPs", "hostIP", "conditions"];

/// The status that an object has, as far as Culvert may have to do with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CurrentStatus {
    pub uid: String,
    pub resource_version: String,
    /// Labels that Culvert writes.
    pub labels: BTreeMap<String, String>,
    pub status: Value,
}

impl CurrentStatus {
    /// Of an object as the API server sends it.
    pub fn of(kind: Kind, object: &DynamicObject) -> Self {
        Self {
            uid: object.metadata.uid.clone().unwrap_or_default(),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
            labels: own_labels(kind, &object.metadata),
            status: status_of(kind, object.data.get("status")),
        }
    }

    /// Of two versions of one object. Versions are numbers that grow, on every API server there is; where they are not,
    /// nothing is newer.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        let number = |of: &Self| of.resource_version.parse::<u64>().ok();
        let newer = number(self).zip(number(other)).is_some_and(|(own, other)| own > other);
        self.uid == other.uid && newer
    }
}

/// One object as it came.
pub struct Item {
    pub key: ObjectKey,
    pub object: Result<Object, FieldError>,
    /// For kinds whose status Culvert writes.
    pub status: Option<CurrentStatus>,
}

pub fn key(resource: Resource, metadata: &ObjectMeta) -> ObjectKey {
    let name = metadata.name.clone().unwrap_or_default();
    match resource.kind.scope() {
        Scope::Cluster => ObjectKey::cluster(resource.kind, name),
        Scope::Namespaced => {
            ObjectKey::namespaced(resource.kind, metadata.namespace.clone().unwrap_or_default(), name)
        }
    }
}

pub fn read(resource: Resource, purpose: Purpose, came: DynamicObject) -> Item {
    let key = key(resource, &came.metadata);
    let status = (purpose == Purpose::ReadAndWriteStatus).then(|| CurrentStatus::of(resource.kind, &came));
    let Value::Object(mut body) = came.data else {
        let fault = FieldError::new("", "expected an object");
        return Item { key, object: Err(fault), status };
    };
    body.values_mut().for_each(drop_nulls);
    body.retain(|_, value| !value.is_null());
    trim_spec(resource.kind, &mut body);
    if purpose != Purpose::Show {
        trim_status(resource.kind, &mut body);
    }
    let object = Object {
        api_version: resource.api_version.to_owned(),
        kind: resource.kind,
        metadata: metadata(resource.kind, came.metadata),
        body,
    };
    // A route that does not read has a status that says so; everything else is skipped and reported.
    let fault = match Kind::ROUTES.contains(&resource.kind) {
        true => None,
        false => schema::unreadable(&object).into_iter().next(),
    };
    Item { key, object: fault.map_or(Ok(object), Err), status }
}

/// Pods and namespaces are others': of their statuses only the own conditions.
fn status_of(kind: Kind, status: Option<&Value>) -> Value {
    let mut status = status.cloned().unwrap_or_default();
    drop_nulls(&mut status);
    if !matches!(kind, Kind::Pod | Kind::Namespace) {
        return status;
    }
    let conditions = status.get("conditions").and_then(Value::as_array).into_iter().flatten();
    let own: Vec<Value> = conditions.filter(|condition| is_own(condition)).cloned().collect();
    if own.is_empty() { Value::Null } else { serde_json::json!({"conditions": own}) }
}

fn own_labels(kind: Kind, metadata: &ObjectMeta) -> BTreeMap<String, String> {
    let labels = metadata.labels.iter().flatten().filter(|(name, _)| is_own_label(kind, name));
    labels.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn is_own_label(kind: Kind, name: &str) -> bool {
    kind == Kind::Pod && name == ENROLLED_LABEL
}

fn is_own(condition: &Value) -> bool {
    condition.get("type").and_then(Value::as_str).is_some_and(|of| of.starts_with(OWN_CONDITIONS))
}

fn metadata(kind: Kind, came: ObjectMeta) -> Metadata {
    let mut annotations = came.annotations.unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    if matches!(kind, Kind::Node | Kind::EndpointSlice) {
        // Others note there every few seconds what they did; nothing of Culvert's is in them.
        annotations.clear();
    }
    let mut labels = came.labels.unwrap_or_default();
    // Culvert's own word is not read back.
    labels.retain(|name, _| !is_own_label(kind, name));
    let owner = |of: k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| OwnerReference {
        api_version: of.api_version,
        kind: of.kind,
        name: of.name,
        uid: of.uid,
        controller: of.controller,
        block_owner_deletion: of.block_owner_deletion,
    };
    Metadata {
        name: came.name.unwrap_or_default(),
        namespace: came.namespace.filter(|_| kind.scope() == Scope::Namespaced),
        uid: came.uid,
        labels,
        annotations,
        creation_timestamp: came.creation_timestamp.as_ref().and_then(time),
        deletion_timestamp: came.deletion_timestamp.as_ref().and_then(time),
        generation: came.generation,
        // Changes with everything that is left out.
        resource_version: None,
        owner_references: came.owner_references.unwrap_or_default().into_iter().map(owner).collect(),
        rest: Map::new(),
    }
}

fn time(time: &Time) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.0.as_second(), time.0.subsec_nanosecond().try_into().ok()?)
}

fn keep(value: Option<&mut Value>, fields: &[&str]) {
    if let Some(Value::Object(map)) = value {
        map.retain(|field, _| fields.contains(&field.as_str()));
    }
}

fn trim_spec(kind: Kind, body: &mut Map<String, Value>) {
    match kind {
        Kind::Pod => {
            keep(body.get_mut("spec"), POD_SPEC);
            for list in ["containers", "initContainers"] {
                let containers = body.get_mut("spec").and_then(|spec| spec.get_mut(list));
                let containers = containers.and_then(Value::as_array_mut).into_iter().flatten();
                containers.for_each(|container| keep(Some(container), CONTAINER));
            }
        }
        Kind::Node => keep(body.get_mut("spec"), &["podCIDR", "podCIDRs"]),
        _ => {}
    }
}

fn trim_status(kind: Kind, body: &mut Map<String, Value>) {
    match kind {
        Kind::Pod => {
            keep(body.get_mut("status"), POD_STATUS);
            let conditions = body.get_mut("status").and_then(|status| status.get_mut("conditions"));
            if let Some(Value::Array(conditions)) = conditions {
                conditions.retain(|condition| !is_own(condition));
                conditions.iter_mut().for_each(|condition| keep(Some(condition), &["type", "status"]));
            }
        }
        Kind::Node => keep(body.get_mut("status"), &["addresses"]),
        Kind::Service => keep(body.get_mut("status"), &["loadBalancer"]),
        // Nothing is decided by them.
        _ => {
            body.remove("status");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_json(kind: Kind, json: Value) -> Item {
        let resource = Resource { kind, api_version: kind.api_versions()[0] };
        read(resource, Purpose::ReadAndWriteStatus, serde_json::from_value(json).unwrap())
    }

    fn pod(change: impl FnOnce(&mut Value)) -> Item {
        let mut pod = serde_json::json!({
            "metadata": {"name": "a", "namespace": "shop", "uid": "1", "resourceVersion": "7",
                "creationTimestamp": "2026-01-02T03:04:05Z",
                "managedFields": [{"manager": "kubectl"}],
                "annotations": {LAST_APPLIED: "{}", "culvert.dev/inbound-mode": "strict"}},
            "spec": {"nodeName": "one", "volumes": [{"name": "v"}], "containers": [{"name": "c", "image": "i",
                "env": [{"name": "X", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
                "livenessProbe": {"httpGet": {"port": 80, "path": "/"}}}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [{"name": "c"}],
                "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null},
                    {"type": "culvert.dev/Enrolled", "status": "True"}]},
        });
        change(&mut pod);
        read_json(Kind::Pod, pod)
    }

    #[test]
    fn what_nobody_reads_is_no_change() {
        let first = pod(|_| {});
        let object = first.object.unwrap();
        assert_eq!(object.annotation("culvert.dev/inbound-mode"), Some("strict"));
        assert_eq!(object.annotation(LAST_APPLIED), None);
        assert_eq!(object.metadata.creation_timestamp.unwrap().to_rfc3339(), "2026-01-02T03:04:05+00:00");
        let text = serde_json::to_string(&object).unwrap();
        assert!(
            !text.contains("volumes") && !text.contains("managedFields") && !text.contains("env"),
            "{text}"
        );
        assert!(text.contains("livenessProbe"), "{text}");
        let later = pod(|pod| {
            pod["metadata"]["resourceVersion"] = "8".into();
            pod["status"]["conditions"][1]["status"] = "False".into();
            pod["metadata"]["labels"] = serde_json::json!({ENROLLED_LABEL: "true"});
            pod["status"]["containerStatuses"][0]["restartCount"] = 3.into();
        });
        assert_eq!(later.object.unwrap(), object);
        let own = later.status.unwrap();
        assert_eq!((own.uid.as_str(), own.resource_version.as_str()), ("1", "8"));
        assert_eq!(own.labels, BTreeMap::from([(ENROLLED_LABEL.to_owned(), "true".to_owned())]));
        assert_eq!(own.status["conditions"].as_array().unwrap().len(), 1);
        let moved = pod(|pod| pod["status"]["podIP"] = "10.0.0.2".into());
        assert_ne!(moved.object.unwrap(), object);
    }

    #[test]
    fn what_does_not_read_is_named_and_what_is_merely_odd_is_not_refused() {
        let bad =
            pod(|pod| pod["spec"]["containers"][0]["ports"] = serde_json::json!([{"containerPort": "x"}]));
        assert_eq!(bad.object.unwrap_err().field, "spec.containers[0].ports[0].containerPort");
        let odd =
            serde_json::json!({"metadata": {"name": "a.b:c", "namespace": "shop"}, "spec": {"ports": []}});
        assert!(read_json(Kind::Service, odd).object.is_ok());
        let route =
            serde_json::json!({"metadata": {"name": "r", "namespace": "shop"}, "spec": {"rules": "x"}});
        assert!(read_json(Kind::HttpRoute, route).object.is_ok(), "its status says so");
    }
}
