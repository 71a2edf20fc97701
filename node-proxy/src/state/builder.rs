//! Owns the mutable side of the mesh's state and freezes it into snapshots.
//!
//! Endpoint sets are rebuilt once per freeze and only for Services that were touched; everything else is a
//! persistent map, so that one upsert costs O(log n).

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::gateways::GatewayListeners;
use super::model::{Listener, MeshSettings, Service, ServiceKey, Workload, WorkloadLabels, WorkloadUid};
use super::routes::{Attached, Routes, Unusable};
use super::snapshot::{Endpoint, EndpointSet, Origin, RefusedResource, Snapshot};

/// Collects changes; [`Builder::freeze`] makes the snapshot that holds them.
#[derive(Debug)]
pub struct Builder {
    next: Snapshot,
    workload_claims: Claims<WorkloadUid>,
    vip_claims: Claims<ServiceKey>,
    members: HashMap<ServiceKey, Members>,
    touched: HashSet<ServiceKey>,
    /// Gateways whose listeners changed.
    touched_gateways: HashSet<Arc<str>>,
    routes: Routes,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    pub fn new() -> Self {
        Self {
            next: Snapshot::empty(),
            workload_claims: Claims::default(),
            vip_claims: Claims::default(),
            members: HashMap::new(),
            touched: HashSet::new(),
            touched_gateways: HashSet::new(),
            routes: Routes::default(),
        }
    }

    pub fn set_mesh(&mut self, mesh: MeshSettings) {
        self.next.mesh = Arc::new(mesh);
    }

    /// Adds a workload or replaces the one with the same uid. A workload that claims an address another one has gets
    /// it (addresses are reused before the old pod's removal arrives); one that had it already does not take it back.
    /// Returns whether the workload is new or claims an address that it did not claim before.
    pub fn upsert_workload(&mut self, workload: Workload) -> bool {
        let workload = Arc::new(workload);
        let previous = self.next.workloads.get(&workload.uid).cloned();
        if let Some(previous) = &previous {
            self.leave_services(previous, &workload);
            self.forget_own(previous);
            self.count(previous, |count| count.wrapping_sub(1));
        }
        let old = previous.as_deref().map(indexed_addresses).unwrap_or_default();
        let new = indexed_addresses(&workload);
        for address in old.iter().filter(|address| !new.contains(address)) {
            self.release_address(*address, &workload.uid);
        }
        let claims = previous.is_none() || new.iter().any(|address| !old.contains(address));
        for address in new {
            let holder = self.next.addresses.get(address).map(|holder| holder.uid.clone());
            let known = old.contains(address);
            if self.workload_claims.claim(*address, &workload.uid, holder.as_ref(), known) {
                self.next.addresses.insert_mut(*address, workload.clone());
            }
        }
        self.join_services(&workload);
        if workload.own.is_some() {
            self.next.own.insert_mut(workload.uid.pod_uid().into(), workload.clone());
        }
        self.count(&workload, |count| count.wrapping_add(1));
        self.next.workloads.insert_mut(workload.uid.clone(), workload);
        claims
    }

    pub fn remove_workload(&mut self, uid: &WorkloadUid) {
        let Some(workload) = self.next.workloads.get(uid).cloned() else { return };
        self.next.workloads.remove_mut(uid);
        for address in indexed_addresses(&workload) {
            self.release_address(*address, uid);
        }
        for membership in &workload.memberships {
            self.leave_service(&membership.service, uid);
        }
        self.forget_own(&workload);
        self.count(&workload, |count| count.wrapping_sub(1));
    }

    /// Adds a Service or replaces the one with the same key; VIPs go as addresses of workloads do.
    /// Returns whether the Service is new or claims a VIP that it did not claim before.
    pub fn upsert_service(&mut self, service: Service) -> bool {
        let service = Arc::new(service);
        let previous = self.next.services.get(&service.key).cloned();
        let old: &[IpAddr] = previous.as_deref().map(|previous| &previous.vips[..]).unwrap_or_default();
        for vip in old.iter().filter(|vip| !service.vips.contains(vip)) {
            self.release_vip(*vip, &service.key);
        }
        let claims = previous.is_none() || service.vips.iter().any(|vip| !old.contains(vip));
        for vip in &service.vips {
            let holder = self.next.vips.get(vip).map(|holder| holder.key.clone());
            if self.vip_claims.claim(*vip, &service.key, holder.as_ref(), old.contains(vip)) {
                self.next.vips.insert_mut(*vip, service.clone());
            }
        }
        self.next.services.insert_mut(service.key.clone(), service);
        claims
    }

