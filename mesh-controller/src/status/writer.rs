//! Writes statuses, to a directory (`Kind/namespace-or-_cluster/name.json`) or to the API server. At most one wanted status
//! per object is kept, the newest; a few are written at a time; what is equal is not written again.

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
use super::api_server::ApiStatuses;
use crate::files;
use crate::metrics::{Metrics, StatusResult};

/// Statuses written at the same time.
const WORKERS: usize = 8;
/// Before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The statuses still to be written: the newest per object, None where there must be none.
type Pending = BTreeMap<ObjectKey, Option<Arc<DesiredStatus>>>;

/// One of them.
type Task = (ObjectKey, Option<Arc<DesiredStatus>>);

/// Where wanted statuses are put. Cheap to clone.
#[derive(Clone, Default)]
pub struct StatusQueue {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    added: Notify,
}

#[derive(Default)]
struct State {
    pending: Pending,
    /// Another replica writes: what is wanted is not kept, and asked for again when this one's turn comes.
    closed: bool,
}

impl StatusQueue {
    /// Wants a status written, or none at all; replaces what was wanted before.
    pub fn put(&self, key: ObjectKey, status: Option<Arc<DesiredStatus>>) {
        let mut state = self.lock();
        if !state.closed {
            state.pending.insert(key, status);
            self.shared.added.notify_one();
        }
    }

    /// From now on what is wanted is kept.
    pub fn open(&self) {
        self.lock().closed = false;
    }

    /// Forgets what is wanted and keeps nothing from now on.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.pending.clear();
    }

    fn put_back(&self, (key, status): Task) {
        let mut state = self.lock();
        if !state.closed {
            state.pending.entry(key).or_insert(status);
        }
    }

    fn take(&self) -> Option<Task> {
        self.lock().pending.pop_first()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where statuses go.
enum Sink {
    Directory(PathBuf),
    ApiServer(ApiStatuses),
}

/// How an attempt to write ended without success.
pub enum NotWritten {
    /// It may succeed later.
    Later(String),
    /// It never will as it is: the API server refuses it.
    Never(String),
}

/// Writes what is put in its queue.
pub struct StatusWriter {
    sink: Sink,
    queue: StatusQueue,
    metrics: Metrics,
}

impl StatusWriter {
    /// To a directory.
    pub fn new(directory: impl Into<PathBuf>, metrics: Metrics) -> Self {
        Self { sink: Sink::Directory(directory.into()), queue: StatusQueue::default(), metrics }
    }

    /// To the API server, as long as the queue is open.
    pub fn to_api_server(statuses: ApiStatuses, metrics: Metrics) -> Self {
        Self { sink: Sink::ApiServer(statuses), queue: StatusQueue::default(), metrics }
    }

    pub fn queue(&self) -> StatusQueue {
        self.queue.clone()
    }

    /// The objects that have a status from an earlier run, which goes when nothing is wanted of them.
    ///
    /// # Errors
    /// When the directory cannot be made or listed.
    pub fn existing(&self) -> io::Result<Vec<ObjectKey>> {
        match &self.sink {
            Sink::Directory(directory) => files::existing(directory),
            Sink::ApiServer(statuses) => Ok(statuses.existing()),
        }
    }

    /// Writes until the process ends.
    pub async fn run(self) {
        loop {
            let mut failed = Vec::new();
            let queue = self.queue.clone();
            let taken = futures::stream::iter(std::iter::from_fn(move || queue.take()));
            let mut results = taken.map(|task| self.write(task)).buffer_unordered(WORKERS);
            while let Some(result) = results.next().await {
                failed.extend(result.err());
            }
            drop(results);
            if failed.is_empty() {
                self.queue.shared.added.notified().await;
            } else {
                tokio::time::sleep(RETRY).await;
                failed.into_iter().for_each(|task| self.queue.put_back(task));
            }
        }
    }

    async fn write(&self, (key, status): Task) -> Result<(), Task> {
        let written = match &self.sink {
            Sink::Directory(directory) => {
                write_file(directory.join(key.relative_path()), status.clone()).await
            }
            Sink::ApiServer(statuses) => statuses.write(&key, status.as_deref()).await,
        };
        match written {
            Ok(result) => {
                self.metrics.status_written(result);
                Ok(())
            }
            Err(NotWritten::Later(error)) => {
                tracing::warn!(object = %key, error, "status cannot be written; trying again");
                self.metrics.status_written(StatusResult::Failed);
                Err((key, status))
            }
            Err(NotWritten::Never(error)) => {
                tracing::error!(object = %key, error, "the API server refuses a status");
                self.metrics.status_written(StatusResult::Failed);
                Ok(())
            }
        }
    }
}

async fn write_file(path: PathBuf, wanted: Option<Arc<DesiredStatus>>) -> Result<StatusResult, NotWritten> {
    let written = tokio::task::spawn_blocking(move || match &wanted {
        Some(status) => put(&path, status),
        None => remove(&path),
    });
    let written = written.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    written.map_err(|error| NotWritten::Later(error.to_string()))
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
