//! Which endpoints of a Service a client of this node may use, and how near they are.

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

/// How near an endpoint is, for a Service that prefers near ones; for any other all are as near as can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    Node,
    Zone,
    Elsewhere,
}

impl Nearness {
    pub const ALL: [Self; 3] = [Self::Node, Self::Zone, Self::Elsewhere];
}

/// An endpoint that may be used.
#[derive(Clone, Copy, Debug)]
pub struct UsableEndpoint<'a> {
    pub workload: &'a Arc<Workload>,
    pub address: IpAddr,
    pub target_port: u16,
    pub nearness: Nearness,
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

/// What near endpoints are preferred by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Preference {
    node: bool,
    zone: bool,
}

impl Preference {
    /// What the Service asks for; where it asks for nothing, hints are followed if all endpoints have them, as by kube-proxy
    /// (`service.kubernetes.io/topology-mode`).
    fn of<'a>(service: &Service, memberships: impl Iterator<Item = &'a Membership> + Clone) -> Self {
        match service.traffic_distribution.as_deref() {
            Some("PreferSameNode") => Self { node: true, zone: true },
            Some("PreferClose" | "PreferSameZone") => Self { node: false, zone: true },
            _ => Self {
                node: memberships.clone().all(|membership| !membership.node_hints.is_empty()),
                zone: memberships.clone().all(|membership| !membership.zone_hints.is_empty()),
            },
        }
    }

    fn prefers_nothing(self) -> bool {
        !self.node && !self.zone
    }
}

/// By the endpoint's hints if it has any, else by where it is.
fn nearness(
    workload: &Workload,
    membership: &Membership,
    preference: Preference,
    place: Place<'_>,
) -> Nearness {
    let is_hinted = |hints: &[String], own: &str, here: &str| match hints {
        [] => own == here,
        hints => hints.iter().any(|hint| hint == here),
    };
    let on_node = || is_hinted(&membership.node_hints, &workload.node, place.node);
    let in_zone = || !place.zone.is_empty() && is_hinted(&membership.zone_hints, &workload.zone, place.zone);
    if preference.prefers_nothing() || (preference.node && on_node()) {
        Nearness::Node
    } else if preference.zone && in_zone() {
        Nearness::Zone
    } else {
        Nearness::Elsewhere
    }
}

/// The usable endpoints, the nearest first: ready ones, else those that still serve while they terminate; under
/// `internalTrafficPolicy: Local` those of this node only.
pub fn select<'a>(
    endpoints: &'a EndpointSet,
    service: &Service,
    port: u16,
    family: Family,
    place: Place<'_>,
) -> Vec<UsableEndpoint<'a>> {
    let graded: Vec<_> = endpoints
        .endpoints
        .iter()
        .filter(|endpoint| !service.local_only || *endpoint.workload.node == *place.node)
        .filter_map(|endpoint| {
            let workload = &endpoint.workload;
            let membership = workload.memberships.get(endpoint.membership)?;
            let (_, target) = membership.ports.iter().find(|(known, _)| *known == port)?;
            Some((grade(membership, service)?, workload, membership, address(workload, family)?, *target))
        })
        .collect();
    let best = graded.iter().map(|candidate| candidate.0).min();
    let best: Vec<_> = graded.into_iter().filter(|(grade, ..)| Some(*grade) == best).collect();
    let preference = Preference::of(service, best.iter().map(|(_, _, membership, ..)| *membership));
    let mut usable: Vec<_> = best
        .into_iter()
        .map(|(_, workload, membership, address, target_port)| UsableEndpoint {
            workload,
            address,
            target_port,
            nearness: nearness(workload, membership, preference, place),
        })
        .collect();
    usable.sort_by_key(|endpoint| endpoint.nearness);
    usable
}
