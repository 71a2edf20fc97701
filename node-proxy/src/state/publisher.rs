//! Puts snapshots in force: one per mark, at most every 5 ms; a burst of marks is one publication of the last.

use std::time::Duration;

use culvert_api::mesh::Applied;
use tokio::sync::watch;
use tokio::time::Instant;

use super::kept::Kept;
use super::snapshot::{Snapshot, Snapshots};
use crate::telemetry::Telemetry;

/// Least time between two publications.
const SPACING: Duration = Duration::from_millis(5);

/// Holds the newest frozen state until it may be published.
pub(super) struct Publisher {
    snapshots: Snapshots,
    telemetry: Telemetry,
    kept: watch::Sender<Kept>,
    last: Option<Instant>,
    pending: Option<(Snapshot, Kept)>,
    unconfirmed: Vec<Applied>,
}

impl Publisher {
    pub fn new(snapshots: Snapshots, telemetry: Telemetry, kept: watch::Sender<Kept>) -> Self {
        Self { snapshots, telemetry, kept, last: None, pending: None, unconfirmed: Vec::new() }
    }

    /// Takes the state at a mark; it replaces one that still waits.
    pub fn offer(&mut self, sequence: u64, snapshot: Snapshot, kept: Kept) {
        self.unconfirmed.push(Applied { sequence, version: snapshot.version().to_owned() });
        self.pending = Some((snapshot, kept));
    }

    /// When the waiting state is to be published.
    pub fn due(&self) -> Option<Instant> {
        self.pending.as_ref().map(|_| self.last.map_or_else(Instant::now, |last| last + SPACING))
    }

    /// Publishes the waiting state, if any; returns the marks it fulfils.
    pub fn publish(&mut self) -> Vec<Applied> {
        if let Some((snapshot, kept)) = self.pending.take() {
            self.snapshots.publish(snapshot);
            self.telemetry.snapshot_published();
            self.kept.send_replace(kept);
            self.last = Some(Instant::now());
        }
        std::mem::take(&mut self.unconfirmed)
    }

    /// The marks belong to a stream that ended: nobody waits for them. The state itself is still published.
    pub fn forget_marks(&mut self) {
        self.unconfirmed.clear();
    }

    pub fn version(&self) -> String {
        self.snapshots.load().version().to_owned()
    }
}
