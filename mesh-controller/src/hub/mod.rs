//! The one task that knows everything: it follows the objects and what node proxies say, publishes snapshots for the
//! streams, and puts statuses in the writer's queue.

mod board;
pub mod enrolment;
mod listeners;
mod overview;
mod pod_status;
mod replicas;
mod state;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use culvert_api::mesh as pb;
use culvert_objects::mesh_config::LastGood;
use culvert_objects::{Kind, ManifestError, ObjectKey, Objects};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::session_keys::SessionKeys;
use crate::snapshot::{Key, Snapshot};
use crate::status::StatusQueue;
use crate::translate::{self, Environment, Memory, Translation, Workloads};
use crate::wanted::Wanted;

pub use overview::{Overview, Trouble};
pub use pod_status::LEAVING;
use state::State;

/// Events of streams that may wait for the hub; streams wait when it is full.
const EVENTS: usize = 1024;

/// Names a stream for as long as the process lives.
pub type StreamId = u64;

/// What a stream tells the hub.
#[derive(Debug)]
pub enum Event {
    /// A node proxy has introduced itself.
    Opened {
        stream: StreamId,
        node: String,
        hello: pb::Hello,
    },
    /// It holds these workloads in versions that speak HBONE. Answered when a snapshot says what follows from it.
    HoldsHbone {
        uids: Vec<String>,
        published: oneshot::Sender<()>,
    },
    /// It has applied everything up to this generation.
    Applied {
        stream: StreamId,
        generation: u64,
    },
    Report {
        node: String,
        report: pb::EnrolmentReport,
    },
    /// Which listeners of Gateways are open in the pods of the node.
    Listeners {
        node: String,
        report: pb::ListenerReport,
    },
    /// What node proxies have told another replica.
    Replica {
        replica: String,
        reports: Vec<pb::NodeReport>,
    },
    /// The other replicas that should be there and cannot be followed now.
    Unfollowed {
        replicas: BTreeSet<String>,
    },
    /// Another replica wants to be told what this one's node proxies have reported, and report.
    Follower {
        reports: mpsc::Sender<pb::ReplicaReports>,
    },
    /// It refused a resource; without a reason: a refused resource was replaced or is gone.
    Refused {
        stream: StreamId,
        key: Key,
        reason: Option<String>,
    },
    /// Its heartbeat: the version in force.
    Heartbeat {
        stream: StreamId,
        version: String,
    },
    Closed {
        stream: StreamId,
    },
    /// Every status wanted is to be put in the queue again; `existing` are the objects that say something of Culvert's now.
    Rewrite {
        existing: Vec<ObjectKey>,
    },
}

/// What the streams need. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub events: mpsc::Sender<Event>,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub objects: watch::Receiver<Arc<Objects>>,
}

/// The mesh's trust domain in force, for the controller's own certificate.
pub type TrustDomain = watch::Receiver<String>;

/// See the module.
pub struct Hub {
    environment: Environment,
    objects: watch::Receiver<Arc<Objects>>,
    session_keys: SessionKeys,
    events: mpsc::Receiver<Event>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    trust_domain: watch::Sender<String>,
    wanted: watch::Sender<Arc<Wanted>>,
    state: Arc<Mutex<State>>,
    last_good: Arc<(LastGood, LastGood)>,
    memory: Memory,
    metrics: Metrics,
}

/// How a hub is started.
pub struct Config {
    pub environment: Environment,
    pub objects: watch::Receiver<Arc<Objects>>,
    pub session_keys: SessionKeys,
    pub statuses: StatusQueue,
    /// Objects with statuses of an earlier run, which go when nothing is wanted of them.
    pub existing_statuses: Vec<ObjectKey>,
    pub metrics: Metrics,
}

impl Hub {
    /// Translates what is there and publishes the first snapshot; [`Hub::run`] goes on from there.
    pub async fn start(config: Config) -> (Self, Handle, TrustDomain) {
        let (sender, events) = mpsc::channel(EVENTS);
        let (snapshots, published) = watch::channel(Arc::default());
        let (trust_domain, in_force) = watch::channel(String::new());
        let handle = Handle { events: sender, snapshots: published, objects: config.objects.clone() };
        let state = State::new(config.statuses, config.existing_statuses, config.metrics.clone());
        let mut hub = Self {
            environment: config.environment,
            objects: config.objects,
            session_keys: config.session_keys,
            events,
            snapshots,
            trust_domain,
            wanted: watch::channel(Arc::default()).0,
            state: Arc::new(Mutex::new(state)),
            last_good: Arc::default(),
            memory: Memory::default(),
            metrics: config.metrics,
        };
        hub.translate().await;
        hub.publish();
        (hub, handle, in_force)
    }

