//! What the controller manager and the scheduler of a cluster do, as pure functions from the objects to changes of
//! them. Run again and again until nothing is left to do.

mod deployment;
pub mod endpoint_slices;
mod garbage;
mod hash;
mod load_balancer;
mod namespaces;
mod rollout;
mod schedule;
mod view;

use std::time::Duration;

use chrono::{DateTime, Utc};
use culvert_objects::types::DeploymentSpec;
use culvert_objects::{Kind, Objects};

use crate::sandbox::store::Change;
pub use load_balancer::ingress;
use view::PodView;

/// How long changes are gathered before controllers look at them.
pub const DEBOUNCE: Duration = Duration::from_millis(5);

/// What a decision may depend on besides the objects.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    pub now: DateTime<Utc>,
    /// Differs between runs, so that the names of replaced pods do.
    pub entropy: u64,
}

/// What all controllers want changed, in an order in which it can be carried out.
#[must_use]
pub fn reconcile(objects: &Objects, context: &Context) -> Vec<Change> {
    let pods = PodView::all(objects);
    let mut changes = schedule::reconcile(objects, &pods, context);
    changes.extend(deployment::reconcile(objects, &pods, context));
    changes.extend(endpoint_slices::reconcile(objects, &pods));
    changes.extend(load_balancer::reconcile(objects));
    changes.extend(namespaces::reconcile(objects));
    changes.extend(garbage::reconcile(objects));
    changes
}

/// When controllers must look again although no object changed: pods become available by time alone where a
/// Deployment sets `minReadySeconds`.
#[must_use]
pub fn wake_after(objects: &Objects) -> Duration {
    let timed = objects
        .of_kind(Kind::Deployment)
        .any(|deployment| deployment.spec::<DeploymentSpec>().is_ok_and(|spec| spec.min_ready_seconds > 0));
    Duration::from_secs(if timed { 1 } else { 3600 })
}

#[cfg(test)]
mod tests;
