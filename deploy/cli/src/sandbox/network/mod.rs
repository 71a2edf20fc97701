//! The cluster's network: a bridge as the link between the nodes, nodes that route to each other's pods, and pods each
//! on a cable of its own, as the `ptp` plugin of CNI lays it.
//!
//! ```text
//!   fabric (bridge "link", 10.89.0.0/24, fd00:10:89::/64)
//!     |-- node1 eth0 .11 -- pod2 (gateway 10.244.1.1) -- pod eth0 10.244.1.2/32
//!     |-- node2 eth0 .12 -- ...
//!     |-- control-plane eth0 .2 (controller, CA, DNS; the nodes' default route)
//!     `-- outside eth0 .3 (reaches 10.90.0.0/24, addresses of load balancers, and nothing else)
//! ```

mod links;
mod pool;
mod sysctl;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use self::links::{Links, Via};
use self::pool::Pool;
use super::cluster::{
    CONTROL_PLANE, Cluster, DualAddress, DualRange, FABRIC, NodeInfo, OUTSIDE, load_balancer_range,
    pod_namespace,
};
use super::kube_proxy::nft;
use super::namespaces::Netns;

const BRIDGE: &str = "link";
/// Interface of nodes, and of who else is on the link, towards it.
pub(crate) const UPLINK: &str = "eth0";

/// What failed while laying the network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("the network namespace {name}: {cause}")]
    Namespace { name: String, cause: io::Error },
    #[error("cannot {what}: {why}")]
    Netlink { what: String, why: String },
    #[error("cannot write the kernel setting {name}: {cause}")]
    Sysctl { name: String, cause: io::Error },
    #[error("{node} has no free pod address: at most 253 pods run on a node")]
    Full { node: String },
    #[error("there is no node {0}")]
    NoNode(String),
}

/// Whether a node's link carries packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    Up,
    Down,
}

/// The network of one sandbox.
pub struct Network {
    fabric: Fabric,
    control_plane: Netns,
    outside: Outside,
    nodes: BTreeMap<String, Node>,
}

/// Where clients outside the cluster are.
struct Outside {
    netns: Netns,
    links: Links,
    uplink: u32,
}

struct Fabric {
    netns: Netns,
    links: Links,
    bridge: u32,
}

struct Node {
    info: NodeInfo,
    netns: Netns,
    links: Links,
    /// Index of the bridge's end of the node's cable.
    port: u32,
    pool: Mutex<Pool>,
}

/// A pod's place in the network, until [`Network::remove_pod`].
#[derive(Clone, Debug)]
pub struct PodNetwork {
    pub netns: Netns,
    pub node: String,
    pub addresses: DualAddress,
    place: u8,
    /// Index of the node's end of the pod's cable.
    cable: u32,
}

impl Network {
    /// Lays the whole network but the pods, in the caller's network namespace as fabric.
    ///
    /// # Errors
    /// Says which step the kernel refused.
    pub async fn build(cluster: &Cluster) -> Result<Self, NetworkError> {
        let fabric_netns = Netns::name_current(FABRIC).map_err(|cause| namespace(FABRIC, cause))?;
        sysctl::write(&fabric_netns, sysctl::POD)?;
        let fabric_links = open(&fabric_netns, FABRIC)?;
        fabric_links.loopback_up().await?;
        let bridge = fabric_links.add_bridge(BRIDGE).await?;
        let fabric = Fabric { netns: fabric_netns, links: fabric_links, bridge };
        let (control_plane, links, _) =
            fabric.join(CONTROL_PLANE, cluster.control_plane, &cluster.link).await?;
        let uplink = links.index(UPLINK).await?;
        for node in &cluster.nodes {
            links.add_routes(whole(&node.pod_cidr), Via::Gateway(node.address, uplink)).await?;
        }
        let outside = Outside::build(cluster, &fabric).await?;
        let mut nodes = BTreeMap::new();
        for info in &cluster.nodes {
            nodes.insert(info.name.clone(), Node::build(info, cluster, &fabric).await?);
        }
        Ok(Self { fabric, control_plane, outside, nodes })
    }