    pub fn remove_service(&mut self, key: &ServiceKey) {
        let Some(service) = self.next.services.get(key).cloned() else { return };
        self.next.services.remove_mut(key);
        for vip in &service.vips {
            self.release_vip(*vip, key);
        }
    }

    /// Adds a route under its resource's name, or replaces it.
    pub fn upsert_route(&mut self, name: &Arc<str>, route: Attached) {
        self.routes.attach(name, route);
    }

    /// Remembers that a route cannot be used, unless a version of it works: requests to its parent are answered 500.
    pub fn refuse_route(&mut self, name: &Arc<str>, unusable: Unusable) {
        self.routes.refuse(name, unusable);
    }

    pub fn remove_route(&mut self, name: &str) {
        self.routes.remove(name);
    }

    pub fn upsert_namespace(&mut self, name: Arc<str>, enrols: bool) {
        self.next.namespaces.insert_mut(name, enrols);
    }

    pub fn remove_namespace(&mut self, name: &str) {
        self.next.namespaces.remove_mut(name);
    }

    /// Forgets routes that were refused.
    pub fn forget_refused_routes(&mut self) {
        self.routes.forget_unusable();
    }

    pub fn upsert_listener(&mut self, listener: Listener) {
        self.touched_gateways.insert(listener.gateway.clone());
        self.next.listeners.insert_mut(listener.name.clone(), Arc::new(listener));
    }

    pub fn remove_listener(&mut self, name: &str) {
        let known = self.next.listeners.get(name).map(|listener| listener.gateway.clone());
        self.touched_gateways.extend(known);
        self.next.listeners.remove_mut(name);
    }

    /// The node that this proxy serves, as the controller says.
    pub fn set_node(&mut self, node: &str) {
        self.next.node = node.into();
    }

    pub fn set_refused(&mut self, refused: Arc<[RefusedResource]>) {
        self.next.refused = refused;
    }

    /// The state as it is now, under a version. The builder goes on from there.
    pub fn freeze(&mut self, origin: Origin, version: &str) -> Snapshot {
        for key in self.touched.drain() {
            match self.members.get(&key) {
                Some(members) => {
                    let set = EndpointSet { endpoints: members.endpoints.clone() };
                    self.next.endpoints.insert_mut(key, Arc::new(set));
                }
                None => {
                    self.next.endpoints.remove_mut(&key);
                }
            }
        }
        self.routes.freeze(&mut self.next.routes, &mut self.next.listener_routes);
        self.freeze_gateways();
        self.next.origin = origin;
        self.next.version = version.into();
        self.next.clone()
    }

    fn freeze_gateways(&mut self) {
        if self.touched_gateways.is_empty() {
            return;
        }
        let touched = std::mem::take(&mut self.touched_gateways);
        let mut listeners: HashMap<Arc<str>, Vec<Arc<Listener>>> =
            touched.into_iter().map(|gateway| (gateway, Vec::new())).collect();
        for listener in self.next.listeners.values() {
            if let Some(all) = listeners.get_mut(&listener.gateway) {
                all.push(listener.clone());
            }
        }
        for (gateway, all) in listeners {
            if all.is_empty() {
                self.next.gateways.remove_mut(&gateway);
            } else {
                self.next.gateways.insert_mut(gateway, Arc::new(GatewayListeners::new(all)));
            }
        }
    }

    fn release_address(&mut self, address: IpAddr, uid: &WorkloadUid) {
        let holder = self.next.addresses.get(&address).map(|holder| holder.uid.clone());
        match self.workload_claims.release(address, uid, holder.as_ref()) {
            Released::ToNobody => {
                self.next.addresses.remove_mut(&address);
            }
            Released::To(heir) => match self.next.workloads.get(&heir).cloned() {
                Some(workload) => self.next.addresses.insert_mut(address, workload),
                None => unreachable!("only workloads of the snapshot hold claims"),
            },
            Released::WasNotInForce => {}
        }
    }

    fn release_vip(&mut self, vip: IpAddr, key: &ServiceKey) {
        let holder = self.next.vips.get(&vip).map(|holder| holder.key.clone());
        match self.vip_claims.release(vip, key, holder.as_ref()) {
            Released::ToNobody => {
                self.next.vips.remove_mut(&vip);
            }
            Released::To(heir) => match self.next.services.get(&heir).cloned() {
                Some(service) => self.next.vips.insert_mut(vip, service),
                None => unreachable!("only services of the snapshot hold claims"),
            },
            Released::WasNotInForce => {}
        }
    }

