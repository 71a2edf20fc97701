//! Pods with their fields read once per run of the controllers.

use std::sync::Arc;

use chrono::{DateTime, Duration, Utc};
use culvert_objects::types::{ConditionStatus, PodSpec, PodStatus};
use culvert_objects::{Kind, Object, Objects};

/// A pod as controllers look at it.
pub struct PodView<'a> {
    pub object: &'a Arc<Object>,
    pub spec: PodSpec,
    pub status: PodStatus,
}

impl<'a> PodView<'a> {
    /// Every pod whose fields can be read; the others were refused when they came in.
    pub fn all(objects: &'a Objects) -> Vec<Self> {
        objects
            .of_kind(Kind::Pod)
            .filter_map(|object| {
                Some(Self { object, spec: object.spec().ok()?, status: object.status().ok()? })
            })
            .collect()
    }

    /// Asked to stop.
    pub fn is_terminating(&self) -> bool {
        self.object.metadata.deletion_timestamp.is_some()
    }

    /// Condition `Ready`.
    pub fn is_ready(&self) -> bool {
        self.ready_since().is_some()
    }

    /// Ready for at least `least` at `now`.
    pub fn is_available(&self, least: Duration, now: DateTime<Utc>) -> bool {
        match self.ready_since() {
            Some(Some(since)) => now - since >= least,
            Some(None) => true,
            None => false,
        }
    }

    fn ready_since(&self) -> Option<Option<DateTime<Utc>>> {
        let ready = self.status.conditions.iter().find(|condition| condition.kind == "Ready")?;
        (ready.status == ConditionStatus::True).then_some(ready.last_transition_time)
    }

    /// The node it is bound to.
    pub fn node(&self) -> Option<&str> {
        self.spec.node_name.as_deref().filter(|node| !node.is_empty())
    }
}
