//! The threads of the data path. They share nothing but counters: each has its own runtime, tunnels and connections.
//! A pod's connections live on its home worker; only when that is busy does another take new ones.

mod accept;
mod load;
pub mod pod;
pub mod socket;
mod thread;

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::balance::{Ejected, Endpoints};
use crate::handover::Charge;
use crate::identity::Certificates;
use crate::intercept::Listeners;
use crate::pods::Pod;
use crate::state::model::{OwnWorkload, WorkloadUid};
use crate::state::{Snapshot, Snapshots};
use crate::telemetry::Telemetry;
use load::Load;
use pod::PodState;
use thread::{Command, Handed};
pub use thread::{Context, OpenPort, PodSocket, spawn_bounded};

/// Commands that may wait for one worker.
const COMMANDS: usize = 256;
/// Accepted sockets that may wait for one worker.
const HANDED: usize = 1024;
/// A worker that has not answered a command by then is stuck.
const ANSWER: Duration = Duration::from_secs(5);
/// When a workload's own drain deadline is not known.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(30);

/// What the data path reads of the rest of the process.
pub struct Shared {
    pub snapshots: Snapshots,
    pub certificates: Certificates,
    pub telemetry: Telemetry,
    /// The name of this node.
    pub node: Arc<str>,
    /// Nothing is accepted before this process is in charge.
    pub charge: Charge,
}

/// Why a worker did not do what it was asked.
#[derive(Debug, Error)]
pub enum WorkerError {
    #[error("cannot start worker {worker}: {error}")]
    Start { worker: usize, error: io::Error },
    #[error("worker {0} does not answer")]
    Stuck(usize),
    #[error("the listeners cannot be served: {0}")]
    Listeners(io::Error),
    #[error("{0} is served already")]
    AlreadyServed(WorkloadUid),
    #[error("{0} is not served")]
    NotServed(WorkloadUid),
}

/// The connections and tunnels of one pod.
#[derive(Clone, Debug, Serialize)]
pub struct PodConnections {
    pub workload: String,
    /// Connections carried now, both directions.
    pub connections: usize,
    /// Bytes buffered for the workload.
    pub buffered_bytes: u64,
    /// Open tunnels to the pod.
    pub tunnels_in: usize,
    /// Open tunnels from the pod, by destination workload.
    pub tunnels_out: HashMap<String, usize>,
    /// Index of the worker that accepts its connections.
    pub worker: usize,
}

/// The workers. Cheap to clone.
#[derive(Clone)]
pub struct Workers {
    inner: Arc<Inner>,
}

struct Inner {
    handles: Vec<Handle>,
    endpoints: Arc<Endpoints>,
    pods: Mutex<HashMap<WorkloadUid, Served>>,
}

struct Served {
    state: Arc<PodState>,
    home: usize,
}

/// How one worker is reached.
#[derive(Clone)]
struct Handle {
    commands: mpsc::Sender<Command>,
    handed: mpsc::Sender<Handed>,
    load: Arc<Load>,
}

