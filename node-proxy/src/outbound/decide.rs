//! What happens to a captured outbound connection, by its destination and the policy. Pure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::reason::Reason;
use crate::state::Snapshot;
use crate::state::model::{Interception, OutboundPolicy, Service, Workload};

/// What the snapshot knows of the destination address.
#[derive(Clone, Debug)]
pub enum Known {
    Service(Arc<Service>),
    Workload(Arc<Workload>),
    /// Inside the cluster's ranges, but nobody's: perhaps news that is late.
    ClusterRange,
    Outside,
}

impl Known {
    pub fn of(snapshot: &Snapshot, address: IpAddr) -> Self {
        if let Some(service) = snapshot.service_by_vip(address) {
            Self::Service(service.clone())
        } else if let Some(workload) = snapshot.workload_by_address(address) {
            Self::Workload(workload.clone())
        } else if snapshot.in_cluster_ranges(address) {
            Self::ClusterRange
        } else {
            Self::Outside
        }
    }
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// To an endpoint of the Service's port.
    Balance(Arc<Service>),
    /// To this workload, at the address and port that were dialled.
    Forward(Arc<Workload>),
    /// To the address as it is.
    PassThrough,
    /// Wait for the address to become known, then decide again.
    Hold,
    Refuse(Reason),
}

/// The facts of one connection that do not come from the snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub destination: SocketAddr,
    pub own_addresses: &'a [IpAddr],
    pub interception: &'a Interception,
    pub policy: OutboundPolicy,
}

/// Decides. An address that is refused for nothing but being unknown is held first.
pub fn decide(known: Known, facts: Facts<'_>) -> Action {
    if is_proxy_port(facts) {
        return Action::Refuse(Reason::ProxyPort);
    }
    match known {
        Known::Service(service) => {
            if service.ports.iter().any(|port| port.port == facts.destination.port()) {
                Action::Balance(service)
            } else {
                Action::Refuse(Reason::NoServicePort)
            }
        }
        Known::Workload(workload) => Action::Forward(workload),
        Known::ClusterRange => Action::Hold,
        Known::Outside => match facts.policy {
            OutboundPolicy::Allow => Action::PassThrough,
            OutboundPolicy::RegistryOnly => Action::Refuse(Reason::OutboundPolicy),
        },
    }
}

/// A connection to a port of this very proxy would be captured again, or reach the proxy as if from outside.
fn is_proxy_port(facts: Facts<'_>) -> bool {
    let (address, i) = (facts.destination.ip(), facts.interception);
    let is_here = address.is_loopback() || address.is_unspecified() || facts.own_addresses.contains(&address);
    is_here && [i.outbound_port, i.inbound_port, i.hbone_port].contains(&facts.destination.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::testing::{service, workload};

    fn word(action: &Action) -> String {
        match action {
            Action::Balance(service) => format!("balance {}", service.key),
            Action::Forward(workload) => format!("forward {}", workload.name),
            Action::PassThrough => "pass".to_owned(),
            Action::Hold => "hold".to_owned(),
            Action::Refuse(reason) => reason.to_string(),
        }
    }

    #[test]
    fn destination_and_policy_decide() {
        let db = || Known::Service(Arc::new(service("db", &[(80, "http")])));
        let web = || Known::Workload(Arc::new(workload("web", "10.1.0.9")));
        let own = ["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let allow = OutboundPolicy::Allow;
        let registry = OutboundPolicy::RegistryOnly;
        let table: [(Known, &str, OutboundPolicy, &str); 20] = [
            (db(), "10.96.0.1:80", allow, "balance ns/db"),
            (db(), "10.96.0.1:80", registry, "balance ns/db"),
            (db(), "10.96.0.1:81", allow, "NoServicePort"),
            (db(), "10.96.0.1:15008", allow, "NoServicePort"),
            (web(), "10.1.0.9:8080", allow, "forward web"),
            (web(), "10.1.0.9:8080", registry, "forward web"),
            (web(), "10.1.0.9:15008", allow, "forward web"),
            (web(), "10.1.0.5:8080", allow, "forward web"),
            (web(), "10.1.0.5:15008", allow, "ProxyPort"),
            (web(), "[fd00::5]:15006", allow, "ProxyPort"),
            (Known::ClusterRange, "10.1.0.77:80", allow, "hold"),
            (Known::ClusterRange, "10.1.0.77:80", registry, "hold"),
            (Known::ClusterRange, "10.1.0.5:15001", allow, "ProxyPort"),
            (Known::Outside, "1.2.3.4:443", allow, "pass"),
            (Known::Outside, "1.2.3.4:443", registry, "OutboundPolicy"),
            (Known::Outside, "1.2.3.4:15001", allow, "pass"),
            (Known::Outside, "127.0.0.1:15001", allow, "ProxyPort"),
            (Known::Outside, "127.0.0.1:15006", registry, "ProxyPort"),
            (Known::Outside, "[::1]:15008", allow, "ProxyPort"),
            (Known::Outside, "0.0.0.0:15001", allow, "ProxyPort"),
        ];
        let interception = crate::outbound::testing::interception();
        for (known, destination, policy, expected) in table {
            let facts = Facts {
                destination: destination.parse().unwrap(),
                own_addresses: &own,
                interception: &interception,
                policy,
            };
            let action = decide(known.clone(), facts);
            assert_eq!(word(&action), expected, "{known:?} {destination} {policy:?}");
        }
    }
}