    /// A pod uid names one workload: a stale one must not take the entry of its successor along.
    fn forget_own(&mut self, workload: &Workload) {
        let pod_uid = workload.uid.pod_uid();
        if workload.own.is_some() && self.next.own.get(pod_uid).is_some_and(|own| own.uid == workload.uid) {
            self.next.own.remove_mut(pod_uid);
        }
    }

    fn leave_services(&mut self, previous: &Workload, workload: &Workload) {
        for membership in &previous.memberships {
            if !workload.memberships.iter().any(|kept| kept.service == membership.service) {
                self.leave_service(&membership.service, &previous.uid);
            }
        }
    }

    fn leave_service(&mut self, service: &ServiceKey, uid: &WorkloadUid) {
        if let Some(members) = self.members.get_mut(service) {
            members.remove(uid);
            if members.endpoints.is_empty() {
                self.members.remove(service);
            }
            self.touched.insert(service.clone());
        }
    }

    fn join_services(&mut self, workload: &Arc<Workload>) {
        for (index, membership) in workload.memberships.iter().enumerate() {
            let members = self.members.entry(membership.service.clone()).or_default();
            members.put(Endpoint { workload: workload.clone(), membership: index });
            self.touched.insert(membership.service.clone());
        }
    }

    fn count(&mut self, workload: &Workload, change: impl Fn(u32) -> u32) {
        let key: (Arc<str>, Arc<WorkloadLabels>) = (workload.namespace.clone(), workload.labels.clone());
        let mut population = self.next.populations.get(&key).copied().unwrap_or_default();
        population.everywhere = change(population.everywhere);
        if workload.own.is_some() {
            population.own_node = change(population.own_node);
        }
        if population.everywhere == 0 {
            self.next.populations.remove_mut(&key);
        } else {
            self.next.populations.insert_mut(key, population);
        }
    }
}

/// The addresses that name a workload: none for host-network pods, whose addresses are their node's.
fn indexed_addresses(workload: &Workload) -> &[IpAddr] {
    if workload.host_network { &[] } else { &workload.addresses }
}

/// The endpoints of one Service, with their places.
#[derive(Debug, Default)]
struct Members {
    endpoints: Vec<Endpoint>,
    places: HashMap<WorkloadUid, usize>,
}

impl Members {
    fn put(&mut self, endpoint: Endpoint) {
        match self.places.get(&endpoint.workload.uid) {
            Some(place) => self.endpoints[*place] = endpoint,
            None => {
                self.places.insert(endpoint.workload.uid.clone(), self.endpoints.len());
                self.endpoints.push(endpoint);
            }
        }
    }

    fn remove(&mut self, uid: &WorkloadUid) {
        let Some(place) = self.places.remove(uid) else { return };
        self.endpoints.swap_remove(place);
        if let Some(moved) = self.endpoints.get(place) {
            self.places.insert(moved.workload.uid.clone(), place);
        }
    }
}

/// Who else claims an address that somebody else has: oldest first, the holder itself not included. Almost always
/// empty; an address has two claimants while the news of a pod's end is younger than that of its successor.
#[derive(Debug)]
struct Claims<K> {
    waiting: HashMap<IpAddr, Vec<K>>,
}

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self { waiting: HashMap::new() }
    }
}

enum Released<K> {
    ToNobody,
    To(K),
    WasNotInForce,
}

impl<K: Clone + Eq> Claims<K> {
    /// Whether the claimant holds the address from now on. `known`: it claimed the address before.
    fn claim(&mut self, address: IpAddr, claimant: &K, holder: Option<&K>, known: bool) -> bool {
        match holder {
            Some(holder) if holder == claimant => true,
            Some(_) if known => false,
            Some(holder) => {
                self.waiting.entry(address).or_default().push(holder.clone());
                true
            }
            None => true,
        }
    }

    fn release(&mut self, address: IpAddr, claimant: &K, holder: Option<&K>) -> Released<K> {
        let Some(waiting) = self.waiting.get_mut(&address) else {
            return if holder == Some(claimant) { Released::ToNobody } else { Released::WasNotInForce };
        };
        let released = if holder == Some(claimant) {
            waiting.pop().map_or(Released::ToNobody, Released::To)
        } else {
            waiting.retain(|other| other != claimant);
            Released::WasNotInForce
        };
        if waiting.is_empty() {
            self.waiting.remove(&address);
        }
        released
    }
}

#[cfg(test)]
mod tests;
