//! The Kubernetes source: watches of every kind asked for that the API server has, published as the same [`Objects`] that
//! the directory source publishes.
//!
//! One task per kind lists and watches; one task puts together what they bring and publishes it, at most every few
//! milliseconds, and not before every kind that exists was listed whole. A CRD that appears is watched, one that goes
//! takes its objects along, one that changes its version is listed anew while the old objects stay. An object that
//! cannot be read is a problem of the [`Objects`]; its last good version stays.

pub(crate) mod reading;
mod store;
mod watching;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use culvert_identity::admin::Check;
use culvert_objects::{Kind, ObjectKey, Objects};
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::discovery::{self, Served};

pub use reading::{CurrentStatus, OWN_CONDITIONS};
use store::{Change, Store};

/// Changes that follow each other this closely are published together.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// A source that never rests publishes at least this often.
const LONGEST_DEBOUNCE: Duration = Duration::from_millis(100);
/// Changes on their way from the watches; they wait when it is full.
const CHANGES: usize = 1024;
/// Stands where the name of a file stands in the problems of a directory.
pub(crate) const ORIGIN: &str = "API server";
/// How often a source that waits says in the log for what.
const REMIND: Duration = Duration::from_secs(30);

/// What is done with objects of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Read,
    /// Their current statuses are kept for who writes them.
    ReadAndWriteStatus,
    /// For people: statuses are part of the objects, as they are.
    Show,
}

/// A kind to be followed, if the API server has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    pub kind: Kind,
    pub purpose: Purpose,
}

/// The statuses that objects have, as far as Culvert may have to do with them; for kinds followed for that purpose.
/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct CurrentStatuses {
    all: Arc<RwLock<BTreeMap<ObjectKey, CurrentStatus>>>,
}

impl CurrentStatuses {
    pub fn get(&self, key: &ObjectKey) -> Option<CurrentStatus> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// The objects whose status is as `holds` says.
    pub fn keys(&self, holds: impl Fn(&ObjectKey, &CurrentStatus) -> bool) -> Vec<ObjectKey> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|(key, status)| holds(key, status)).map(|(key, _)| key.clone()).collect()
    }

    /// An object's status was written with this result, which the watch will bring too.
    pub fn wrote(&self, key: &ObjectKey, status: CurrentStatus) {
        self.put(key.clone(), Some(status));
    }

    fn put(&self, key: ObjectKey, status: Option<CurrentStatus>) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        match status {
            // The watch may still be behind what was written.
            Some(status) if all.get(&key).is_some_and(|known| known.is_newer_than(&status)) => {}
            Some(status) => drop(all.insert(key, status)),
            None => drop(all.remove(&key)),
        }
    }
}

/// Kinds of an API server that are being followed, until it is dropped.
pub struct Source {
    objects: watch::Receiver<Arc<Objects>>,
    served: watch::Receiver<Result<Served, String>>,
    statuses: CurrentStatuses,
    task: JoinHandle<()>,
}

impl Source {
    /// Starts to follow and waits until every kind that exists was listed; meanwhile `check` says for what it waits. There
    /// is no deadline: without the API server there is nothing to serve, and it may come back at any time.
    pub async fn open(client: Client, interests: &[Interest], check: &Check) -> Self {
        let kinds: Arc<[Kind]> = interests.iter().map(|interest| interest.kind).collect();
        let served = discovery::follow(client.clone(), kinds);
        let statuses = CurrentStatuses::default();
        let (publisher, mut objects) = watch::channel(Arc::default());
        let (progress, mut waiting) = watch::channel(None);
        let store = Store::new(client, interests, statuses.clone());
        let task = tokio::spawn(run(store, served.clone(), publisher, progress));
        let mut remind = tokio::time::interval(REMIND);
        remind.reset();
        // The first published version is the first that is complete.
        loop {
            tokio::select! {
                published = objects.changed() => {
                    // Ends only with this value.
                    let _ = published;
                    break;
                }
                Ok(()) = waiting.changed() => {
                    check.missing(waiting.borrow_and_update().clone().unwrap_or_default());
                }
                _ = remind.tick() => {
                    let waiting = waiting.borrow().clone().unwrap_or_default();
                    tracing::warn!(waiting, "the objects are not complete yet");
                }
            }
        }
        objects.mark_unchanged();
        Self { objects, served, statuses, task }
    }

    /// The objects, now and as they change.
    pub fn objects(&self) -> watch::Receiver<Arc<Objects>> {
        self.objects.clone()
    }

    /// The kinds that the API server has.
    pub fn served(&self) -> watch::Receiver<Result<Served, String>> {
        self.served.clone()
    }

    pub fn statuses(&self) -> CurrentStatuses {
        self.statuses.clone()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    mut store: Store,
    mut served: watch::Receiver<Result<Served, String>>,
    publisher: watch::Sender<Arc<Objects>>,
    progress: watch::Sender<Option<String>>,
) {
    let (sender, mut changes) = mpsc::channel::<Change>(CHANGES);
    // When what has changed is published at the latest.
    let mut due: Option<(Instant, Instant)> = None;
    loop {
        let publish_at = due.map(|(latest, quiet)| latest.min(quiet));
        tokio::select! {
            biased;
            changed = served.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = served.borrow_and_update().clone();
                match now {
                    Ok(served) => store.serve(&served, &sender),
                    Err(error) => store.is_away(error),
                }
            }
            () = until(publish_at) => {
                due = None;
                if let Some(objects) = store.publish() {
                    publisher.send_replace(Arc::new(objects));
                }
                continue;
            }
            Some(change) = changes.recv() => store.take(change),
            () = publisher.closed() => return,
        }
        if store.is_changed() {
            let quiet = Instant::now() + DEBOUNCE;
            due = Some((due.map_or(Instant::now() + LONGEST_DEBOUNCE, |(latest, _)| latest), quiet));
        } else if due.is_none() {
            progress.send_if_modified(|last| {
                let now = store.waiting();
                let differs = *last != now;
                *last = now;
                differs
            });
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
