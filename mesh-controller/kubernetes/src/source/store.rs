//! What the watches have brought, put together. No I/O but starting and stopping them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use culvert_objects::{FieldError, Kind, ManifestError, ObjectKey, Objects};
use kube::Client;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::reading::Item;
use super::{CurrentStatuses, Interest, ORIGIN, Purpose, watching};
use crate::discovery::{Resource, Served};

/// What a watch says.
pub enum News {
    /// A list begins.
    Listing,
    Listed(Item),
    /// Everything of the list was told.
    Complete,
    Changed(Item),
    Gone(ObjectKey),
    Failed(String),
}

pub struct Change {
    pub kind: Kind,
    pub epoch: u64,
    pub news: News,
}

/// A kind that is being watched.
struct Watched {
    resource: Resource,
    epoch: u64,
    task: AbortHandle,
    /// Listed whole at least once.
    complete: bool,
    /// Of the list that is being told.
    listing: Option<Vec<Item>>,
    failure: Option<String>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub struct Store {
    client: Client,
    interests: BTreeMap<Kind, Purpose>,
    watched: BTreeMap<Kind, Watched>,
    /// Why nothing is known of the kinds that exist.
    away: Option<String>,
    objects: Objects,
    faults: BTreeMap<ObjectKey, FieldError>,
    statuses: CurrentStatuses,
    epochs: u64,
    changed: bool,
    published: bool,
    /// Already logged, so that a lasting fault is reported once.
    reported: BTreeSet<String>,
}

impl Store {
    pub fn new(client: Client, interests: &[Interest], statuses: CurrentStatuses) -> Self {
        Self {
            client,
            interests: interests.iter().map(|interest| (interest.kind, interest.purpose)).collect(),
            watched: BTreeMap::new(),
            away: Some("the API server has not answered yet".to_owned()),
            objects: Objects::default(),
            faults: BTreeMap::new(),
            statuses,
            epochs: 0,
            changed: false,
            published: false,
            reported: BTreeSet::new(),
        }
    }

    /// Nothing could be learnt about the kinds yet.
    pub fn is_away(&mut self, error: String) {
        self.away = Some(error);
    }

    /// Watches exactly the kinds that are there.
    pub fn serve(&mut self, served: &Served, changes: &mpsc::Sender<Change>) {
        self.away = None;
        let gone: Vec<Kind> =
            self.watched.keys().copied().filter(|kind| served.get(*kind).is_none()).collect();
        for kind in gone {
            tracing::info!(%kind, "the API server has this kind no more");
            self.watched.remove(&kind);
            let keys: Vec<ObjectKey> = self.objects.of_kind(kind).map(|object| object.key()).collect();
            keys.into_iter().for_each(|key| self.remove(&key));
            self.faults.retain(|key, _| key.kind != kind);
            self.changed = true;
        }
        for resource in served.iter() {
            let Some(purpose) = self.interests.get(&resource.kind).copied() else { continue };
            if self.watched.get(&resource.kind).is_some_and(|watched| watched.resource == resource) {
                continue;
            }
            tracing::info!(kind = %resource.kind, version = resource.api_version, "watching");
            self.epochs += 1;
            let follow =
                watching::follow(self.client.clone(), resource, purpose, self.epochs, changes.clone());
            let task = tokio::spawn(follow).abort_handle();
            let watched =
                Watched { resource, epoch: self.epochs, task, complete: false, listing: None, failure: None };
            self.watched.insert(resource.kind, watched);
        }
        // With nothing to watch there is nothing to wait for.
        self.changed |= self.watched.is_empty();
    }

    pub fn take(&mut self, change: Change) {
        let Some(watched) = self.watched.get_mut(&change.kind) else { return };
        if watched.epoch != change.epoch {
            return;
        }
        match change.news {
            News::Listing => watched.listing = Some(Vec::new()),
            News::Listed(item) => {
                if let Some(listing) = &mut watched.listing {
                    listing.push(item);
                }
            }
            News::Complete => {
                let listed = watched.listing.take().unwrap_or_default();
                self.changed |= !std::mem::replace(&mut watched.complete, true);
                watched.failure = None;
                self.replace(change.kind, listed);
            }
            News::Changed(item) => {
                watched.failure = None;
                self.put(item);
            }
            News::Gone(key) => {
                watched.failure = None;
                self.remove(&key);
            }
            News::Failed(error) => {
                if watched.failure.as_ref() != Some(&error) {
                    tracing::warn!(kind = %change.kind, error, "watch failed; trying again");
                    watched.failure = Some(error);
                }
            }
        }
    }

    fn replace(&mut self, kind: Kind, listed: Vec<Item>) {
        let keys: BTreeSet<ObjectKey> = listed.iter().map(|item| item.key.clone()).collect();
        let known = self.objects.of_kind(kind).map(|object| object.key());
        let faulty = self.faults.keys().filter(|key| key.kind == kind).cloned();
        let gone: Vec<ObjectKey> = known.chain(faulty).filter(|key| !keys.contains(key)).collect();
        gone.iter().for_each(|key| self.remove(key));
        listed.into_iter().for_each(|item| self.put(item));
    }

    fn put(&mut self, item: Item) {
        let Item { key, object, status } = item;
        self.statuses.put(key.clone(), status);
        match object {
            Ok(object) => {
                self.changed |= self.faults.remove(&key).is_some();
                // What has not changed stays the very same object, so that what was made of it can be kept.
                if self.objects.get(&key).is_none_or(|before| **before != object) {
                    self.objects.insert(Arc::new(object));
                    self.changed = true;
                }
            }
            Err(fault) => {
                self.changed |= self.faults.insert(key, fault.clone()) != Some(fault);
            }
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        self.statuses.put(key.clone(), None);
        self.changed |= self.faults.remove(key).is_some() || self.objects.get(key).is_some();
        self.objects.remove(key);
    }

    /// Whether there is something to publish.
    pub fn is_changed(&self) -> bool {
        self.changed && (self.published || self.waiting().is_none())
    }

    /// For what the first version waits; None when it is complete.
    pub fn waiting(&self) -> Option<String> {
        if let Some(error) = &self.away {
            return Some(error.clone());
        }
        let incomplete = self.watched.values().filter(|watched| !watched.complete);
        let named: Vec<String> = incomplete
            .map(|watched| match &watched.failure {
                Some(error) => format!("{} ({error})", watched.resource.kind),
                None => watched.resource.kind.to_string(),
            })
            .collect();
        (!named.is_empty()).then(|| format!("not listed yet: {}", named.join(", ")))
    }

    /// What is known now, if it may be published.
    pub fn publish(&mut self) -> Option<Objects> {
        if !self.is_changed() {
            return None;
        }
        (self.changed, self.published) = (false, true);
        let problem = |(key, fault): (&ObjectKey, &FieldError)| ManifestError {
            file: PathBuf::from(ORIGIN),
            document: 0,
            object: Some(key.clone()),
            field: fault.field.clone(),
            message: fault.message.clone(),
        };
        let objects = self.objects.clone().with_problems(self.faults.iter().map(problem).collect());
        let lines: BTreeSet<String> = objects.problems().iter().map(ToString::to_string).collect();
        for line in lines.difference(&self.reported) {
            tracing::warn!("{line}; it is left out, or stays as it was");
        }
        self.reported = lines;
        Some(objects)
    }
}
