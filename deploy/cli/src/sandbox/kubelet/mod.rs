//! The kubelet of every node: pods bound to a node become namespaces and processes, their state becomes their status,
//! and deleted pods end before they vanish.

mod board;
mod container;
mod enrol;
mod environment;
mod files;
mod launch;
mod leftovers;
mod pod;
mod probe;
mod stop;

use culvert_objects::types::PodSpec;
use culvert_objects::{Kind, Object, ObjectKey, Objects};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::pod::Pod;
use super::cluster::{Cluster, NodeInfo};
use super::components::Binaries;
use super::network::Network;
use super::store::Store;

/// What every pod needs.
#[derive(Clone)]
pub struct Context {
    pub cluster: Arc<Cluster>,
    pub store: Store,
    pub network: Arc<Network>,
    pub binaries: Arc<Binaries>,
    /// Fires when the whole sandbox ends: no more pods are taken up, and what is left of a pod goes with the sandbox.
    pub ending: CancellationToken,
}

/// The kubelets of all nodes. Clones share everything.
#[derive(Clone)]
pub struct Kubelet {
    context: Context,
    pods: Arc<Mutex<HashMap<String, Arc<Pod>>>>,
    tasks: TaskTracker,
}

impl Kubelet {
    #[must_use]
    pub fn new(context: Context) -> Self {
        Self { context, pods: Arc::default(), tasks: TaskTracker::new() }
    }

    /// Follows the objects until [`Kubelet::shut_down`].
    pub async fn run(&self) {
        let mut changed = self.context.store.changed();
        loop {
            changed.mark_unchanged();
            self.follow();
            tokio::select! {
                () = self.context.ending.cancelled() => return,
                _ = changed.changed() => {}
            }
        }
    }

    /// Ends every pod, giving its containers at most `grace`, and waits for it at most a little longer.
    pub async fn shut_down(&self, grace: Duration) {
        // Controllers replace pods that go.
        self.context.ending.cancel();
        for pod in self.pods().values() {
            pod.stop.ask(grace);
        }
        self.tasks.close();
        let _ = tokio::time::timeout(grace + Duration::from_secs(1), self.tasks.wait()).await;
    }

    /// The pod with that name, or the first of `deploy/NAME`, if a kubelet has taken it up.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let objects = self.context.store.objects();
        let object = match name.split_once('/') {
            Some(("deploy" | "deployment" | "deployments", name)) => first_of(&objects, namespace, name)?,
            Some(("po" | "pod" | "pods", name)) => {
                objects.get(&ObjectKey::namespaced(Kind::Pod, namespace, name))?.clone()
            }
            Some(_) => return None,
            None => objects.get(&ObjectKey::namespaced(Kind::Pod, namespace, name))?.clone(),
        };
        self.pods().get(object.uid()).cloned()
    }

    fn follow(&self) {
        let objects = self.context.store.objects();
        let mut bound: HashMap<&str, (&Arc<Object>, PodSpec, NodeInfo)> = objects
            .of_kind(Kind::Pod)
            .filter_map(|object| {
                let spec: PodSpec = object.spec().ok()?;
                let node = self.context.cluster.node(spec.node_name.as_deref()?)?.clone();
                Some((object.uid(), (object, spec, node)))
            })
            .collect();
        for (uid, pod) in self.pods().iter() {
            match bound.remove(uid.as_str()) {
                Some((object, spec, _)) if object.metadata.deletion_timestamp.is_some() => {
                    pod.stop.ask(grace(object, &spec));
                }
                Some(_) => {}
                None => pod.stop.ask(pod.spec.grace_period()),
            }
        }
        for (object, spec, node) in bound.into_values() {
            self.take_up(object, spec, node);
        }
    }

    fn take_up(&self, object: &Object, spec: PodSpec, node: NodeInfo) {
        let period = grace(object, &spec);
        let pod = Arc::new(Pod::new(self.context.clone(), object, spec, node));
        if object.metadata.deletion_timestamp.is_some() {
            pod.stop.ask(period);
        }
        self.pods().insert(pod.uid.clone(), Arc::clone(&pod));
        let pods = Arc::clone(&self.pods);
        self.tasks.spawn(async move {
            pod.run().await;
            pods.lock().unwrap_or_else(PoisonError::into_inner).remove(&pod.uid);
        });
    }

    fn pods(&self) -> MutexGuard<'_, HashMap<String, Arc<Pod>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first pod of a Deployment that is to stay.
pub(crate) fn first_of(objects: &Objects, namespace: &str, deployment: &str) -> Option<Arc<Object>> {
    let is_of = |pod: &&Arc<Object>| {
        let owner = pod.controller().map_or("", |owner| owner.name.as_str());
        let template = pod.label("pod-template-hash").unwrap_or_default();
        pod.metadata.deletion_timestamp.is_none() && owner == format!("{deployment}-{template}")
    };
    objects.in_namespace(Kind::Pod, namespace).find(is_of).cloned()
}

/// What the deletion asked for, else what the pod's specification says.
fn grace(object: &Object, spec: &PodSpec) -> Duration {
    let asked = object.metadata.rest.get("deletionGracePeriodSeconds").and_then(serde_json::Value::as_u64);
    asked.map_or_else(|| spec.grace_period(), Duration::from_secs)
}
