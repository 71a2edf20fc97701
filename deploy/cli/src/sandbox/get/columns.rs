//! What a table shows of each kind.

use chrono::{DateTime, Utc};
use culvert_api::names::{ENROLLED_CONDITION, MESH_LABEL};
use culvert_objects::types::{
    ConfigMap, EndpointSlice, NodeStatus, PodSpec, PodStatus, RouteSpec, Secret, ServiceSpec, ServiceType,
};
use culvert_objects::{Kind, Object};
use serde_json::Value;

use super::table::age;

/// Headings between NAME and AGE.
pub fn headings(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Pod => &["READY", "STATUS", "RESTARTS", "IP", "NODE", "MESH"],
        Kind::Deployment => &["READY", "UP-TO-DATE", "AVAILABLE"],
        Kind::Service => &["TYPE", "CLUSTER-IP", "PORT(S)"],
        Kind::EndpointSlice => &["ADDRESSTYPE", "PORTS", "ENDPOINTS"],
        Kind::Node => &["STATUS", "INTERNAL-IP", "ZONE"],
        Kind::Namespace => &["STATUS", "MESH"],
        Kind::ConfigMap => &["DATA"],
        Kind::Secret => &["TYPE", "DATA"],
        Kind::MeshConfig => &["ACCEPTED"],
        kind if Kind::ROUTES.contains(&kind) => &["HOSTNAMES", "PARENTS", "ACCEPTED"],
        _ => &[],
    }
}

/// The cells under [`headings`], then the age.
pub fn cells(object: &Object, now: DateTime<Utc>) -> Vec<String> {
    let mut cells = match object.kind {
        Kind::Pod => pod(object),
        Kind::Deployment => deployment(object),
        Kind::Service => service(object),
        Kind::EndpointSlice => endpoint_slice(object),
        Kind::Node => node(object),
        Kind::Namespace => {
            let phase = object.body.get("status").and_then(|status| status["phase"].as_str());
            vec![
                phase.unwrap_or_default().to_owned(),
                object.label(MESH_LABEL).unwrap_or_default().to_owned(),
            ]
        }
        Kind::ConfigMap => {
            let map: ConfigMap = object.root().unwrap_or_default();
            vec![(map.data.len() + map.binary_data.len()).to_string()]
        }
        Kind::Secret => {
            let secret: Secret = object.root().unwrap_or_default();
            vec![secret.kind, (secret.data.len() + secret.string_data.len()).to_string()]
        }
        Kind::MeshConfig => vec![condition(object, "Accepted").unwrap_or_default().to_owned()],
        kind if Kind::ROUTES.contains(&kind) => route(object),
        _ => Vec::new(),
    };
    cells.push(age(object.metadata.creation_timestamp, now));
    cells
}

fn pod(object: &Object) -> Vec<String> {
    let spec: PodSpec = object.spec().unwrap_or_default();
    let status: PodStatus = object.status().unwrap_or_default();
    let ready = status.container_statuses.iter().filter(|container| container.ready).count();
    let restarts: u32 = status.container_statuses.iter().map(|container| container.restart_count).sum();
    vec![
        format!("{ready}/{}", spec.containers.len()),
        pod_state(object, &status),
        restarts.to_string(),
        status.addresses().first().map(ToString::to_string).unwrap_or_default(),
        spec.node_name.unwrap_or_default(),
        enrolment(object),
    ]
}

/// The most telling word: why a container waits or ended, else the phase.
fn pod_state(object: &Object, status: &PodStatus) -> String {
    if object.metadata.deletion_timestamp.is_some() {
        return "Terminating".to_owned();
    }
    if !status.reason.is_empty() {
        return status.reason.clone();
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses);
    let told = containers.filter_map(|container| {
        let waiting = container.state.waiting.as_ref().map(|waiting| waiting.reason.clone());
        let ended = container.state.terminated.as_ref().filter(|end| end.exit_code != 0);
        waiting.or_else(|| ended.map(|end| end.reason.clone())).filter(|reason| !reason.is_empty())
    });
    told.into_iter().next().unwrap_or_else(|| status.phase.clone())
}

