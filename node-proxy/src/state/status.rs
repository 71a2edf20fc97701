//! How the controller's stream is doing, for metrics and `/config`.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Shared between the control client and whoever asks. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ControlStatus(Arc<Mutex<ControlReading>>);

/// One reading of the stream's state.
#[derive(Clone, Debug, Default)]
pub struct ControlReading {
    /// Since when the stream is up; none while it is down.
    pub connected_since: Option<Instant>,
    /// When any message came last, over this or an earlier stream.
    pub last_heard: Option<Instant>,
    /// The node that the controller says this proxy's token proves.
    pub node: Option<Arc<str>>,
    /// Why the last stream ended or could not be opened.
    pub last_error: Option<Arc<str>>,
}

impl ControlStatus {
    pub fn read(&self) -> ControlReading {
        self.0.lock().clone()
    }

    pub(super) fn connected(&self, node: &str) {
        let mut reading = self.0.lock();
        reading.connected_since = Some(Instant::now());
        reading.node = Some(node.into());
        reading.last_error = None;
    }

    pub(super) fn heard(&self) {
        self.0.lock().last_heard = Some(Instant::now());
    }

    pub(super) fn disconnected(&self, error: &str) {
        let mut reading = self.0.lock();
        reading.connected_since = None;
        reading.last_error = Some(error.into());
    }
}
