//! Who is wanted in the mesh, on the node's disk: what the CNI plugin decides by while neither the API server nor the node
//! proxy can be asked.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use culvert_api::enrolment::{KEPT_NAMESPACES, KeptNamespaces};
use culvert_identity::files::{self, Readers};
use tokio_util::sync::CancellationToken;

use super::model::Enrolment;
use super::snapshot::{Snapshot, Snapshots};

/// Least time between two looks at what has changed.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Before what could not be written is written again.
const RETRY: Duration = Duration::from_secs(5);

/// What a snapshot says. None when nobody has told which namespaces there are: an older controller does not, and what an
/// earlier one has told is better than nothing.
fn known(snapshot: &Snapshot) -> Option<KeptNamespaces> {
    let enrols: std::collections::BTreeMap<String, bool> =
        snapshot.namespaces().map(|(name, enrols)| (name.to_string(), enrols)).collect();
    if enrols.is_empty() {
        return None;
    }
    let pods = snapshot.own_workloads().filter_map(|workload| {
        let own = workload.own.as_ref()?;
        Some((workload.uid.pod_uid().to_owned(), own.enrolment == Enrolment::Enrolled))
    });
    Some(KeptNamespaces { enrols, pods: pods.collect() })
}

/// Writes the file when what it says has changed.
#[derive(Debug)]
pub struct NamespaceKeeper {
    path: PathBuf,
    snapshots: Snapshots,
    /// What is on disk, as far as it is known.
    written: Option<KeptNamespaces>,
}

impl NamespaceKeeper {
    /// `directory` is the node proxy's state directory.
    pub fn new(directory: &Path, snapshots: Snapshots) -> Self {
        let path = directory.join(KEPT_NAMESPACES);
        let read = std::fs::read(&path).ok();
        let written = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { path, snapshots, written }
    }

    /// Until cancelled; then what is not on disk yet is written.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut changed = self.snapshots.changed();
        loop {
            changed.mark_unchanged();
            let kept = self.keep().await;
            if let Err(error) = &kept {
                tracing::warn!(
                    %error,
                    "which namespaces enrol is not kept: while API server and node proxy are away, new pods are \
                     judged by what was; check space and permissions of --state-dir"
                );
            }
            let next = async {
                tokio::time::sleep(if kept.is_ok() { DEBOUNCE } else { RETRY }).await;
                if kept.is_ok() && changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            if cancel.run_until_cancelled(next).await.is_none() {
                break;
            }
        }
        if let Err(error) = self.keep().await {
            tracing::warn!(%error, "which namespaces enrol is not kept");
        }
    }

    async fn keep(&mut self) -> io::Result<()> {
        let Some(kept) = known(&self.snapshots.load_full()) else { return Ok(()) };
        if self.written.as_ref() == Some(&kept) {
            return Ok(());
        }
        let (path, content) = (self.path.clone(), serde_json::to_vec_pretty(&kept)?);
        let write = move || files::replace(&path, &content, Readers::Owner);
        tokio::task::spawn_blocking(write).await.map_err(io::Error::other)??;
        self.written = Some(kept);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
