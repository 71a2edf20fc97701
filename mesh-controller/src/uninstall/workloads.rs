//! Ending the programs, and deleting what they made.

use std::fmt::Debug;
use std::time::Duration;

use culvert_api::names::SYSTEM_NAMESPACE;
use culvert_kubernetes::Client;
use culvert_kubernetes::client::{RequestError, within};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::Resource;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams};
use serde::de::DeserializeOwned;

use super::{END, until};
use crate::cluster::LEASE;
use crate::{CONTROLLER_NAME, MESH_NAME};

/// Secret and ConfigMap of the CA, by their names in the chart.
const ROOT_SECRET: &str = "culvert-ca";
const TRUST_BUNDLE: &str = "culvert-trust-bundle";

/// Deletes what makes the pods of a component, and the pods; waits until they have ended, at most `drain` and [`END`].
pub async fn delete<K>(
    client: &Client,
    name: &str,
    component: &str,
    drain: Duration,
) -> Result<(), RequestError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    remove::<K>(client, name).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let of_component = ListParams::default()
        .labels(&format!("app.kubernetes.io/name=culvert,app.kubernetes.io/component={component}"));
    let mut shorter = DeleteParams::background();
    shorter.grace_period_seconds = u32::try_from(drain.as_secs().max(1)).ok();
    for pod in within(pods.list(&of_component)).await?.items {
        let Some(name) = pod.metadata.name else { continue };
        ignore_missing(within(pods.delete(&name, &shorter)).await.map(drop))?;
    }
    let gone = async || Ok(within(pods.list(&of_component)).await?.items.is_empty());
    if !until(drain + END, gone).await {
        tracing::warn!(component, "pods have not ended in time");
    }
    tracing::info!(component, "ended");
    Ok(())
}

/// Secrets, ConfigMaps and the like that no chart knows of.
pub async fn delete_what_programs_made(client: &Client) -> Result<(), RequestError> {
    remove::<Lease>(client, LEASE).await?;
    remove::<ConfigMap>(client, TRUST_BUNDLE).await?;
    remove::<Secret>(client, ROOT_SECRET).await?;
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

pub async fn delete_cleanup(client: &Client, name: &str) -> Result<(), RequestError> {
    remove::<DaemonSet>(client, name).await
}

async fn remove<K>(client: &Client, name: &str) -> Result<(), RequestError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    ignore_missing(within(api.delete(name, &DeleteParams::background())).await.map(drop))
}

fn ignore_missing(done: Result<(), RequestError>) -> Result<(), RequestError> {
    match done {
        Err(error) if error.is_status(404) => Ok(()),
        other => other,
    }
}
