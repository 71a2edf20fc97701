//! The objects that a Gateway needs: pods whose namespaces its listeners are opened in, a Service that leads to them, and an
//! identity. The pods do nothing themselves; the node proxy of their node serves.

use std::collections::{BTreeMap, BTreeSet};

use culvert_api::names::{GATEWAY_NAME_LABEL, MESH_ENABLED, MESH_LABEL};
use culvert_objects::{Kind, Metadata, Object, ObjectKey, OwnerReference};
use serde_json::{Map, Value, json};

use super::{Gateway, names};

/// Image of the pods: it waits to be told to end, and then a little longer, because connections of the Gateway are in the
/// pod's namespace and end with it.
const IMAGE: &str = "culvert/gateway";

/// None for a Gateway of which no listener is served.
pub fn of(gateway: &Gateway) -> Vec<Object> {
    let ports: BTreeSet<u16> = gateway.served().map(|(_, listener)| listener.port).collect();
    if ports.is_empty() {
        return Vec::new();
    }
    let selector = json!({GATEWAY_NAME_LABEL: names::label(gateway.name())});
    let labels = labels(gateway);
    let mut pod_labels = labels.clone();
    pod_labels.insert(MESH_LABEL.to_owned(), MESH_ENABLED.to_owned());
    let annotations = &gateway.infrastructure.annotations;
    let name = names::object(gateway.name());
    let port = |port: &u16| json!({"name": format!("port-{port}"), "port": port, "targetPort": port, "protocol": "TCP"});
    let service = json!({
        "type": "LoadBalancer",
        "selector": selector,
        "ports": ports.iter().map(port).collect::<Vec<_>>(),
    });
    let deployment = json!({
        "selector": {"matchLabels": selector},
        "template": {
            "metadata": {"labels": pod_labels, "annotations": annotations},
            "spec": {
                "serviceAccountName": name,
                "containers": [{"name": "gateway", "image": IMAGE}],
            },
        },
    });
    vec![
        object(gateway, Kind::ServiceAccount, &labels, None),
        object(gateway, Kind::Service, &labels, Some(service)),
        object(gateway, Kind::Deployment, &labels, Some(deployment)),
    ]
}

/// Those that the Gateway asks for, and the one that says whose they are.
fn labels(gateway: &Gateway) -> BTreeMap<String, String> {
    let mut labels = gateway.infrastructure.labels.clone();
    labels.insert(GATEWAY_NAME_LABEL.to_owned(), names::label(gateway.name()));
    labels
}

fn object(gateway: &Gateway, kind: Kind, labels: &BTreeMap<String, String>, spec: Option<Value>) -> Object {
    let key = ObjectKey::namespaced(kind, gateway.namespace(), names::object(gateway.name()));
    let owner = OwnerReference {
        api_version: gateway.object.api_version.clone(),
        kind: Kind::Gateway.as_str().to_owned(),
        name: gateway.name().to_owned(),
        uid: gateway.object.uid().to_owned(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    let mut object = Object::new(key);
    object.metadata = Metadata {
        labels: labels.clone(),
        annotations: gateway.infrastructure.annotations.clone(),
        owner_references: vec![owner],
        ..object.metadata
    };
    object.body = spec.map(|spec| Map::from_iter([("spec".to_owned(), spec)])).unwrap_or_default();
    object
}
