//! What the pass before made of the same objects: only the work is saved, never a result.

use std::sync::Arc;

use culvert_objects::mesh_config::LastGood;
use culvert_objects::types::EndpointSlice;
use culvert_objects::{Kind, Objects};

use super::{Facts, PodReading, Workloads};
use crate::translate::InForce;
use crate::translate::readings::Readings;

/// Kinds that say nothing of workloads: an edit of one leaves all workloads as they are.
const ELSEWHERE: [Kind; 8] = [
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::UdpRoute,
    Kind::ReferenceGrant,
    Kind::BackendTlsPolicy,
    Kind::XBackendTrafficPolicy,
];

/// From one pass to the next, of one environment. An empty one changes nothing but the time that the pass takes.
#[derive(Debug, Default)]
pub struct Memory {
    before: Option<Before>,
    pub(super) pods: Readings<PodReading>,
    pub(super) slices: Readings<EndpointSlice>,
}

/// The pass before: what went in, and what came out.
#[derive(Debug)]
struct Before {
    objects: Objects,
    in_force: InForce,
    last: LastGood,
    workloads: Arc<Workloads>,
}

impl Memory {
    /// The workloads of the pass before, if they are those of this one.
    pub(super) fn same(
        &self,
        objects: &Objects,
        in_force: &InForce,
        last: &LastGood,
    ) -> Option<Arc<Workloads>> {
        let before = self.before.as_ref()?;
        let mut concerned = Kind::ALL.iter().filter(|kind| !ELSEWHERE.contains(kind));
        let is_same = concerned.all(|kind| objects.shares(*kind, &before.objects))
            && before.in_force == *in_force
            && before.last == *last;
        is_same.then(|| before.workloads.clone())
    }

    /// A workload of the pass before that is the same now stays the very same.
    pub(super) fn share(&self, facts: Facts) -> Arc<Facts> {
        let before = self.before.as_ref().and_then(|before| before.workloads.facts.get(&facts.workload.uid));
        before.filter(|before| ***before == facts).cloned().unwrap_or_else(|| Arc::new(facts))
    }

    pub(super) fn keep(
        &mut self,
        objects: &Objects,
        in_force: &InForce,
        last: &LastGood,
        workloads: Workloads,
    ) -> Arc<Workloads> {
        self.pods.end_pass();
        self.slices.end_pass();
        let workloads = Arc::new(workloads);
        self.before = Some(Before {
            objects: objects.clone(),
            in_force: in_force.clone(),
            last: last.clone(),
            workloads: workloads.clone(),
        });
        workloads
    }
}