impl Workers {
    /// Starts `count` threads. They end when every clone of the returned value is gone.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub fn start(count: usize, shared: Arc<Shared>) -> Result<Self, WorkerError> {
        let endpoints = Arc::new(Endpoints::default());
        shared.telemetry.attach_endpoints(endpoints.clone());
        let mut handles = Vec::new();
        let mut inboxes = Vec::new();
        for _ in 0..count.max(1) {
            let (commands, inbox) = mpsc::channel(COMMANDS);
            let (handed, sockets) = mpsc::channel(HANDED);
            handles.push(Handle { commands, handed, load: Arc::new(Load::default()) });
            inboxes.push((inbox, sockets));
        }
        for (index, (inbox, sockets)) in inboxes.into_iter().enumerate() {
            let peers = handles
                .iter()
                .map(|handle| thread::Peer { handed: handle.handed.downgrade(), load: handle.load.clone() })
                .collect();
            let start = thread::Start {
                index,
                shared: shared.clone(),
                endpoints: endpoints.clone(),
                peers,
                commands: inbox,
                handed: sockets,
            };
            thread::start(start).map_err(|error| WorkerError::Start { worker: index, error })?;
        }
        Ok(Self { inner: Arc::new(Inner { handles, endpoints, pods: Mutex::new(HashMap::new()) }) })
    }

    /// Serves a pod's listeners on the least loaded worker; accepting when it returns.
    ///
    /// # Errors
    /// When the pod is served already, the listeners are not usable, or the worker is stuck.
    pub async fn add_pod(&self, pod: Arc<Pod>, listeners: Listeners) -> Result<(), WorkerError> {
        let uid = pod.uid.clone();
        let state = PodState::new(pod);
        let home = {
            let mut pods = self.inner.pods.lock();
            if pods.contains_key(&uid) {
                return Err(WorkerError::AlreadyServed(uid));
            }
            let home = self.choose_home(&pods);
            pods.insert(uid.clone(), Served { state: state.clone(), home });
            home
        };
        let (done, answer) = oneshot::channel();
        let added = self.ask(home, Command::Add { state, listeners, done }, answer).await;
        let result = added.and_then(|added| added.map_err(WorkerError::Listeners));
        if result.is_err() {
            self.inner.pods.lock().remove(&uid);
        }
        result
    }

    /// Serves a port of a Gateway (`namespace/name`) in a pod that is served, on its home worker; accepting when it
    /// returns.
    ///
    /// # Errors
    /// When the pod is not served, the listeners are not usable, or the worker is stuck.
    pub async fn open_port(
        &self,
        uid: &WorkloadUid,
        gateway: Arc<str>,
        listeners: Vec<TcpListener>,
    ) -> Result<OpenPort, WorkerError> {
        let served = self.inner.pods.lock().get(uid).map(|served| (served.state.clone(), served.home));
        let (state, home) = served.ok_or_else(|| WorkerError::NotServed(uid.clone()))?;
        let (done, answer) = oneshot::channel();
        let opened = self.ask(home, Command::Open { state, gateway, listeners, done }, answer).await?;
        opened.map_err(WorkerError::Listeners)
    }

    /// Fewest pods first; among equals the less busy.
    fn choose_home(&self, pods: &HashMap<WorkloadUid, Served>) -> usize {
        let mut counts = vec![0_usize; self.inner.handles.len()];
        for served in pods.values() {
            counts[served.home] += 1;
        }
        let key = |index: &usize| (counts[*index], self.inner.handles[*index].load.busy());
        (0..counts.len()).min_by_key(key).unwrap_or_default()
    }

    /// Waits until the last connection carried for the pod has ended, or the workload's drain deadline has passed.
    /// Nothing is refused meanwhile, on 15008 either: peers may not know yet that the pod is leaving.
    pub async fn leave_pod(&self, uid: &WorkloadUid) {
        let Some(state) = self.inner.pods.lock().get(uid).map(|served| served.state.clone()) else { return };
        let workload = state.pod.workload.load_full();
        let drain =
            workload.own.as_deref().map_or(DEFAULT_DRAIN, |own: &OwnWorkload| own.settings.timeouts.drain);
        if tokio::time::timeout(drain, state.idle()).await.is_err() {
            let connections = state.carried();
            tracing::info!(workload = %uid, connections, "still open at the end of the drain of a pod that leaves");
        }
    }

    /// Cuts the connections to the pod that are open now (reason `Drained`); its own go on, and new ones are served.
    pub async fn cut_inbound(&self, uid: &WorkloadUid) {
        let carried = self.inner.pods.lock().get(uid).map(|served| served.state.carried());
        tracing::info!(workload = %uid, connections = carried, "connections to a pod that ends are cut at the end of the drain");
        for index in 0..self.inner.handles.len() {
            let (done, answer) = oneshot::channel();
            if let Err(error) = self.ask(index, Command::Cut { uid: uid.clone(), done }, answer).await {
                tracing::error!(workload = %uid, %error, "connections to a pod could not be cut");
            }
        }
    }

    /// The pod is gone, or must not be served any more: closes its listeners, tunnels and connections.
    pub async fn remove_pod(&self, uid: &WorkloadUid) {
        if let Some(served) = self.inner.pods.lock().remove(uid) {
            served.state.set_removed();
        }
        for index in 0..self.inner.handles.len() {
            let (done, answer) = oneshot::channel();
            if let Err(error) = self.ask(index, Command::Remove { uid: uid.clone(), done }, answer).await {
                tracing::error!(workload = %uid, %error, "a pod's connections could not be closed");
            }
        }
    }

    /// The listening sockets of all pods, once more, for another process to serve.
    ///
    /// # Errors
    /// When descriptors are exhausted or a worker is stuck.
    pub async fn sockets(&self) -> Result<Vec<PodSocket>, WorkerError> {
        let mut all = Vec::new();
        for index in 0..self.inner.handles.len() {
            let (done, answer) = oneshot::channel();
            let sockets = self.ask(index, Command::Sockets { done }, answer).await?;
            all.extend(sockets.map_err(WorkerError::Listeners)?);
        }
        Ok(all)
    }

    /// Takes nothing new: stops accepting and announces the end of all tunnels to peers. What is open goes on.
    pub async fn retire(&self) {
        for index in 0..self.inner.handles.len() {
            let (done, answer) = oneshot::channel();
            if let Err(error) = self.ask(index, Command::Drain { done }, answer).await {
                tracing::error!(%error, "a worker does not drain");
            }
        }
    }

    /// As [`Workers::retire`], and waits for connections to end. Those left at the deadline are cut.
    pub async fn drain(&self, deadline: Instant) {
        self.retire().await;
        let states: Vec<_> = self.inner.pods.lock().values().map(|served| served.state.clone()).collect();
        let all_idle = async {
            for state in &states {
                state.idle().await;
            }
        };
        if tokio::time::timeout_at(deadline, all_idle).await.is_err() {
            let connections: usize = states.iter().map(|state| state.carried()).sum();
            tracing::warn!(connections, "cut at the end of the drain");
        }
        for state in states {
            self.remove_pod(&state.pod.uid).await;
        }
    }

    /// What every pod has open now.
    pub fn pods(&self) -> Vec<PodConnections> {
        let pods = self.inner.pods.lock();
        let mut all: Vec<_> = pods.iter().map(|(uid, served)| describe(uid, served)).collect();
        all.sort_by(|one, other| one.workload.cmp(&other.workload));
        all
    }

    /// The endpoints of the snapshot that are passed over because they fail.
    pub fn ejected(&self, snapshot: &Snapshot) -> Vec<Ejected> {
        self.inner.endpoints.ejected(snapshot)
    }

    /// How long ago each worker showed a sign of life; they do so ten times a second.
    pub fn silence(&self) -> Vec<Duration> {
        self.inner.handles.iter().map(|handle| handle.load.silence()).collect()
    }

    async fn ask<T>(
        &self,
        worker: usize,
        command: Command,
        answer: oneshot::Receiver<T>,
    ) -> Result<T, WorkerError> {
        let exchange = async {
            self.inner.handles[worker].commands.send(command).await.ok()?;
            answer.await.ok()
        };
        let answered = tokio::time::timeout(ANSWER, exchange).await.ok().flatten();
        answered.ok_or(WorkerError::Stuck(worker))
    }
}

fn describe(uid: &WorkloadUid, served: &Served) -> PodConnections {
    let state = &served.state;
    PodConnections {
        workload: uid.to_string(),
        connections: state.carried(),
        buffered_bytes: state.pod.limits.memory(),
        tunnels_in: state.tunnels_in(),
        tunnels_out: state.tunnels_out().into_iter().map(|(peer, count)| (peer.to_string(), count)).collect(),
        worker: served.home,
    }
}
