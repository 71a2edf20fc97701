//! The immutable view of the mesh. Snapshots share structure: making the next one costs what changed, not a copy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rpds::HashTrieMapSync;
use serde::Serialize;
use tokio::sync::watch;

use super::gateways::GatewayListeners;
use super::model::{Listener, MeshSettings, Service, ServiceKey, Workload, WorkloadLabels, WorkloadUid};
use super::routes::{ParentRoutes, RouteGroup, ServiceRoutes};

/// Where a snapshot comes from, and so whether anything may be decided on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nothing is known yet: no listener may serve.
    Nothing,
    /// The last complete state of an earlier process, not confirmed by a controller since.
    Kept,
    /// A complete batch of a controller.
    Controller,
}

/// A resource that this proxy could not accept. Its last good version, if any, is still in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedResource {
    /// `workload`, `service`, `listener`, `route`, `namespace` or `mesh_settings`.
    pub kind: &'static str,
    pub name: Arc<str>,
    /// The refused version.
    pub version: Arc<str>,
    pub reason: String,
    /// False: the resource is absent from the snapshot.
    pub last_good_in_force: bool,
}

/// One way to a Service: a workload, by the membership that makes it an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub workload: Arc<Workload>,
    /// Index into `workload.memberships`.
    pub membership: usize,
}

/// Every endpoint of a Service, whether ready or not, in no particular order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSet {
    pub endpoints: Vec<Endpoint>,
}

/// How many workloads carry a set of labels in a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Population {
    pub everywhere: u32,
    pub own_node: u32,
}

pub(super) type Map<K, V> = HashTrieMapSync<K, V>;

/// The mesh at one moment. Cloning is cheap; nothing in it changes.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(super) origin: Origin,
    pub(super) version: Arc<str>,
    pub(super) node: Arc<str>,
    pub(super) mesh: Arc<MeshSettings>,
    pub(super) workloads: Map<WorkloadUid, Arc<Workload>>,
    pub(super) own: Map<Arc<str>, Arc<Workload>>,
    pub(super) addresses: Map<IpAddr, Arc<Workload>>,
    pub(super) services: Map<ServiceKey, Arc<Service>>,
    pub(super) vips: Map<IpAddr, Arc<Service>>,
    pub(super) endpoints: Map<ServiceKey, Arc<EndpointSet>>,
    pub(super) routes: Map<ServiceKey, Arc<ParentRoutes>>,
    pub(super) listeners: Map<Arc<str>, Arc<Listener>>,
    pub(super) listener_routes: Map<Arc<str>, RouteGroup>,
    pub(super) gateways: Map<Arc<str>, Arc<GatewayListeners>>,
    pub(super) populations: Map<(Arc<str>, Arc<WorkloadLabels>), Population>,
    pub(super) namespaces: Map<Arc<str>, bool>,
    pub(super) refused: Arc<[RefusedResource]>,
}

impl Snapshot {
    /// The snapshot before anything is known.
    pub fn empty() -> Self {
        Self {
            origin: Origin::Nothing,
            version: "".into(),
            node: "".into(),
            mesh: Arc::new(MeshSettings::unknown()),
            workloads: Map::new_sync(),
            own: Map::new_sync(),
            addresses: Map::new_sync(),
            services: Map::new_sync(),
            vips: Map::new_sync(),
            endpoints: Map::new_sync(),
            routes: Map::new_sync(),
            listeners: Map::new_sync(),
            listener_routes: Map::new_sync(),
            gateways: Map::new_sync(),
            populations: Map::new_sync(),
            namespaces: Map::new_sync(),
            refused: Arc::new([]),
        }
    }

    /// Whether this is a whole state, kept or fresh: false only before the first one.
    pub fn is_complete(&self) -> bool {
        self.origin != Origin::Nothing
    }

    /// Whether the state was kept by an earlier process and no controller has confirmed it yet.
    pub fn is_stale(&self) -> bool {
        self.origin == Origin::Kept
    }

    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The controller's hash over everything this node may see; empty before the first complete state.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The node that this proxy serves; empty before the first complete state.
    pub fn node(&self) -> &Arc<str> {
        &self.node
    }

    pub fn mesh(&self) -> &Arc<MeshSettings> {
        &self.mesh
    }

    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// A pod of this node by its `metadata.uid`.
    pub fn own_workload_by_pod_uid(&self, pod_uid: &str) -> Option<&Arc<Workload>> {
        self.own.get(pod_uid)
    }

    /// The workload that has the address. Host-network pods are not found by address: the address is their node's.
    pub fn workload_by_address(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.addresses.get(&address.to_canonical())
    }

    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// A Service by its two names. Nothing is allocated for the key.
    pub fn service_named(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        // Both are DNS names: at most 63 and 253 bytes.
        let mut key = [0; 320];
        let length = namespace.len() + 1 + name.len();
        let text = key.get_mut(..length)?;
        text[..namespace.len()].copy_from_slice(namespace.as_bytes());
        text[namespace.len()] = b'/';
        text[namespace.len() + 1..].copy_from_slice(name.as_bytes());
        self.services.get(std::str::from_utf8(text).ok()?)
    }

    pub fn service_by_vip(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.vips.get(&address.to_canonical())
    }

