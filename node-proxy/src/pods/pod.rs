//! An enrolled pod of this node, as the data path sees it.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::intercept::Netns;
use crate::limits::WorkloadLimits;
use crate::state::model::{Interception, Workload, WorkloadUid};

/// Shared by the pod's listeners and connections. The workload (its settings, its probes, its enrolment) is replaced
/// whole when the controller sends a new version; namespace, addresses and marks never change.
pub struct Pod {
    pub uid: WorkloadUid,
    pub netns: Arc<Netns>,
    pub addresses: Vec<IpAddr>,
    /// Marks and ports in force in this pod: those of its enrolment, also when the mesh settings change later.
    pub interception: Interception,
    pub workload: ArcSwap<Workload>,
    pub limits: Arc<WorkloadLimits>,
}
