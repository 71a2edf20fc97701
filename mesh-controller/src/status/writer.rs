//! Writes statuses to a directory: `Kind/namespace-or-_cluster/name.json`. At most one wanted status per object is kept,
//! the newest; a few files are written at a time; what is equal is not written again.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use culvert_objects::ObjectKey;
use futures::StreamExt as _;
use serde_json::Value;
use tokio::sync::Notify;

use super::DesiredStatus;
use crate::files;
use crate::metrics::{Metrics, StatusResult};

/// Files written at the same time.
const WORKERS: usize = 4;
/// Before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The statuses still to be written: the newest per object, None where the file must go.
type Pending = BTreeMap<ObjectKey, Option<Arc<DesiredStatus>>>;

/// Where wanted statuses are put. Cheap to clone.
#[derive(Clone, Default)]
pub struct StatusQueue {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    added: Notify,
}

impl StatusQueue {
    /// Wants a status written, or none at all; replaces what was wanted before.
    pub fn put(&self, key: ObjectKey, status: Option<Arc<DesiredStatus>>) {
        self.lock().insert(key, status);
        self.shared.added.notify_one();
    }

    fn put_back(&self, key: ObjectKey, status: Option<Arc<DesiredStatus>>) {
        self.lock().entry(key).or_insert(status);
    }

    fn take(&self) -> Option<(ObjectKey, Option<Arc<DesiredStatus>>)> {
        self.lock().pop_first()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what is put in its queue.
pub struct StatusWriter {
    directory: PathBuf,
    queue: StatusQueue,
    metrics: Metrics,
}

impl StatusWriter {
    pub fn new(directory: impl Into<PathBuf>, metrics: Metrics) -> Self {
        Self { directory: directory.into(), queue: StatusQueue::default(), metrics }
    }

    pub fn queue(&self) -> StatusQueue {
        self.queue.clone()
    }

    /// The objects that have a status file from an earlier run.
    ///
    /// # Errors
    /// When the directory cannot be made or listed.
    pub fn existing(&self) -> io::Result<Vec<ObjectKey>> {
        files::existing(&self.directory)
    }

    /// Writes until the process ends.
    pub async fn run(self) {
        loop {
            let mut failed = Vec::new();
            let queue = self.queue.clone();
            let taken = futures::stream::iter(std::iter::from_fn(move || queue.take()));
            let mut results = taken.map(|(key, status)| self.write(key, status)).buffer_unordered(WORKERS);
            while let Some(result) = results.next().await {
                failed.extend(result.err());
            }
            drop(results);
            if failed.is_empty() {
                self.queue.shared.added.notified().await;
            } else {
                tokio::time::sleep(RETRY).await;
                failed.into_iter().for_each(|(key, status)| self.queue.put_back(key, status));
            }
        }
    }

    async fn write(
        &self,
        key: ObjectKey,
        status: Option<Arc<DesiredStatus>>,
    ) -> Result<(), (ObjectKey, Option<Arc<DesiredStatus>>)> {
        let path = self.directory.join(key.relative_path());
        let wanted = status.clone();
        let written = tokio::task::spawn_blocking(move || match &wanted {
            Some(status) => put(&path, status),
            None => remove(&path),
        });
        match written.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(result) => {
                self.metrics.status_written(result);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(object = %key, %error, "status cannot be written; trying again");
                self.metrics.status_written(StatusResult::Failed);
                Err((key, status))
            }
        }
    }
}

fn put(path: &Path, status: &DesiredStatus) -> io::Result<StatusResult> {
    let before = std::fs::read(path).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let document = status.json(before.as_ref(), chrono::Utc::now());
    if before.as_ref() == Some(&document) {
        return Ok(StatusResult::Unchanged);
    }
    files::replace(path, &document)?;
    Ok(StatusResult::Written)
}

fn remove(path: &Path) -> io::Result<StatusResult> {
    Ok(if files::remove(path)? { StatusResult::Removed } else { StatusResult::Unchanged })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::DesiredCondition;
    use culvert_objects::{Kind, Object};

    async fn until(holds: impl Fn() -> bool) {
        for _ in 0..500 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("did not come about");
    }

    #[tokio::test]
    async fn statuses_are_written_kept_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let writer = StatusWriter::new(directory.path(), Metrics::default());
        let queue = writer.queue();
        let task = tokio::spawn(writer.run());
        let mut object = Object::new(ObjectKey::namespaced(Kind::Pod, "shop", "cart"));
        object.metadata.uid = Some("1".to_owned());
        let path = directory.path().join("Pod/shop/cart.json");
        let status =
            |reason: &str| DesiredStatus::of(&object).with_condition(DesiredCondition::no("Up", reason, ""));
        let text = || std::fs::read_to_string(&path).unwrap_or_default();

        queue.put(object.key(), Some(Arc::new(status("First"))));
        until(|| text().contains("First")).await;
        for n in 0..100 {
            queue.put(object.key(), Some(Arc::new(status(&format!("Number{n}")))));
        }
        until(|| text().contains("Number99")).await;
        queue.put(object.key(), None);
        until(|| !path.exists()).await;
        task.abort();

        std::fs::write(&path, "{}").unwrap();
        let again = StatusWriter::new(directory.path(), Metrics::default());
        assert_eq!(again.existing().unwrap(), [object.key()]);
    }
}
