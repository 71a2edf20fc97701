//! The order to end a pod, with the time its containers are given.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// An order that may be given once, from anywhere. Clones share it.
#[derive(Clone)]
pub struct Stop {
    asked: CancellationToken,
    grace: Arc<Mutex<Duration>>,
}

impl Stop {
    /// Not given yet; `grace` is what containers killed for other reasons are given.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self { asked: CancellationToken::new(), grace: Arc::new(Mutex::new(grace)) }
    }

    /// Gives the order. A shorter grace period than before counts for containers that are not being ended yet.
    pub fn ask(&self, grace: Duration) {
        let mut current = self.grace.lock().unwrap_or_else(PoisonError::into_inner);
        *current = grace.min(*current);
        drop(current);
        self.asked.cancel();
    }

    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked.is_cancelled()
    }

    /// Completes when the order is given.
    pub async fn asked(&self) {
        self.asked.cancelled().await;
    }

    #[must_use]
    pub fn grace(&self) -> Duration {
        *self.grace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