    /// The namespace of a node, of [`FABRIC`], [`CONTROL_PLANE`] or [`OUTSIDE`].
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<&Netns> {
        match name {
            FABRIC => Some(&self.fabric.netns),
            CONTROL_PLANE => Some(&self.control_plane),
            OUTSIDE => Some(&self.outside.netns),
            node => self.nodes.get(node).map(|node| &node.netns),
        }
    }

    /// Makes a pod's namespace on a node and lays its cable. The lowest free address is taken.
    ///
    /// # Errors
    /// Says which step the kernel refused; nothing of the pod is left then.
    pub async fn add_pod(&self, node: &str, pod_uid: &str) -> Result<PodNetwork, NetworkError> {
        let node = self.nodes.get(node).ok_or_else(|| NetworkError::NoNode(node.to_owned()))?;
        let place = node.pool().take().ok_or_else(|| NetworkError::Full { node: node.info.name.clone() })?;
        let laid = node.lay_pod(place, pod_uid).await;
        if laid.is_err() {
            if let Ok(netns) = Netns::named(&pod_namespace(pod_uid)) {
                let _ = netns.remove();
            }
            node.pool().give_back(place);
        }
        laid
    }

    /// Takes a pod's namespace and cable away and frees its address.
    ///
    /// # Errors
    /// Says which step the kernel refused; the address stays taken then.
    pub async fn remove_pod(&self, pod: &PodNetwork) -> Result<(), NetworkError> {
        let node = self.nodes.get(&pod.node).ok_or_else(|| NetworkError::NoNode(pod.node.clone()))?;
        // The far end of the cable goes with it; one that is gone already is what is wanted.
        let _ = node.links.delete(pod.cable).await;
        pod.netns.remove().map_err(|cause| namespace("of the pod", cause))?;
        node.pool().give_back(pod.place);
        Ok(())
    }

    /// Leads connections from outside to an address by way of these nodes, each with its weight.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn reach_by(&self, address: IpAddr, ways: &BTreeMap<String, u8>) -> Result<(), NetworkError> {
        let node = |(name, weight): (&String, &u8)| {
            let node = self.nodes.get(name).ok_or_else(|| NetworkError::NoNode(name.clone()))?;
            Ok((node.info.address, *weight))
        };
        let hops: Vec<(DualAddress, u8)> = ways.iter().map(node).collect::<Result<_, NetworkError>>()?;
        self.outside.links.replace_route(address, &hops, self.outside.uplink).await
    }

    /// Takes the way from outside to an address away.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn leave_unreachable(&self, address: IpAddr) -> Result<(), NetworkError> {
        self.outside.links.delete_route(address).await
    }

    /// Cuts a node off from everybody else, or restores it. Its interface keeps its addresses and carrier; packets
    /// are lost, as behind a broken switch.
    ///
    /// # Errors
    /// [`NetworkError::NoNode`], or what the kernel refused.
    pub async fn set_link(&self, node: &str, state: LinkState) -> Result<(), NetworkError> {
        let node = self.nodes.get(node).ok_or_else(|| NetworkError::NoNode(node.to_owned()))?;
        let bridge = match state {
            LinkState::Up => Some(self.fabric.bridge),
            LinkState::Down => None,
        };
        self.fabric.links.set_bridge(node.port, bridge).await
    }
}

impl Fabric {
    /// A namespace on the link: returns it, its links and the index of the bridge's end of the cable.
    async fn join(
        &self,
        name: &str,
        address: DualAddress,
        link: &DualRange,
    ) -> Result<(Netns, Links, u32), NetworkError> {
        let netns = Netns::create(name).map_err(|cause| namespace(name, cause))?;
        sysctl::write(&netns, sysctl::NODE)?;
        let links = open(&netns, name)?;
        links.loopback_up().await?;
        let port = self.links.add_cable(name, UPLINK, &netns).await?;
        self.links.set_bridge(port, Some(self.bridge)).await?;
        let uplink = links.index(UPLINK).await?;
        links.up(uplink).await?;
        links.add_addresses(uplink, address, (link.v4.prefix_len(), link.v6.prefix_len())).await?;
        Ok((netns, links, port))
    }
}

