//! What this node says about its pods: to the controller, and on the admin port.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use culvert_api::mesh::{EnrolmentPhase, WorkloadEnrolment};
use culvert_identity::Identity;

use crate::state::model::WorkloadUid;

/// How far a pod's enrolment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    NotEnrolled,
    /// Asked for, not in force yet.
    Waiting,
    /// Rules, listeners and certificate are in force.
    Enrolled,
    /// Still captured; what was captured may end in peace.
    Leaving,
    /// The node cannot do what was asked; it tries again.
    Failed,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotEnrolled => "NotEnrolled",
            Self::Waiting => "Waiting",
            Self::Enrolled => "Enrolled",
            Self::Leaving => "Leaving",
            Self::Failed => "Failed",
        }
    }
}

impl From<Phase> for EnrolmentPhase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::NotEnrolled => Self::NotEnrolled,
            Phase::Waiting => Self::Waiting,
            Phase::Enrolled => Self::Enrolled,
            Phase::Leaving => Self::Leaving,
            Phase::Failed => Self::Failed,
        }
    }
}

/// One pod's enrolment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodReport {
    pub phase: Phase,
    /// Why, when waiting or failed.
    pub message: String,
    /// Connections opened before enrolment and still open.
    pub uncaptured_connections: u32,
    /// Of the certificate in force.
    pub identity: Option<Identity>,
    pub certificate_not_after: Option<SystemTime>,
    /// In a pod of a Gateway, what became of the Gateway's listeners: by the name of the resource, why it is not open.
    pub listeners: BTreeMap<Arc<str>, Option<String>>,
}

impl PodReport {
    /// As the controller reads it.
    pub fn to_wire(&self, uid: &WorkloadUid) -> WorkloadEnrolment {
        let not_after = self
            .certificate_not_after
            .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
            .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        WorkloadEnrolment {
            uid: uid.to_string(),
            phase: EnrolmentPhase::from(self.phase).into(),
            message: self.message.clone(),
            uncaptured_connections: self.uncaptured_connections,
            identity: self.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
            certificate_not_after: not_after,
        }
    }
}

/// Every pod of this node that has a namespace and is known to the controller. Published whole on each change, in a
/// `tokio::sync::watch`; who sends it on finds the difference.
pub type PodReports = BTreeMap<WorkloadUid, PodReport>;
