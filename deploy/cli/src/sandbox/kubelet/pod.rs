//! One pod's life, from its network namespace to the moment nothing of it is left.

use culvert_api::enrolment::PodRef;
use culvert_objects::types::{Container, PodSpec, RestartPolicy};
use culvert_objects::{Object, ObjectKey};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Context;
use super::board::{Board, Slot};
use super::container::{Done, Place, Runner};
use super::enrol::Handover;
use super::environment::Surroundings;
use super::files::{PodFiles, hostname};
use super::leftovers;
use super::stop::Stop;
use crate::sandbox::cluster::NodeInfo;
use crate::sandbox::files::Files;
use crate::sandbox::namespaces::{Entry, Netns};
use crate::sandbox::network::PodNetwork;

/// Between two attempts at what failed.
const AGAIN: Duration = Duration::from_secs(1);
/// A pod bound to a node.
pub struct Pod {
    pub context: Context,
    pub key: ObjectKey,
    pub uid: String,
    pub spec: PodSpec,
    pub node: NodeInfo,
    pub stop: Stop,
    /// Where its containers run, once that is known.
    placed: RwLock<Option<Arc<Placed>>>,
}

/// A pod's place: everything its containers have in common.
pub(super) struct Placed {
    pub(super) netns: Netns,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) hostname: String,
    pub(super) files: PodFiles,
}

/// How a pod's network is taken away again.
enum Network {
    /// The node's own.
    Host(Netns),
    Own(PodNetwork),
}

impl Pod {
    /// A pod of which nothing exists yet.
    #[must_use]
    pub fn new(context: Context, object: &Object, spec: PodSpec, node: NodeInfo) -> Self {
        let stop = Stop::new(spec.grace_period());
        let (key, uid) = (object.key(), object.uid().to_owned());
        Self { context, key, uid, spec, node, stop, placed: RwLock::default() }
    }

    /// Lives until it was told to stop and nothing of it is left; then the object is removed.
    pub async fn run(self: &Arc<Self>) {
        let board = Arc::new(Board::new(
            self.context.store.clone(),
            self.key.clone(),
            &self.uid,
            &self.spec,
            self.node.address,
        ));
        board.update(|_| ()).await;
        if let Some(network) = self.network(&board).await {
            let handover = self.handover(&network);
            self.live(&board, &network, handover.as_ref()).await;
            if self.context.ending.is_cancelled() {
                return;
            }
            self.clear(network, handover.as_ref()).await;
        }
        // A finished pod keeps its status and logs until it is deleted.
        self.stop.asked().await;
        let _ = tokio::fs::remove_dir_all(Files.pod(&self.uid)).await;
        let current = self.context.store.objects().get(&self.key).is_some_and(|pod| pod.uid() == self.uid);
        if current {
            self.context.store.remove(&self.key).await;
        }
    }

    /// How to run a command in one of its containers; the first unless named.
    ///
    /// # Errors
    /// When there is no such container, or the pod has no place yet.
    pub fn entry(&self, container: Option<&str>, command: Vec<String>) -> Result<Entry, String> {
        let container = self.container(container)?;
        let target = self.target(container)?;
        Ok(Entry { command, ..target.entry })
    }

    /// The container of that name; the first without one.
    ///
    /// # Errors
    /// Names the containers there are.
    pub fn container(&self, name: Option<&str>) -> Result<&Container, String> {
        let mut all = self.spec.containers.iter().chain(&self.spec.init_containers);
        let Some(name) = name else { return all.next().ok_or_else(|| "the pod has no container".to_owned()) };
        let names = || all.clone().map(|container| container.name.as_str()).collect::<Vec<_>>().join(", ");
        let error = format!("the pod has no container {name}; there are: {}", names());
        all.find(|container| container.name == name).ok_or(error)
    }

    async fn network(&self, board: &Board) -> Option<Network> {
        let network = &self.context.network;
        if self.spec.host_network {
            return network.namespace(&self.node.name).cloned().map(Network::Host);
        }
        loop {
            match network.add_pod(&self.node.name, &self.uid).await {
                Ok(pod) => return Some(Network::Own(pod)),
                Err(error) => board.update(|facts| facts.hold("NetworkNotReady", error.to_string())).await,
            }
            self.pause().await?;
        }
    }

    /// None for pods on the node's network: nobody captures that.
    fn handover(&self, network: &Network) -> Option<Handover> {
        let Network::Own(own) = network else { return None };
        Some(Handover {
            pod: PodRef {
                uid: self.uid.clone(),
                namespace: self.key.namespace.clone().unwrap_or_default(),
                name: self.key.name.clone(),
            },
            node: self.node.name.clone(),
            netns: own.netns.clone(),
            addresses: own.addresses.both().to_vec(),
        })
    }

    async fn live(self: &Arc<Self>, board: &Arc<Board>, network: &Network, handover: Option<&Handover>) {
        let (netns, addresses) = match network {
            Network::Host(netns) => (netns.clone(), self.node.address.both().to_vec()),
            Network::Own(own) => (own.netns.clone(), own.addresses.both().to_vec()),
        };
        if let Some(handover) = handover {
            handover.add(&self.context.store, board, &self.stop).await;
        }
        if self.stop.is_asked() || self.place(board, netns, &addresses).await.is_none() {
            return;
        }
        board.update(|facts| facts.release(&addresses)).await;
        let mut running = JoinSet::new();
        if self.initialize(board, &mut running).await {
            board.update(super::board::Facts::set_initialized).await;
            self.run_containers(board, &mut running).await;
        }
        // Sidecars outlive the containers they served.
        self.stop_rest(&mut running).await;
    }