impl Outside {
    async fn build(cluster: &Cluster, fabric: &Fabric) -> Result<Self, NetworkError> {
        let (netns, links, _) = fabric.join(OUTSIDE, cluster.outside, &cluster.link).await?;
        sysctl::write(&netns, sysctl::OUTSIDE)?;
        let uplink = links.index(UPLINK).await?;
        let fail = |cause| NetworkError::Sysctl { name: "of the rules of `outside`".to_owned(), cause };
        let rules = outside_rules();
        netns.run(|| nft(&rules)).and_then(|loaded| loaded).map_err(fail)?;
        Ok(Self { netns, links, uplink })
    }
}

/// Connections go to addresses of load balancers and nowhere else; none come in.
fn outside_rules() -> String {
    let DualRange { v4, v6 } = load_balancer_range();
    format!(
        "table inet outside {{\n\
         \tchain output {{\n\t\ttype filter hook output priority 0; policy drop;\n\t\toifname \"lo\" accept\n\
         \t\tip daddr {v4} accept\n\t\tip6 daddr {v6} accept\n\t\ticmpv6 type {{ {NEIGHBOURS} }} accept\n\t}}\n\
         \tchain input {{\n\t\ttype filter hook input priority 0; policy drop;\n\t\tiifname \"lo\" accept\n\
         \t\tct state established,related accept\n\t\ticmpv6 type {{ {NEIGHBOURS} }} accept\n\t}}\n}}\n"
    )
}

/// How addresses of IPv6 are found on a link.
const NEIGHBOURS: &str = "nd-neighbor-solicit, nd-neighbor-advert";

impl Node {
    async fn build(info: &NodeInfo, cluster: &Cluster, fabric: &Fabric) -> Result<Self, NetworkError> {
        let (netns, links, port) = fabric.join(&info.name, info.address, &cluster.link).await?;
        let uplink = links.index(UPLINK).await?;
        for other in cluster.nodes.iter().filter(|other| other.name != info.name) {
            links.add_routes(whole(&other.pod_cidr), Via::Gateway(other.address, uplink)).await?;
        }
        // So that an address from outside of the cluster can be put there.
        links.add_routes(EVERYWHERE, Via::Gateway(cluster.control_plane, uplink)).await?;
        Ok(Self { info: info.clone(), netns, links, port, pool: Mutex::default() })
    }

    async fn lay_pod(&self, place: u8, pod_uid: &str) -> Result<PodNetwork, NetworkError> {
        let name = pod_namespace(pod_uid);
        let netns = Netns::create(&name).map_err(|cause| namespace(&name, cause))?;
        sysctl::write(&netns, sysctl::POD)?;
        let addresses = self.info.pod_cidr.nth(u32::from(place));
        let cable = self.links.add_cable(&format!("pod{place}"), UPLINK, &netns).await?;
        self.links.add_addresses(cable, self.info.gateway, (32, 128)).await?;
        self.links.add_routes(single(addresses), Via::Link(cable)).await?;
        let inside = open(&netns, &name)?;
        inside.loopback_up().await?;
        let uplink = inside.index(UPLINK).await?;
        inside.up(uplink).await?;
        inside.add_addresses(uplink, addresses, (32, 128)).await?;
        inside.add_routes(single(self.info.gateway), Via::Link(uplink)).await?;
        inside.add_routes(EVERYWHERE, Via::Gateway(self.info.gateway, uplink)).await?;
        Ok(PodNetwork { netns, node: self.info.name.clone(), addresses, place, cable })
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const EVERYWHERE: [(IpAddr, u8); 2] =
    [(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0)];

fn whole(range: &DualRange) -> [(IpAddr, u8); 2] {
    [
        (IpAddr::V4(range.v4.network()), range.v4.prefix_len()),
        (IpAddr::V6(range.v6.network()), range.v6.prefix_len()),
    ]
}

fn single(address: DualAddress) -> [(IpAddr, u8); 2] {
    [(IpAddr::V4(address.v4), 32), (IpAddr::V6(address.v6), 128)]
}

fn open(netns: &Netns, name: &str) -> Result<Links, NetworkError> {
    Links::open(netns).map_err(|cause| namespace(name, cause))
}

fn namespace(name: &str, cause: io::Error) -> NetworkError {
    NetworkError::Namespace { name: name.to_owned(), cause }
}
