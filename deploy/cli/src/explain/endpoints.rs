//! The endpoints of a backend: their state, which of them may be chosen, and how each is reached.

use culvert_node_proxy::balance::{Family, Place, usable_endpoints};
use culvert_node_proxy::outbound::why_plaintext;
use culvert_node_proxy::state::Snapshot;
use culvert_node_proxy::state::model::{Membership, Service, TunnelProtocol, Workload};
use std::net::{IpAddr, SocketAddr};

use super::data::{Endpoint, EndpointState, Transport};

/// Whose proxy chooses.
#[derive(Clone, Copy, Debug)]
pub struct Chooser<'a> {
    pub snapshot: &'a Snapshot,
    /// The client, or the pod of a Gateway.
    pub source: &'a Workload,
    pub family: Family,
}

/// Whether an endpoint may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    First,
    SpillOver,
    Never,
}

/// Every endpoint of a Service's port, those that may be chosen first.
pub fn of_service(chooser: Chooser<'_>, service: &Service, port: u16) -> Vec<Endpoint> {
    let Some(set) = chooser.snapshot.endpoints(&service.key) else { return Vec::new() };
    let place = Place { node: &chooser.source.node, zone: &chooser.source.zone };
    let usable = usable_endpoints(set, service, port, chooser.family, place);
    let nearest = usable.first().map(|endpoint| endpoint.nearness);
    let mut endpoints: Vec<Endpoint> = set
        .endpoints
        .iter()
        .filter_map(|endpoint| {
            let workload = &endpoint.workload;
            let membership = workload.memberships.get(endpoint.membership)?;
            let chosen = usable.iter().find(|one| one.workload.uid == workload.uid);
            let (address, target) = match chosen {
                Some(one) => (one.address, one.target_port),
                None => {
                    let (_, target) = membership.ports.iter().find(|(known, _)| *known == port)?;
                    (address_of(workload, chooser.family)?, *target)
                }
            };
            let choice = match chosen {
                None => Choice::Never,
                Some(one) if Some(one.nearness) == nearest => Choice::First,
                Some(_) => Choice::SpillOver,
            };
            let address = SocketAddr::new(address, target);
            Some(self::endpoint(chooser, workload, address, state(membership), choice))
        })
        .collect();
    let order = |one: &Endpoint| (!one.used, !one.spill_over);
    endpoints.sort_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.workload.cmp(&b.workload)));
    endpoints
}

/// One pod that is called at its own address.
pub fn of_pod(chooser: Chooser<'_>, workload: &Workload, address: SocketAddr) -> Endpoint {
    endpoint(chooser, workload, address, EndpointState::Ready, Choice::First)
}

fn endpoint(
    chooser: Chooser<'_>,
    workload: &Workload,
    address: SocketAddr,
    state: EndpointState,
    choice: Choice,
) -> Endpoint {
    let name = match workload.identity {
        Some(_) => format!("{}/{}", workload.namespace, workload.name),
        None => workload.name.to_string(),
    };
    let transport = transport(chooser, workload, address);
    Endpoint {
        workload: name,
        node: workload.node.to_string(),
        address,
        state,
        used: choice == Choice::First,
        spill_over: choice == Choice::SpillOver,
        ejected: None,
        transport,
    }
}

fn transport(chooser: Chooser<'_>, workload: &Workload, address: SocketAddr) -> Transport {
    match (workload.tunnel, &workload.identity) {
        (TunnelProtocol::Hbone, Some(identity)) => {
            let port = chooser.snapshot.mesh().interception.hbone_port;
            Transport::Hbone { to: SocketAddr::new(address.ip(), port), identity: identity.to_string() }
        }
        (TunnelProtocol::Undecided, _) => Transport::Undecided,
        (TunnelProtocol::Plaintext | TunnelProtocol::Hbone, _) => {
            Transport::Plaintext { why: why_plaintext(chooser.source, workload).as_str().to_owned() }
        }
    }
}

fn state(membership: &Membership) -> EndpointState {
    match (membership.ready && !membership.terminating, membership.serving && membership.terminating) {
        (true, _) => EndpointState::Ready,
        (false, true) => EndpointState::Terminating,
        (false, false) if membership.terminating => EndpointState::Gone,
        (false, false) => EndpointState::NotReady,
    }
}

fn address_of(workload: &Workload, family: Family) -> Option<IpAddr> {
    let of_family = workload.addresses.iter().find(|address| Family::of(**address) == family);
    of_family.or(workload.addresses.first()).copied()
}
