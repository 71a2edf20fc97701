//! `culvert node release|admit`: the way out when a node's proxy does not come back. It takes the API server alone.

use clap::{Args, Subcommand};
use culvert_api::names::{MESH_LABEL, NODE_RELEASED};
use culvert_kubernetes::client::within;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::target::{Cluster, ClusterArgs, refused};

/// Let the pods of a node go, or have them in the mesh again.
#[derive(Args, Debug)]
pub struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Subcommand, Debug)]
enum NodeCommand {
    /// Let the pods of this node go: they leave the mesh, and new ones start outside of it. Works with all of Culvert down.
    Release(OneNode),
    /// Undo `release`: pods that are to be in the mesh are enrolled, and new ones wait for that.
    Admit(OneNode),
}

#[derive(Args, Debug)]
struct OneNode {
    node: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Labels the node and says what that means.
///
/// # Errors
/// When there is no such node, or it may not be changed.
pub async fn run(arguments: &NodeArgs) -> anyhow::Result<()> {
    let text = match &arguments.command {
        NodeCommand::Release(OneNode { node, cluster }) => release(&cluster.connect().await?, node).await?,
        NodeCommand::Admit(OneNode { node, cluster }) => admit(&cluster.connect().await?, node).await?,
    };
    print!("{text}");
    Ok(())
}

async fn release(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    label(cluster, name, NODE_RELEASED.into()).await?;
    Ok(format!(
        "node {name} is released (label {MESH_LABEL}={NODE_RELEASED}): a new pod starts there outside the mesh, in plaintext, whatever its labels \
         say and whoever of Culvert is away; one that waits starts at the kubelet's next try.\n\
         Pods of the node that are in the mesh leave it as soon as controller and node proxy are there; pods that accept mutual \
         TLS alone do not accept their calls any more.\n\
         undo with: culvert node admit {name}\n"
    ))
}

async fn admit(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    let api = Api::<Node>::all(cluster.client.clone());
    let node = within(api.get(name)).await.map_err(|error| about(name, "read", error))?;
    let value = node.metadata.labels.unwrap_or_default().remove(MESH_LABEL);
    match value.as_deref() {
        None => return Ok(format!("node {name} is not released: nothing is changed\n")),
        Some(NODE_RELEASED) => {}
        Some(other) => anyhow::bail!(
            "node {name}: its label {MESH_LABEL} is {other:?}, which no command of Culvert's has set; \
             kubectl label node {name} {MESH_LABEL}- takes it away"
        ),
    }
    label(cluster, name, Value::Null).await?;
    Ok(format!(
        "node {name} is no longer released: new pods that are to be in the mesh wait for it, and those that are there are enrolled; \
         `culvert status` counts those that are not yet\n"
    ))
}

async fn label(cluster: &Cluster, name: &str, value: Value) -> anyhow::Result<()> {
    let api = Api::<Node>::all(cluster.client.clone());
    let patch = json!({"metadata": {"labels": {MESH_LABEL: value}}});
    let patched = within(api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))).await;
    patched.map(drop).map_err(|error| about(name, "change metadata.labels of", error))
}

fn about(name: &str, what: &str, error: culvert_kubernetes::client::RequestError) -> anyhow::Error {
    if error.is_status(404) {
        return anyhow::anyhow!("there is no node {name}; kubectl get nodes lists them");
    }
    refused(error).context(format!("cannot {what} node {name}"))
}