/// The enrolment as its condition has it: the reason, which is the phase.
pub(crate) fn enrolment(object: &Object) -> String {
    find_condition(object, ENROLLED_CONDITION)
        .and_then(|condition| condition.get("reason")?.as_str())
        .unwrap_or_default()
        .to_owned()
}

pub(crate) fn find_condition<'a>(object: &'a Object, kind: &str) -> Option<&'a Value> {
    let conditions = object.body.get("status")?.get("conditions")?.as_array()?;
    conditions.iter().find(|condition| condition.get("type").and_then(Value::as_str) == Some(kind))
}

fn condition<'a>(object: &'a Object, kind: &str) -> Option<&'a str> {
    find_condition(object, kind)?.get("status")?.as_str()
}

fn deployment(object: &Object) -> Vec<String> {
    let number = |part: &str, field: &str| {
        object.body.get(part).and_then(|part| part.get(field)).and_then(Value::as_u64)
    };
    let status = |field: &str| number("status", field).unwrap_or(0);
    vec![
        format!("{}/{}", status("readyReplicas"), number("spec", "replicas").unwrap_or(1)),
        status("updatedReplicas").to_string(),
        status("availableReplicas").to_string(),
    ]
}

fn service(object: &Object) -> Vec<String> {
    let spec: ServiceSpec = object.spec().unwrap_or_default();
    let kind = match spec.kind {
        ServiceType::ClusterIp => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
        ServiceType::ExternalName => "ExternalName",
    };
    let address = match spec.kind {
        ServiceType::ExternalName => spec.external_name.clone(),
        _ if spec.is_headless() => "None".to_owned(),
        _ => join(spec.vips()),
    };
    let ports = spec.ports.iter().map(|port| {
        let protocol = serde_json::to_value(port.protocol).unwrap_or_default();
        format!("{}/{}", port.port, protocol.as_str().unwrap_or_default())
    });
    vec![kind.to_owned(), address, join(ports)]
}

fn endpoint_slice(object: &Object) -> Vec<String> {
    let slice: EndpointSlice = object.root().unwrap_or_default();
    let addresses = slice.endpoints.iter().filter_map(|endpoint| {
        let address = endpoint.addresses.first()?;
        let ready = endpoint.conditions.is_ready();
        Some(if ready { address.clone() } else { format!("({address})") })
    });
    let ports = slice.ports.iter().filter_map(|port| port.port);
    vec![slice.address_type.clone(), join(ports), join(addresses)]
}

fn node(object: &Object) -> Vec<String> {
    let status: NodeStatus = object.status().unwrap_or_default();
    let internal = status.addresses.iter().filter(|address| address.kind == "InternalIP");
    vec![
        if condition(object, "Ready") == Some("True") { "Ready" } else { "NotReady" }.to_owned(),
        join(internal.map(|address| &address.address)),
        object.label("topology.kubernetes.io/zone").unwrap_or_default().to_owned(),
    ]
}

fn route(object: &Object) -> Vec<String> {
    let spec: RouteSpec = object.spec().unwrap_or_default();
    let parents = spec
        .parent_refs
        .iter()
        .map(|parent| format!("{}/{}", parent.kind.as_deref().unwrap_or("Gateway"), parent.name));
    let told = object.body.get("status").and_then(|status| status["parents"].as_array());
    let accepted = told.into_iter().flatten().filter_map(|parent| {
        let conditions = parent.get("conditions")?.as_array()?;
        let accepted = conditions.iter().find(|condition| condition["type"] == "Accepted")?;
        Some(accepted.get("status")?.as_str()?.to_owned())
    });
    vec![join(&spec.hostnames), join(parents), join(accepted)]
}

fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}
