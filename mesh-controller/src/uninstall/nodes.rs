//! Letting go of the pods of all nodes.

use culvert_api::names::{ENROLLED_CONDITION, MESH_LABEL, NODE_RELEASED};
use culvert_kubernetes::Client;
use culvert_kubernetes::client::{RequestError, within};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::hub::LEAVING;

/// Labels every node as released; gives the names of those that were not.
pub async fn release(client: &Client) -> Result<Vec<String>, RequestError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut released = Vec::new();
    for node in within(nodes.list(&ListParams::default())).await?.items {
        let labels = node.metadata.labels.unwrap_or_default();
        if labels.get(MESH_LABEL).is_some_and(|value| value == NODE_RELEASED) {
            continue;
        }
        let Some(name) = node.metadata.name else { continue };
        label(&nodes, &name, NODE_RELEASED.into()).await?;
        released.push(name);
    }
    tracing::info!(nodes = released.len(), "released");
    Ok(released)
}

/// Takes the label off again.
pub async fn forget(client: &Client, released: &[String]) -> Result<(), RequestError> {
    let nodes: Api<Node> = Api::all(client.clone());
    for name in released {
        match label(&nodes, name, Value::Null).await {
            // Deleted since.
            Err(error) if error.is_status(404) => {}
            done => done?,
        }
    }
    Ok(())
}

async fn label(nodes: &Api<Node>, name: &str, value: Value) -> Result<(), RequestError> {
    let patch = json!({"metadata": {"labels": {MESH_LABEL: value}}});
    within(nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch))).await.map(drop)
}

/// Whether no pod says any more that it is captured, or about to leave.
pub async fn all_let_go(client: &Client) -> Result<bool, RequestError> {
    let pods: Api<Pod> = Api::all(client.clone());
    let pods = within(pods.list(&ListParams::default())).await?;
    Ok(!pods.items.iter().any(is_captured))
}

fn is_captured(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let enrolled = conditions.into_iter().flatten().find(|known| known.type_ == ENROLLED_CONDITION);
    enrolled.is_some_and(|enrolled| enrolled.status == "True" || enrolled.reason.as_deref() == Some(LEAVING))
}

/// How many nodes are ready.
pub async fn ready(client: &Client) -> Result<i32, RequestError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = within(nodes.list(&ListParams::default())).await?;
    let is_ready = |node: &&Node| {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|known| known.type_ == "Ready" && known.status == "True")
    };
    Ok(i32::try_from(nodes.items.iter().filter(is_ready).count()).unwrap_or(i32::MAX))
}
