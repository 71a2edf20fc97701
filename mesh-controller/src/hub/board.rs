//! The statuses as they were last wanted.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_objects::{Kind, ObjectKey};

use crate::status::{DesiredStatus, StatusQueue};
use crate::translate::Statuses;

/// The statuses as they were last put in the queue.
pub struct Board {
    queue: StatusQueue,
    /// None: written by an earlier run, content unknown.
    current: BTreeMap<ObjectKey, Option<Arc<DesiredStatus>>>,
}

impl Board {
    /// `existing` are the objects that have one from an earlier run.
    pub fn new(queue: StatusQueue, existing: Vec<ObjectKey>) -> Self {
        Self { queue, current: existing.into_iter().map(|key| (key, None)).collect() }
    }

    /// Wants these and no others of some kinds.
    pub fn replace(&mut self, wanted: Statuses, is_concerned: fn(Kind) -> bool) {
        let is_gone = |key: &&ObjectKey| is_concerned(key.kind) && !wanted.contains_key(*key);
        let gone: Vec<ObjectKey> = self.current.keys().filter(is_gone).cloned().collect();
        gone.iter().for_each(|key| self.put(key, None));
        for (key, status) in wanted {
            self.put(&key, Some(status));
        }
    }

    /// Wants everything again. `existing` are the objects that say something of ours now.
    pub fn rewrite(&self, existing: Vec<ObjectKey>) {
        for key in existing.into_iter().filter(|key| !self.current.contains_key(key)) {
            self.queue.put(key, None);
        }
        for (key, status) in &self.current {
            if let Some(status) = status {
                self.queue.put(key.clone(), Some(status.clone()));
            }
        }
    }

    /// What is wanted of an object.
    pub fn wanted(&self, key: &ObjectKey) -> Option<&Arc<DesiredStatus>> {
        self.current.get(key)?.as_ref()
    }

    /// Wants one status, or none.
    pub fn put(&mut self, key: &ObjectKey, status: Option<Arc<DesiredStatus>>) {
        match status.filter(|status| !status.is_empty()) {
            Some(status) => {
                let is_same = |now: &Arc<DesiredStatus>| Arc::ptr_eq(now, &status) || *now == status;
                if !self.current.get(key).and_then(Option::as_ref).is_some_and(is_same) {
                    self.queue.put(key.clone(), Some(status.clone()));
                    self.current.insert(key.clone(), Some(status));
                }
            }
            None => {
                if self.current.remove(key).is_some() {
                    self.queue.put(key.clone(), None);
                }
            }
        }
    }
}
