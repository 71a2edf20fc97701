//! The sandbox's API server: the objects, their history numbers, and who is told when they change. In memory; mirrored
//! to the objects directory that controller and CA read.

mod defaults;
mod mirror;
mod state;
mod statuses;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, SubsecRound, Utc};
use culvert_objects::{Object, ObjectKey, Objects};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::sandbox::cluster::Cluster;
use crate::sandbox::controllers::{self, Context};

pub(crate) use defaults::{DNS_SERVICE, MAX_PODS, NAMESPACES};
pub use state::{Change, State};
pub(crate) use statuses::{Scanned, scan};
pub use statuses::{Statuses, merge};

/// Rounds of controllers after one change. They settle in a handful; more means that two of them disagree.
const MAX_ROUNDS: usize = 50;

/// Where the store's directories are.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Written by the store: every object (`Kind/namespace-or-_cluster/name.json`).
    pub objects: PathBuf,
    /// Read by the store: statuses that the mesh's controller writes, in the same layout.
    pub statuses: PathBuf,
}

/// The objects of one sandbox. Clones share everything.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Counts the commits that changed anything.
    changed: watch::Sender<u64>,
    statuses: watch::Sender<Arc<Statuses>>,
}

impl Store {
    /// A store with what every cluster has from the start: its namespaces, nodes and DNS Service.
    #[must_use]
    pub fn new(cluster: &Cluster) -> Self {
        let store = Self(Arc::new(Inner {
            state: Mutex::new(State::default()),
            changed: watch::Sender::new(0),
            statuses: watch::Sender::new(Arc::default()),
        }));
        store.commit(defaults::objects(cluster).into_iter().map(Change::put).collect());
        store
    }

    /// Every object at this moment, without the statuses that the mesh's controller writes. Immutable.
    #[must_use]
    pub fn objects(&self) -> Arc<Objects> {
        self.state().objects()
    }

    /// Changes its number with every commit that changed an object.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// The statuses that the mesh's controller wrote, as they are now and as they change.
    #[must_use]
    pub fn statuses(&self) -> watch::Receiver<Arc<Statuses>> {
        self.0.statuses.subscribe()
    }

    /// An object with the mesh's status merged in, as users see it.
    #[must_use]
    pub fn merged(&self, key: &ObjectKey) -> Option<Object> {
        let object = Arc::clone(self.objects().get(key)?);
        let statuses = Arc::clone(&self.0.statuses.borrow());
        Some(merge(&object, &statuses))
    }

    /// Every object with the mesh's status merged in.
    #[must_use]
    pub fn all_merged(&self) -> Vec<Object> {
        let statuses = Arc::clone(&self.0.statuses.borrow());
        self.objects().iter().map(|object| merge(object, &statuses)).collect()
    }

    /// Changes the status of an object under the store's lock; nothing happens when it is gone.
    pub async fn update_status(&self, key: &ObjectKey, change: impl FnOnce(&mut Value)) {
        self.publish(|state| state.update_status(key, change));
    }

    /// Removes an object for good: the kubelet's last word on a deleted pod.
    pub async fn remove(&self, key: &ObjectKey) {
        self.commit(vec![Change::Remove(key.clone())]);
    }

    /// Carries out changes and lets the controllers follow, so that what they derive is there on return.
    pub fn commit(&self, changes: Vec<Change>) {
        self.publish(|state| state.commit(changes, now()));
        self.settle();
    }

    /// Decides on changes from the objects as they are and carries them out, with nobody in between.
    ///
    /// # Errors
    /// Whatever `plan` finds wrong; nothing is changed then.
    pub fn transact<T, E>(&self, plan: impl FnOnce(&Objects) -> Result<(Vec<Change>, T), E>) -> Result<T, E> {
        let outcome = self.publish(|state| {
            let (changes, value) = plan(&state.objects())?;
            state.commit(changes, now());
            Ok(value)
        });
        self.settle();
        outcome
    }

    /// Runs controllers until nothing is left to do.
    fn settle(&self) {
        for _ in 0..MAX_ROUNDS {
            let done = self.publish(|state| {
                let context = Context { now: now(), entropy: state.version() };
                let changes = controllers::reconcile(&state.objects(), &context);
                let done = changes.is_empty();
                state.commit(changes, context.now);
                done
            });
            if done {
                return;
            }
        }
        warn!("the controllers of the sandbox do not agree; the last state is kept");
    }

    /// Mirrors objects, reads statuses and runs the controllers until cancelled.
    ///
    /// # Errors
    /// When the objects directory cannot be created.
    pub async fn run(&self, config: StoreConfig, cancel: CancellationToken) -> io::Result<()> {
        tokio::fs::create_dir_all(&config.objects).await?;
        tokio::fs::create_dir_all(&config.statuses).await?;
        tokio::select! {
            () = cancel.cancelled() => {}
            () = mirror::run(self.clone(), config.objects) => {}
            () = statuses::run(config.statuses, &self.0.statuses) => {}
            () = self.run_controllers() => {}
        }
        Ok(())
    }

    /// Controllers follow status changes here, several at once, rather than under each writer's feet.
    async fn run_controllers(&self) {
        let mut changed = self.changed();
        loop {
            tokio::time::sleep(controllers::DEBOUNCE).await;
            changed.mark_unchanged();
            self.settle();
            let wake = controllers::wake_after(&self.objects());
            tokio::select! {
                _ = changed.changed() => {}
                () = tokio::time::sleep(wake) => {}
            }
        }
    }

    /// Runs `work` under the lock and tells everybody if the version moved.
    fn publish<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let before = state.version();
        let result = work(&mut state);
        let after = state.version();
        drop(state);
        if after != before {
            self.0.changed.send_modify(|version| *version = (*version).max(after));
        }
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// To the second, as Kubernetes writes it.
fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(0)
}
