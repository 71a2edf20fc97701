//! Which endpoints of a Service a client of this node may use.

use std::net::IpAddr;
use std::sync::Arc;

use crate::state::EndpointSet;
use crate::state::model::{Membership, Service, Workload};

/// The address family that the client dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Where the client is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub node: &'a str,
    pub zone: &'a str,
}

/// How good an endpoint is; only the best grade that exists is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    Ready,
    /// Terminating but still serving: better than nothing.
    LastResort,
}

fn grade(membership: &Membership, service: &Service) -> Option<Grade> {
    if service.publish_not_ready_addresses || (membership.ready && !membership.terminating) {
        Some(Grade::Ready)
    } else if membership.serving && membership.terminating {
        Some(Grade::LastResort)
    } else {
        None
    }
}

/// Whether an endpoint may be used at all.
pub(super) fn serves(membership: &Membership, service: &Service) -> bool {
    grade(membership, service).is_some()
}

/// The endpoint's address: of the family that was dialled if it has one, else its first.
pub(super) fn address(workload: &Workload, family: Family) -> Option<IpAddr> {
    let of_family = workload.addresses.iter().find(|address| Family::of(**address) == family);
    of_family.or(workload.addresses.first()).copied()
}

/// Whether an endpoint is near, for a Service that prefers near ones.
fn is_near(workload: &Workload, membership: &Membership, service: &Service, place: Place<'_>) -> bool {
    match service.traffic_distribution.as_deref() {
        Some("PreferSameNode") => *workload.node == *place.node,
        Some("PreferClose" | "PreferSameZone") => {
            !place.zone.is_empty() && membership.zone_hints.iter().any(|hint| hint == place.zone)
        }
        _ => true,
    }
}

/// The usable endpoints: workload, address, target port. Ready ones, else those that still serve while they terminate;
/// under `internalTrafficPolicy: Local` those of this node only; near ones if there are any and the Service prefers
/// them.
pub fn select<'a>(
    endpoints: &'a EndpointSet,
    service: &Service,
    port: u16,
    family: Family,
    place: Place<'_>,
) -> impl Iterator<Item = (&'a Arc<Workload>, IpAddr, u16)> {
    let graded: Vec<_> = endpoints
        .endpoints
        .iter()
        .filter(|endpoint| !service.local_only || *endpoint.workload.node == *place.node)
        .filter_map(|endpoint| {
            let workload = &endpoint.workload;
            let membership = workload.memberships.get(endpoint.membership)?;
            let (_, target) = membership.ports.iter().find(|(known, _)| *known == port)?;
            let near = is_near(workload, membership, service, place);
            Some((grade(membership, service)?, near, workload, address(workload, family)?, *target))
        })
        .collect();
    let best = graded.iter().map(|candidate| candidate.0).min();
    let any_near = graded.iter().any(|(grade, near, ..)| Some(*grade) == best && *near);
    graded
        .into_iter()
        .filter(move |(grade, near, ..)| Some(*grade) == best && (*near || !any_near))
        .map(|(_, _, workload, address, target)| (workload, address, target))
}
