//! One try of an endpoint, from the moment it is picked: counts towards its load while it lasts, and says what became of it.

use std::sync::Arc;
use std::time::Duration;

use super::Candidate;
use super::group::Try;
use super::load::EndpointLoad;
use super::standing::Step;

/// A connection or request under way to an endpoint. What is never said to have gone well or badly says nothing about the
/// endpoint: so it is with whatever the client gives up.
#[derive(Debug)]
pub struct InFlight {
    load: Arc<EndpointLoad>,
    began: u64,
    /// None where endpoints are not ejected.
    judged: Option<Try>,
    /// Something was heard of the endpoint.
    is_heard: bool,
    /// Whatever may go well after that.
    has_failed: bool,
}

impl Candidate {
    /// Counts a connection or request to the endpoint until the guard is dropped.
    pub fn begin(&self) -> InFlight {
        self.load.enter();
        let judged = self.health.clone().map(|health| Try::new(health, self.is_trial));
        InFlight {
            load: self.load.clone(),
            judged,
            began: self.load.now(),
            is_heard: false,
            has_failed: false,
        }
    }
}

impl InFlight {
    fn passed(&mut self, step: Step) {
        self.is_heard = true;
        if let Some(judged) = self.judged.as_mut().filter(|_| !self.has_failed) {
            judged.passed(step, self.began);
        }
    }

    fn failed(&mut self, step: Step) {
        let now = self.load.now();
        if let Some(judged) = self.judged.as_mut().filter(|_| !self.has_failed) {
            judged.failed(step, self.began, now);
        }
        self.has_failed = true;
    }

    /// A connection was made and took so long.
    pub fn connected(&mut self, took: Duration) {
        self.load.connected(took);
        self.passed(Step::Connect);
    }

    /// No connection could be made, and that is the endpoint's fault.
    pub fn unreached(&mut self) {
        self.failed(Step::Connect);
    }

    /// A response has begun that speaks for the endpoint, after so long.
    pub fn answered(&mut self, took: Duration) {
        self.load.responded(took);
        self.passed(Step::Answer);
    }

    /// A response has begun that speaks against the endpoint. How soon it came says nothing: failing is often quick.
    pub fn refused(&mut self) {
        self.is_heard = true;
        self.failed(Step::Answer);
    }

    /// No response came, and that is the endpoint's fault.
    pub fn unanswered(&mut self) {
        self.failed(Step::Answer);
    }

    /// All of it has gone well, unless it was said to have failed.
    pub fn completed(&mut self) {
        self.passed(Step::Rest);
    }

    /// It broke after it had begun well, and that is the endpoint's fault.
    pub fn broken(&mut self) {
        self.failed(Step::Rest);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.load.leave();
        let now = self.load.now();
        if !self.is_heard {
            self.load.unanswered(now.saturating_sub(self.began));
        }
        if let Some(judged) = &mut self.judged {
            judged.end(self.began, now);
        }
    }
}