    /// Writes the pod's files; again and again while something it mounts is missing.
    async fn place(&self, board: &Board, netns: Netns, addresses: &[IpAddr]) -> Option<()> {
        let hostname = match self.spec.host_network {
            true => self.node.name.clone(),
            false => hostname(&self.key.name, &self.spec),
        };
        loop {
            let written = self.with_surroundings(addresses, |around| {
                PodFiles::write(&self.context.cluster, around, &hostname).map_err(|error| error.to_string())
            });
            match written.and_then(|written| written) {
                Ok(files) => {
                    let placed = Placed { netns, addresses: addresses.to_vec(), hostname, files };
                    *self.placed.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(placed));
                    return Some(());
                }
                Err(message) => board.update(|facts| facts.hold("FailedMount", message)).await,
            }
            self.pause().await?;
        }
    }

    /// Runs the init containers one after the other. False when the pod does not get beyond them.
    async fn initialize(self: &Arc<Self>, board: &Arc<Board>, running: &mut JoinSet<Done>) -> bool {
        for (index, container) in self.spec.init_containers.iter().enumerate() {
            let sidecar = container.restart_policy == Some(RestartPolicy::Always);
            let policy = match (sidecar, self.spec.restart_policy) {
                (true, _) => RestartPolicy::Always,
                // One that succeeded is done, whatever the pod's policy.
                (false, RestartPolicy::Always) => RestartPolicy::OnFailure,
                (false, policy) => policy,
            };
            let runner = self.runner(board, Slot::Init(index), container, policy);
            if sidecar {
                let started = runner.has_started.clone();
                running.spawn(async move { runner.run().await });
                tokio::select! {
                    () = started.cancelled() => {}
                    () = self.stop.asked() => return false,
                }
                continue;
            }
            match runner.run().await {
                Done::Ended(exit) if exit.code == Some(0) => {
                    board
                        .update(|facts| facts.ready(Slot::Init(index), super::board::Readiness::Ready))
                        .await;
                }
                Done::Ended(_) | Done::Stopped => return false,
            }
        }
        true
    }

    async fn run_containers(self: &Arc<Self>, board: &Arc<Board>, sidecars: &mut JoinSet<Done>) {
        let mut containers = JoinSet::new();
        for (index, container) in self.spec.containers.iter().enumerate() {
            let runner = self.runner(board, Slot::Main(index), container, self.spec.restart_policy);
            containers.spawn(async move { runner.run().await });
        }
        while let Some(ended) = containers.join_next().await {
            if let Err(error) = ended {
                warn!(pod = %self.key, %error, "a container's task failed");
            }
        }
        debug!(pod = %self.key, sidecars = sidecars.len(), "all containers ended");
    }

    async fn stop_rest(&self, running: &mut JoinSet<Done>) {
        if self.stop.is_asked() {
            while running.join_next().await.is_some() {}
        } else {
            running.shutdown().await;
        }
    }

    fn runner(
        self: &Arc<Self>,
        board: &Arc<Board>,
        slot: Slot,
        container: &Container,
        policy: RestartPolicy,
    ) -> Runner {
        Runner {
            board: Arc::clone(board),
            slot,
            container: container.clone(),
            policy,
            log: Files.container_log(&self.uid, &container.name),
            stop: self.stop.clone(),
            has_started: CancellationToken::new(),
            place: self.place_of(container),
        }
    }

    fn place_of(self: &Arc<Self>, container: &Container) -> Place {
        let (pod, container) = (Arc::clone(self), container.clone());
        Arc::new(move || pod.target(&container))
    }

    pub(super) fn placed(&self) -> Option<Arc<Placed>> {
        self.placed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn with_surroundings<T>(
        &self,
        addresses: &[IpAddr],
        work: impl FnOnce(&Surroundings<'_>) -> T,
    ) -> Result<T, String> {
        let objects = self.context.store.objects();
        let pod = objects.get(&self.key).filter(|pod| pod.uid() == self.uid).ok_or("the pod was deleted")?;
        let around =
            Surroundings { pod, spec: &self.spec, objects: &objects, addresses, host: self.node.address };
        Ok(work(&around))
    }

    /// Ends what containers left behind, tells the proxy, takes the network away.
    async fn clear(&self, network: Network, handover: Option<&Handover>) {
        let Network::Own(own) = network else { return };
        *self.placed.write().unwrap_or_else(PoisonError::into_inner) = None;
        leftovers::kill_all_in(&own.netns).await;
        if let Some(handover) = handover {
            handover.remove().await;
        }
        while let Err(error) = self.context.network.remove_pod(&own).await {
            warn!(pod = %self.key, %error, "a pod's network could not be taken away; trying again");
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Waits a moment; None when the pod is to stop.
    async fn pause(&self) -> Option<()> {
        tokio::select! {
            () = self.stop.asked() => None,
            () = tokio::time::sleep(AGAIN) => Some(()),
        }
    }
}
