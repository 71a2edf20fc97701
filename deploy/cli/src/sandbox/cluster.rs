//! The shape of one sandbox's cluster: its nodes, address ranges and well-known addresses. Fixed for the life of the
//! sandbox; computed, never looked up.

use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// Most nodes of one sandbox: what fits the node link's /24 and keeps the third octet of a pod address readable.
pub const MAX_NODES: u8 = 100;

/// Addresses of both families, IPv4 first. Every node, pod range and well-known address has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DualAddress {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl DualAddress {
    /// Both, IPv4 first, the order of `status.podIPs`.
    #[must_use]
    pub fn both(&self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)]
    }
}

/// One range of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DualRange {
    pub v4: Ipv4Net,
    pub v6: Ipv6Net,
}

impl DualRange {
    /// Whether either range holds `address`.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains(&address),
            IpAddr::V6(address) => self.v6.contains(&address),
        }
    }

    /// The `n`th address of each range (0 is the network's own address).
    #[must_use]
    pub fn nth(&self, n: u32) -> DualAddress {
        DualAddress {
            v4: Ipv4Addr::from(u32::from(self.v4.network()).wrapping_add(n)),
            v6: Ipv6Addr::from(u128::from(self.v6.network()).wrapping_add(u128::from(n))),
        }
    }
}

/// One node: a network namespace with its own pod range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeInfo {
    /// `node1`, `node2`, ... also the host name.
    pub name: String,
    /// From 1.
    pub index: u8,
    /// On the link between the nodes (`InternalIP` of the Node object).
    pub address: DualAddress,
    /// The part of the pod range that belongs to this node (`spec.podCIDRs`).
    pub pod_cidr: DualRange,
    /// The pods' default gateway, on the node's end of every pod's link; the source address of the kubelet's probes.
    pub gateway: DualAddress,
}

/// The whole of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cluster {
    /// The sandbox's name (`--name`).
    pub name: String,
    pub nodes: Vec<NodeInfo>,
    /// Virtual addresses of Services.
    pub service_cidr: DualRange,
    /// All pods of all nodes.
    pub pod_cidr: DualRange,
    /// The link between the nodes.
    pub link: DualRange,
    /// Where controller, CA and DNS run, on the nodes' link.
    pub control_plane: DualAddress,
    /// Where [`OUTSIDE`] is on the nodes' link.
    pub outside: DualAddress,
    /// Virtual address of the cluster's DNS (`nameserver` of the pods).
    pub dns: DualAddress,
}

impl Cluster {
    /// A cluster with `nodes` nodes, at least one and at most [`MAX_NODES`].
    #[must_use]
    pub fn new(name: &str, nodes: u8) -> Self {
        let link = range([10, 89, 0, 0], 24, [0xfd00, 0x10, 0x89, 0, 0, 0, 0, 0], 64);
        let service_cidr = range([10, 96, 0, 0], 16, [0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0], 112);
        Self {
            name: name.to_owned(),
            nodes: (1..=nodes.clamp(1, MAX_NODES)).map(|index| node(index, &link)).collect(),
            service_cidr,
            pod_cidr: range([10, 244, 0, 0], 16, [0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0], 56),
            link,
            control_plane: link.nth(2),
            outside: link.nth(3),
            dns: service_cidr.nth(10),
        }
    }

    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

/// Name of the namespace that holds the bridge between the nodes.
pub const FABRIC: &str = "fabric";
/// Name of the namespace in which controller, CA and DNS run.
pub const CONTROL_PLANE: &str = "control-plane";

/// Name of the namespace that is neither node nor pod: where clients outside the cluster are.
pub const OUTSIDE: &str = "outside";

/// Where a namespace of that name (node, [`FABRIC`], [`CONTROL_PLANE`], [`OUTSIDE`], [`pod_namespace`]) is mounted, inside the
/// sandbox.
#[must_use]
pub fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Name of a pod's network namespace.
#[must_use]
pub fn pod_namespace(pod_uid: &str) -> String {
    format!("pod-{pod_uid}")
}

/// Addresses of Services of type LoadBalancer, reached from outside the nodes; the same in every sandbox.
#[must_use]
pub fn load_balancer_range() -> DualRange {
    range([10, 90, 0, 0], 24, [0xfd00, 0x10, 0x90, 0, 0, 0, 0, 0], 120)
}

fn node(index: u8, link: &DualRange) -> NodeInfo {
    let pod_cidr = range([10, 244, index, 0], 24, [0xfd00, 0x10, 0x244, u16::from(index), 0, 0, 0, 0], 64);
    NodeInfo {
        name: format!("node{index}"),
        index,
        address: link.nth(u32::from(index) + 10),
        pod_cidr,
        gateway: pod_cidr.nth(1),
    }
}

fn range(v4: [u8; 4], v4_len: u8, v6: [u16; 8], v6_len: u8) -> DualRange {
    DualRange {
        v4: Ipv4Net::new_assert(Ipv4Addr::from(v4), v4_len),
        v6: Ipv6Net::new_assert(Ipv6Addr::from(v6), v6_len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_from_the_index() {
        let cluster = Cluster::new("default", 2);
        let node2 = &cluster.nodes[1];
        assert_eq!(node2.name, "node2");
        assert_eq!(node2.address.v4.to_string(), "10.89.0.12");
        assert_eq!(node2.address.v6.to_string(), "fd00:10:89::c");
        assert_eq!(node2.pod_cidr.v4.to_string(), "10.244.2.0/24");
        assert_eq!(node2.pod_cidr.v6.to_string(), "fd00:10:244:2::/64");
        assert_eq!(node2.gateway.v4.to_string(), "10.244.2.1");
        assert_eq!(cluster.dns.v4.to_string(), "10.96.0.10");
        assert_eq!(cluster.dns.v6.to_string(), "fd00:10:96::a");
        assert!(cluster.pod_cidr.contains(node2.gateway.both()[1]));
    }
}
