use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::StatusCode;

use super::Answer;

/// What a process needs before it can do its work, by name. Cheap to clone. Ready when every check is.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    checks: Arc<Mutex<BTreeMap<&'static str, State>>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Missing(String),
}

impl Readiness {
    /// Adds a check, or takes one over that ended; missing until it says otherwise.
    pub fn check(&self, name: &'static str) -> Check {
        let check = Check { readiness: self.clone(), name, at_end: AtEnd::Fails };
        check.missing("has not come up yet");
        check
    }

    pub fn is_ready(&self) -> bool {
        self.missing().is_empty()
    }

    /// What is missing: name and reason.
    pub fn missing(&self) -> Vec<(&'static str, String)> {
        self.lock()
            .iter()
            .filter_map(|(name, state)| match state {
                State::Ready => None,
                State::Missing(reason) => Some((*name, reason.clone())),
            })
            .collect()
    }

    pub(super) fn answer(&self) -> Answer {
        let missing = self.missing();
        if missing.is_empty() {
            return Answer::text(StatusCode::OK, "ready\n");
        }
        let mut body = String::from("not ready\n");
        for (name, reason) in missing {
            // Writing to a string cannot fail.
            let _ = writeln!(body, "{name}: {reason}");
        }
        Answer::text(StatusCode::SERVICE_UNAVAILABLE, body)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, State>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thing a process needs, held by who provides it. When it is dropped, the check fails: its provider is gone.
#[derive(Debug)]
pub struct Check {
    readiness: Readiness,
    name: &'static str,
    at_end: AtEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AtEnd {
    Fails,
    Stays,
}

impl Check {
    pub fn ready(&self) {
        self.readiness.lock().insert(self.name, State::Ready);
    }

    /// Ready for good: nothing that ends can take it back.
    pub fn satisfied(mut self) {
        self.ready();
        self.at_end = AtEnd::Stays;
    }

    pub fn missing(&self, reason: impl Into<String>) {
        self.readiness.lock().insert(self.name, State::Missing(reason.into()));
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        if self.at_end == AtEnd::Fails {
            self.missing("has ended");
        }
    }
}
