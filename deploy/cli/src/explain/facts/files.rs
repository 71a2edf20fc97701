//! A cluster from files alone: the sandbox's own defaults, controllers and scheduler, with pods that all started well.

use culvert_api::names::ENROLLED_CONDITION;
use culvert_controller::translate;
use culvert_objects::enrolment::wanted;
use culvert_objects::mesh_config::LastGood;
use culvert_objects::types::{PodSpec, PodStatus};
use culvert_objects::{Kind, Manifest, ManifestErrors, Object, Objects};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

use super::environment;
use crate::sandbox::cluster::Cluster;
use crate::sandbox::store::{Change, Store};
use crate::sandbox::{apply, wanted as gateways};

/// First address of a node's range that a pod gets.
const FIRST: u32 = 2;
/// Applying what Gateways want and starting pods settles in two rounds or three.
const ROUNDS: usize = 8;

/// The objects that a cluster of these manifests would have, statuses included.
///
/// # Errors
/// Everything that is wrong, each with file, document and field.
pub fn objects(cluster: &Cluster, manifest: Manifest) -> Result<Objects, ManifestErrors> {
    let store = Store::new(cluster);
    apply::apply(&store, cluster, manifest)?;
    for _ in 0..ROUNDS {
        let before = store.objects();
        store.commit(start_pods(cluster, &before));
        let translation = translate::translate(&store.objects(), &environment(cluster), &LastGood::default());
        gateways::apply(&store, cluster, &translation.wanted);
        if std::sync::Arc::ptr_eq(&before, &store.objects()) {
            break;
        }
    }
    Ok(Objects::clone(&store.objects()))
}

/// What kubelets would say of pods that have a node and no address yet.
fn start_pods(cluster: &Cluster, objects: &Objects) -> Vec<Change> {
    let mut taken: BTreeMap<String, u32> = BTreeMap::new();
    let mut changes = Vec::new();
    for pod in objects.of_kind(Kind::Pod) {
        let Ok(spec) = pod.spec::<PodSpec>() else { continue };
        let Some(node) = spec.node_name.as_deref().and_then(|name| cluster.node(name)) else { continue };
        let number = taken.entry(node.name.clone()).or_insert(FIRST);
        let addresses = if spec.host_network { node.address } else { node.pod_cidr.nth(*number) };
        *number += 1;
        let status: PodStatus = pod.status().unwrap_or_default();
        if status.addresses().is_empty() && !status.is_finished() {
            changes.push(Change::Status(pod.key(), status_of(pod, objects, addresses.both())));
        }
    }
    changes
}

fn status_of(pod: &Object, objects: &Objects, addresses: [IpAddr; 2]) -> Value {
    let mut status = pod.body.get("status").cloned().unwrap_or_else(|| json!({}));
    status["phase"] = "Running".into();
    status["podIP"] = json!(addresses[0]);
    status["podIPs"] = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    let namespace = objects.namespace(pod.namespace()).map(AsRef::as_ref);
    let enrolled = if wanted(pod, namespace).is_enrolled() { "True" } else { "False" };
    status["conditions"] = json!([
        {"type": "Ready", "status": "True"},
        {"type": ENROLLED_CONDITION, "status": enrolled},
    ]);
    status
}
