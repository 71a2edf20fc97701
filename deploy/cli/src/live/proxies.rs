//! The admin ports of Culvert's own pods, by port-forward.

use std::time::Duration;

use bytes::Bytes;
use culvert_api::names::{ADMIN_PORT, SYSTEM_NAMESPACE};
use culvert_check::cluster::{Component, Role, components};
use culvert_kubernetes::Client;
use culvert_kubernetes::client::describe;
use culvert_objects::{Kind, Object, Objects};
use http_body_util::{BodyExt as _, Limited};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use serde_json::Value;
use thiserror::Error;

use super::target::Cluster;
use crate::admin;

/// For one question, the port-forward included.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest answer that is read, in bytes.
const LARGEST: usize = 256 << 20;
/// Name of the container's port, where it has another number than the default.
const ADMIN_PORT_NAME: &str = "admin";

/// Why an admin port has not answered.
#[derive(Debug, Error)]
pub enum AdminError {
    #[error("no node proxy runs on node {0}; `culvert status` shows where they do")]
    NoProxy(String),
    #[error(
        "pod {SYSTEM_NAMESPACE}/{pod}: no port-forward: {why}; it takes the right to create pods/portforward there, and a kubelet that answers"
    )]
    Forward { pod: String, why: String },
    #[error("pod {SYSTEM_NAMESPACE}/{pod}: {why}")]
    Answer { pod: String, why: String },
    #[error("pod {SYSTEM_NAMESPACE}/{pod}: no answer from its admin port within {ANSWER:?}")]
    Deadline { pod: String },
}

/// The pod of a node's proxy that is to be asked: a ready one before others, one that stays before one that ends.
///
/// # Errors
/// When there is none.
pub fn on_node(objects: &Objects, node: &str) -> Result<Component, AdminError> {
    let parts =
        components(objects).into_iter().filter(|part| part.role == Role::NodeProxy && part.node == node);
    parts.max_by_key(|part| (!part.ending, part.ready)).ok_or_else(|| AdminError::NoProxy(node.to_owned()))
}

/// Pods of the mesh's namespace are all it takes to find them.
///
/// # Errors
/// When pods may not be listed, or the node has no proxy.
pub async fn find(cluster: &Cluster, node: &str) -> anyhow::Result<(Component, Objects)> {
    let objects = cluster.objects(&[Kind::Pod], Some(SYSTEM_NAMESPACE)).await?;
    Ok((on_node(&objects, node)?, objects))
}

/// `GET path` of a pod's admin port, as JSON.
///
/// # Errors
/// When it does not answer, or not with JSON.
pub async fn json(client: &Client, pod: &Object, path: &str) -> Result<Value, AdminError> {
    let name = pod.name().to_owned();
    let answer = tokio::time::timeout(ANSWER, get(client, pod, path)).await;
    let body = answer.map_err(|_| AdminError::Deadline { pod: name.clone() })??;
    serde_json::from_slice(&body).map_err(|error| AdminError::Answer { pod: name, why: error.to_string() })
}

async fn get(client: &Client, pod: &Object, path: &str) -> Result<Bytes, AdminError> {
    let name = pod.name();
    let port = admin_port(pod);
    let forward = |why: String| AdminError::Forward { pod: name.to_owned(), why };
    let answer = |why: String| AdminError::Answer { pod: name.to_owned(), why };
    let api = Api::<Pod>::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let mut forwarder = api.portforward(name, &[port]).await.map_err(|error| forward(describe(&error)))?;
    let stream = forwarder.take_stream(port).ok_or_else(|| forward("no stream".to_owned()))?;
    let came = admin::request(stream, &format!("{name}:{port}"), path).await.map_err(&answer)?;
    let status = came.status();
    let body = Limited::new(came.into_body(), LARGEST).collect().await;
    let body = body.map_err(|error| answer(format!("GET {path}: {error}")))?.to_bytes();
    if !status.is_success() {
        return Err(answer(format!("GET {path}: {status}: {}", String::from_utf8_lossy(&body).trim())));
    }
    Ok(body)
}

/// The container's port of that name, else the default.
fn admin_port(pod: &Object) -> u16 {
    let containers = pod.body.get("spec").and_then(|spec| spec.get("containers")?.as_array());
    let ports = containers.into_iter().flatten().filter_map(|of| of.get("ports")?.as_array()).flatten();
    let named = ports.filter(|port| port.get("name").and_then(Value::as_str) == Some(ADMIN_PORT_NAME));
    let mut numbers = named.filter_map(|port| u16::try_from(port.get("containerPort")?.as_u64()?).ok());
    numbers.next().unwrap_or(ADMIN_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn proxy(name: &str, node: &str, ready: &str, ends: bool, ports: Value) -> Object {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": SYSTEM_NAMESPACE,
                "labels": {"app.kubernetes.io/name": "culvert", "app.kubernetes.io/component": "node-proxy"}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i:1", "ports": ports}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}});
        if ends {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn of_two_proxies_on_a_node_the_one_that_stays_is_asked() {
        let none = json!([]);
        let objects: Objects = [
            proxy("old", "n1", "True", true, none.clone()),
            proxy("new", "n1", "False", false, none.clone()),
            proxy("other", "n2", "True", false, none),
        ]
        .into_iter()
        .collect();
        assert_eq!(on_node(&objects, "n1").unwrap().pod, "new");
        assert_eq!(on_node(&objects, "n2").unwrap().pod, "other");
        assert!(on_node(&objects, "n3").unwrap_err().to_string().contains("node n3"));
    }

    #[test]
    fn the_admin_port_is_the_one_of_that_name_else_the_default() {
        let port = |ports: Value| admin_port(&proxy("p", "n1", "True", false, ports));
        assert_eq!(port(json!([])), ADMIN_PORT);
        assert_eq!(port(json!([{"name": "hbone", "containerPort": 15008}])), ADMIN_PORT);
        assert_eq!(port(json!([{"name": "admin", "containerPort": 16000}])), 16000);
    }
}