    /// What is in force, for the admin server.
    pub fn overview(&self) -> Overview {
        Overview::new(self.state.clone())
    }

    /// The objects that Gateways need, now and as they change.
    pub fn wanted(&self) -> watch::Receiver<Arc<Wanted>> {
        self.wanted.subscribe()
    }

    /// Runs until the source of the objects ends.
    pub async fn run(mut self) {
        loop {
            let deadline = self.state().deadline();
            tokio::select! {
                changed = self.objects.changed() => match changed {
                    Ok(()) => self.translate().await,
                    Err(_) => return,
                },
                Ok(()) = self.session_keys.changed() => self.renew_session_keys(),
                Some(event) = self.events.recv() => self.take(event),
                () = until(deadline) => {}
            }
            // What has queued up meanwhile goes into the same snapshot.
            for _ in 0..EVENTS {
                let Ok(event) = self.events.try_recv() else { break };
                self.take(event);
            }
            self.publish();
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, event: Event) {
        self.state().take(event);
    }

    fn publish(&mut self) {
        let (snapshot, waiting) = {
            let mut state = self.state();
            (state.publish(Instant::now()), state.take_waiting())
        };
        if let Some(snapshot) = snapshot {
            self.snapshots.send_replace(Arc::new(snapshot));
        }
        for published in waiting {
            // A stream that is gone does not care.
            let _ = published.send(());
        }
    }

    async fn translate(&mut self) {
        let objects = self.objects.borrow_and_update().clone();
        let (environment, last) = (self.environment.clone(), self.last_good.clone());
        let started = std::time::Instant::now();
        let (size, problems) = (objects.len(), objects.problems().len());
        let is_partial = objects.problems().iter().any(may_hide_a_gateway);
        let mut memory = std::mem::take(&mut self.memory);
        // Off the runtime: at ten thousand pods this takes longer than a heartbeat may wait.
        let made = tokio::task::spawn_blocking(move || {
            let (mesh, pods) = &*last;
            let translation = translate::translate_again(&objects, &environment, mesh, &mut memory.routes);
            let (in_force, known) = (&translation.in_force, &mut memory.workloads);
            let workloads = translate::workloads_again(&objects, &environment, in_force, pods, known);
            (translation, workloads, memory)
        });
        // Only a panic stops it; what was published before stays in force.
        let Ok((translation, workloads, memory)) = made.await else {
            tracing::error!("the objects could not be translated; what was published before stays in force");
            return;
        };
        self.memory = memory;
        self.metrics.translated(started.elapsed(), size, problems);
        self.want(Wanted { objects: translation.wanted.clone(), is_partial });
        self.put_in_force(translation, workloads);
    }

    fn want(&mut self, wanted: Wanted) {
        self.wanted.send_if_modified(|current| {
            let differs = **current != wanted;
            if differs {
                *current = Arc::new(wanted);
            }
            differs
        });
    }

    fn renew_session_keys(&mut self) {
        let keys = self.session_keys.borrow_and_update().clone();
        self.state().follow_session_keys(keys);
    }

    fn put_in_force(&mut self, mut translation: Translation, workloads: Arc<Workloads>) {
        translation.mesh.session_keys.clone_from(&self.session_keys.borrow_and_update());
        self.last_good = Arc::new((translation.in_force.last_good().clone(), workloads.last_good.clone()));
        self.trust_domain.send_if_modified(|current| {
            let differs = *current != translation.mesh.trust_domain;
            current.clone_from(&translation.mesh.trust_domain);
            differs
        });
        let outcomes = self.state().follow(translation, workloads, Instant::now());
        self.publish();
        self.state().say(outcomes);
    }
}

/// Whether a Gateway may be missing from the objects because of it.
fn may_hide_a_gateway(problem: &ManifestError) -> bool {
    problem.object.as_ref().is_none_or(|key| matches!(key.kind, Kind::Gateway | Kind::GatewayClass))
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