    /// The endpoints of a Service; `None` when it has none.
    pub fn endpoints(&self, key: &ServiceKey) -> Option<&Arc<EndpointSet>> {
        self.endpoints.get(key)
    }

    /// The routes of a Service's port; `None` when it has none.
    pub fn routes(&self, service: &ServiceKey, port: u16) -> Option<&Arc<ServiceRoutes>> {
        self.routes.get(service)?.port(port)
    }

    /// Every Service that has routes.
    pub fn routed_services(&self) -> impl Iterator<Item = (&ServiceKey, &Arc<ParentRoutes>)> {
        self.routes.iter()
    }

    /// A listener by the name of its resource.
    pub fn listener(&self, name: &str) -> Option<&Arc<Listener>> {
        self.listeners.get(name)
    }

    pub fn listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.values()
    }

    /// The routes of a listener; `None` when it has none.
    pub fn listener_routes(&self, name: &str) -> Option<&RouteGroup> {
        self.listener_routes.get(name)
    }

    /// The listeners of a Gateway (`namespace/name`); `None` when it has none.
    pub fn gateway(&self, name: &str) -> Option<&Arc<GatewayListeners>> {
        self.gateways.get(name)
    }

    /// The workloads of this node, enrolled or not.
    pub fn own_workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.own.values()
    }

    /// Every namespace, and whether it enrols pods that say nothing themselves. None from a controller that does not tell.
    pub fn namespaces(&self) -> impl Iterator<Item = (&Arc<str>, bool)> {
        self.namespaces.iter().map(|(name, enrols)| (name, *enrols))
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    pub fn workload_count(&self) -> usize {
        self.workloads.size()
    }

    pub fn service_count(&self) -> usize {
        self.services.size()
    }

    /// Whether the address is in a pod or Service range of the cluster: unknown ones there are held, not passed.
    pub fn in_cluster_ranges(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.mesh.pod_cidrs.iter().chain(&self.mesh.service_cidrs).any(|range| range.contains(&address))
    }

    /// Resources refused at present.
    pub fn refused(&self) -> &Arc<[RefusedResource]> {
        &self.refused
    }

    /// Whether any workload of the namespace carries these labels.
    pub fn has_workloads_labelled(&self, namespace: &Arc<str>, labels: &Arc<WorkloadLabels>) -> bool {
        self.population(namespace, labels).everywhere > 0
    }

    /// The same for the pods of this node.
    pub fn has_own_workloads_labelled(&self, namespace: &Arc<str>, labels: &Arc<WorkloadLabels>) -> bool {
        self.population(namespace, labels).own_node > 0
    }

    fn population(&self, namespace: &Arc<str>, labels: &Arc<WorkloadLabels>) -> Population {
        self.populations.get(&(namespace.clone(), labels.clone())).copied().unwrap_or_default()
    }
}

/// Whether two maps hold equal values under equal keys, whatever their inner shape.
#[cfg(test)]
pub(super) fn same<K: Eq + std::hash::Hash, V: PartialEq>(one: &Map<K, V>, other: &Map<K, V>) -> bool {
    one.size() == other.size() && one.iter().all(|(key, value)| other.get(key) == Some(value))
}

/// The snapshot in force, for every thread. Cheap to clone; reading takes no lock.
#[derive(Clone, Debug)]
pub struct Snapshots {
    current: Arc<ArcSwap<Snapshot>>,
    changed: watch::Sender<u64>,
}

impl Snapshots {
    pub fn new(first: Snapshot) -> Self {
        Self { current: Arc::new(ArcSwap::from_pointee(first)), changed: watch::Sender::new(0) }
    }

    /// One load decides one connection. Do not hold the guard across a wait: `load_full` is for that.
    pub fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.current.load()
    }

    pub fn load_full(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Counts publications; a receiver sees each change at least once after it happened.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Puts a snapshot in force.
    pub fn publish(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
        self.changed.send_modify(|count| *count += 1);
    }
}

impl MeshSettings {
    /// Stands in until the controller has spoken; nothing is served on it.
    fn unknown() -> Self {
        use culvert_api::names::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};

        use super::model::{AccessLog, AccessLogFilter, AccessLogFormat, Interception};
        let Ok(trust_domain) = "cluster.local".parse() else {
            unreachable!("the default trust domain is one")
        };
        Self {
            trust_domain,
            trust_domain_aliases: Vec::new(),
            cluster: "".into(),
            network: "".into(),
            pod_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            interception: Interception {
                mark_mask: 0,
                proxy_mark: 0,
                outbound_mark: 0,
                reply_mark: 0,
                inbound_mark: 0,
                route_table: 0,
                rule_priority: 0,
                outbound_port: OUTBOUND_PORT,
                inbound_port: INBOUND_PORT,
                hbone_port: HBONE_PORT,
            },
            access_log: AccessLog { filter: AccessLogFilter::Failures, format: AccessLogFormat::Json },
            session_keys: Arc::default(),
        }
    }
}

/// IPv4-mapped IPv6 addresses are the IPv4 addresses they carry, on the wire and in lookups.
pub(super) fn address_from_bytes(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(four).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|sixteen| IpAddr::from(Ipv6Addr::from(sixteen)).to_canonical())
}
