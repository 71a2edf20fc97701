//! Ending the programs, and deleting what they made.

use std::fmt::Debug;
use std::time::Duration;

use culvert_api::names::SYSTEM_NAMESPACE;
use culvert_kubernetes::Client;
use culvert_kubernetes::client::{RequestError, within};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::Resource;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, PropagationPolicy,
};
use serde::de::DeserializeOwned;

use super::{END, until};
use crate::cluster::LEASE;
use crate::session_keys::SECRET as SESSION_KEYS;
use crate::{CONTROLLER_NAME, MESH_NAME};

/// Secret and ConfigMap of the CA, by their names in the chart.
const ROOT_SECRET: &str = "culvert-ca";
const TRUST_BUNDLE: &str = "culvert-trust-bundle";

/// Ends the pods of a DaemonSet within `drain`; waits for it, at most [`END`] longer. Their own grace period may be much longer,
/// and kubelets do not go by a shorter one that is told later: so they are not deleted with what made them.
pub async fn delete_daemon_set(
    client: &Client,
    name: &str,
    component: &str,
    drain: Duration,
) -> Result<(), RequestError> {
    let orphan =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    remove::<DaemonSet>(client, name, &orphan).await?;
    // Orphans, too.
    let revisions: Api<ControllerRevision> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    within(revisions.delete_collection(&DeleteParams::background(), &of(component))).await?;
    let within_drain = DeleteParams {
        grace_period_seconds: u32::try_from(drain.as_secs().max(1)).ok(),
        ..DeleteParams::background()
    };
    for pod in pods(client, component).await? {
        remove::<Pod>(client, &pod, &within_drain).await?;
    }
    await_end(client, component, drain + END).await
}

/// Ends the pods of a Deployment and waits for it, at most [`END`].
pub async fn delete_deployment(client: &Client, name: &str, component: &str) -> Result<(), RequestError> {
    remove::<Deployment>(client, name, &DeleteParams::background()).await?;
    await_end(client, component, END).await
}

async fn await_end(client: &Client, component: &str, limit: Duration) -> Result<(), RequestError> {
    if until(limit, async || Ok(pods(client, component).await?.is_empty())).await {
        tracing::info!(component, "ended");
    } else {
        tracing::warn!(component, "pods have not ended in time");
    }
    Ok(())
}

/// Names of the pods of a component.
async fn pods(client: &Client, component: &str) -> Result<Vec<String>, RequestError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let pods = within(pods.list(&of(component))).await?;
    Ok(pods.items.into_iter().filter_map(|pod| pod.metadata.name).collect())
}

fn of(component: &str) -> ListParams {
    let labels = format!("app.kubernetes.io/name=culvert,app.kubernetes.io/component={component}");
    ListParams::default().labels(&labels)
}

/// Secrets, ConfigMaps and the like that no chart knows of.
pub async fn delete_what_programs_made(client: &Client) -> Result<(), RequestError> {
    let at_once = DeleteParams::background();
    remove::<Lease>(client, LEASE, &at_once).await?;
    remove::<ConfigMap>(client, TRUST_BUNDLE, &at_once).await?;
    remove::<Secret>(client, ROOT_SECRET, &at_once).await?;
    remove::<Secret>(client, SESSION_KEYS, &at_once).await?;
    delete_mesh(client).await
}

/// The XMesh that a controller made, unless somebody has added to it.
async fn delete_mesh(client: &Client) -> Result<(), RequestError> {
    let kind = GroupVersionKind::gvk("gateway.networking.x-k8s.io", "v1alpha1", "XMesh");
    let meshes: Api<DynamicObject> =
        Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, "xmeshes"));
    // The kind may be missing too.
    let mesh = match within(meshes.get(MESH_NAME)).await {
        Err(error) if error.is_status(404) => return Ok(()),
        found => found?,
    };
    let as_made = serde_json::json!({"controllerName": CONTROLLER_NAME});
    if mesh.data.get("spec") == Some(&as_made) {
        ignore_missing(within(meshes.delete(MESH_NAME, &DeleteParams::default())).await.map(drop))?;
    }
    Ok(())
}

/// How far the cleaning of nodes is.
pub struct Cleaning {
    /// Nodes that were found clean for some seconds.
    pub done: i32,
    pub all: i32,
}

/// None when nothing cleans.
pub async fn cleaning(client: &Client, name: &str) -> Result<Option<Cleaning>, RequestError> {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let set = match within(sets.get(name)).await {
        Err(error) if error.is_status(404) => return Ok(None),
        found => found?,
    };
    let generation = set.metadata.generation;
    let seen = set.status.filter(|status| status.observed_generation == generation);
    // Not looked at yet by the controller of DaemonSets: nothing is done.
    Ok(Some(seen.map_or(Cleaning { done: 0, all: i32::MAX }, |status| Cleaning {
        done: status.number_available.unwrap_or(0),
        all: status.desired_number_scheduled,
    })))
}

/// The nodes whose cleaner has not said that it is done; never none, also where its pods are not there yet.
pub async fn uncleaned(client: &Client) -> Result<Vec<String>, RequestError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let pods = within(pods.list(&of("cleanup"))).await?;
    let is_done = |pod: &Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|known| known.type_ == "Ready" && known.status == "True")
    };
    let mut nodes: Vec<String> = pods
        .items
        .into_iter()
        .filter(|pod| !is_done(pod))
        .filter_map(|pod| pod.spec.and_then(|spec| spec.node_name).or(pod.metadata.name))
        .collect();
    nodes.sort();
    if nodes.is_empty() {
        nodes.push("those without a pod of it".to_owned());
    }
    Ok(nodes)
}

pub async fn delete_cleanup(client: &Client, name: &str) -> Result<(), RequestError> {
    remove::<DaemonSet>(client, name, &DeleteParams::background()).await
}

async fn remove<K>(client: &Client, name: &str, how: &DeleteParams) -> Result<(), RequestError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    ignore_missing(within(api.delete(name, how)).await.map(drop))
}

fn ignore_missing(done: Result<(), RequestError>) -> Result<(), RequestError> {
    match done {
        Err(error) if error.is_status(404) => Ok(()),
        other => other,
    }
}
