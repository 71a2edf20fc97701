//! What is in force, for the admin server.

use std::sync::{Arc, Mutex, PoisonError};

use culvert_objects::ObjectKey;
use serde_json::{Value, json};

use super::enrolment::Missing;
use super::state::{State, Stream};
use crate::snapshot::Key;

/// A pod that is wanted in the mesh and not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub pod: ObjectKey,
    pub uid: String,
    pub missing: Missing,
    /// As its condition says it.
    pub message: String,
}

/// Shows what is in force.
#[derive(Clone)]
pub struct Overview {
    state: Arc<Mutex<State>>,
}

impl Overview {
    pub fn new(state: Arc<Mutex<State>>) -> Self {
        Self { state }
    }

    /// Every pod that should be enrolled and is not.
    pub fn troubles(&self) -> Vec<Trouble> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).troubles()
    }

    /// Generation, streams with what they have applied and refused, and every pod with its enrolment.
    pub fn json(&self) -> Value {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = |stream: &Stream| {
            let refused =
                |(key, reason): (&Key, &String)| json!({"resource": key.to_string(), "reason": reason});
            json!({
                "node": stream.node,
                "instance": stream.hello.instance,
                "proxyVersion": stream.hello.proxy_version,
                "openSeconds": stream.opened.elapsed().as_secs(),
                "appliedGeneration": stream.applied,
                "version": stream.version,
                "refused": stream.refused.iter().map(refused).collect::<Vec<_>>(),
            })
        };
        let pods = state.book.iter().map(|(uid, entry)| {
            let decision = entry.decision();
            let report = entry.report.as_ref();
            json!({
                "uid": uid,
                "node": entry.node,
                "enrolment": decision.enrolment.as_str_name(),
                "tunnel": decision.tunnel.as_str_name(),
                "reported": report.map(|report| report.phase().as_str_name()),
                "message": report.map(|report| report.message.as_str()).unwrap_or_default(),
                "refused": entry.refused,
            })
        });
        json!({
            "generation": state.generation,
            "services": state.services.len(),
            "listeners": state.listener_resources.len(),
            "routes": state.routes.len(),
            "workloads": state.workloads.facts.len(),
            "streams": state.streams.values().map(stream).collect::<Vec<_>>(),
            "pods": pods.collect::<Vec<_>>(),
        })
    }
}
