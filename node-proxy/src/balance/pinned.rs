//! The endpoint that a session is kept at, whatever the balance.

use std::sync::Arc;

use super::group::Health;
use super::{Balancer, Candidate, EndpointLoad, Wanted, usable};
use crate::state::EndpointSet;
use crate::state::model::{Membership, Workload};

impl Balancer {
    /// The workload as an endpoint of the Service, for as long as it serves and is not ejected: also while it terminates, so
    /// that sessions can come to their end, and wherever it is. `None`: the session needs another. Takes constant time.
    pub fn pinned(
        &self,
        workload: &Arc<Workload>,
        endpoints: Option<&Arc<EndpointSet>>,
        wanted: &Wanted<'_>,
    ) -> Option<Candidate> {
        let service = wanted.service;
        let of_service = |of: &&Membership| of.service == service.key;
        let membership = workload.memberships.iter().find(of_service)?;
        let (_, target_port) = *membership.ports.iter().find(|(port, _)| *port == wanted.port)?;
        let is_allowed = !service.local_only || *workload.node == *self.node;
        if !is_allowed || !usable::serves(membership, service) {
            return None;
        }
        let address = usable::address(workload, wanted.family)?;
        let load = self.pinned_load(workload, target_port, wanted);
        let health = self.pinned_health(workload, endpoints?, wanted);
        let candidate =
            Candidate { workload: workload.clone(), address, target_port, load, health, is_trial: false };
        let is_failing = candidate.load.failed_lately(self.endpoints.clock().now()) || candidate.is_ejected();
        (!is_failing).then_some(candidate)
    }

    /// Shared with all workers, and asked for once per endpoint and worker.
    fn pinned_load(&self, workload: &Workload, port: u16, wanted: &Wanted<'_>) -> Arc<EndpointLoad> {
        let mut known = self.pinned.borrow_mut();
        let key = (workload.uid.clone(), port);
        let shared = || self.endpoints.get(&workload.uid, port, wanted.carried);
        known.entry(key).or_insert_with(shared).clone()
    }

    /// None where endpoints are not ejected, and for one that was never to be chosen.
    fn pinned_health(
        &self,
        workload: &Workload,
        endpoints: &Arc<EndpointSet>,
        wanted: &Wanted<'_>,
    ) -> Option<Arc<Health>> {
        let mut all = self.usable.borrow_mut();
        self.current(&mut all, endpoints, wanted)?.group()?.health(&workload.uid)
    }
}
