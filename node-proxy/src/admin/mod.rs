//! The admin port: health, metrics, log filter, and what is in force.

mod config;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use culvert_identity::admin::{Admin, Answer, Readiness};
use culvert_identity::logging::LogControl;
use futures::StreamExt;
use http::{Method, StatusCode};
use tokio::sync::watch;

use crate::identity::Certificates;
use crate::pods::PodReports;
use crate::state::{ControlStatus, Snapshots};
use crate::telemetry::Telemetry;
use crate::worker::Workers;

/// A worker that shows no sign of life for this long is stuck.
const STUCK: Duration = Duration::from_secs(10);

/// What the admin port reads.
#[derive(Clone)]
pub struct AdminSources {
    pub snapshots: Snapshots,
    pub certificates: Certificates,
    pub pods: watch::Receiver<PodReports>,
    pub control: ControlStatus,
    pub telemetry: Telemetry,
    /// Set once the workers run.
    pub workers: Arc<OnceLock<Workers>>,
}

/// Serves `/healthz/ready`, `/healthz/live`, `/metrics`, `/log`, `/config` and `/requests` (every request as it ends, as
/// lines of JSON), once it is started.
pub fn server(sources: AdminSources, readiness: Readiness, log: LogControl) -> Admin {
    let workers = sources.workers.clone();
    let registry = sources.telemetry.registry();
    let requests = sources.telemetry.clone();
    Admin::new(readiness, registry, log)
        .live_while(move || live(&workers.get().map(Workers::silence).unwrap_or_default()))
        .route(Method::GET, "/config", move |query| {
            let only = query.get("only");
            match config::render(&sources, only.as_deref()) {
                Ok(text) => Answer::json(text),
                Err(error) => Answer::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
            }
        })
        .stream("/requests", "application/x-ndjson", move |_| requests.follow_requests().boxed())
}

/// Names the workers that are stuck.
fn live(silence: &[Duration]) -> Result<(), String> {
    let stuck: Vec<String> = silence
        .iter()
        .enumerate()
        .filter(|(_, silent)| **silent > STUCK)
        .map(|(index, silent)| format!("worker {index} has been stuck for {} s", silent.as_secs()))
        .collect();
    if stuck.is_empty() { Ok(()) } else { Err(stuck.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_worker_is_named() {
        let second = Duration::from_secs(1);
        assert_eq!(live(&[]), Ok(()));
        assert_eq!(live(&[second, STUCK]), Ok(()));
        assert_eq!(live(&[second, STUCK + second]), Err("worker 1 has been stuck for 11 s".to_owned()));
    }
}
