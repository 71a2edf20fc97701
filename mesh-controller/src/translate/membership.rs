//! EndpointSlices, turned around: which Services a workload is an endpoint of.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use culvert_api::mesh as pb;
use culvert_objects::types::{Endpoint, EndpointSlice, Protocol, ServiceSpec, ServiceType};
use culvert_objects::{Kind, Object, Objects};

use super::readings::Readings;
use super::services;

/// A pod by namespace and name.
type PodName = (String, String);

/// Memberships of pods, and the endpoints that are no pods.
#[derive(Default)]
pub struct Memberships {
    pods: HashMap<PodName, Vec<pb::Membership>>,
    outside: BTreeMap<OutsideName, Outside>,
}

/// Namespace, slice and address.
pub type OutsideName = (String, String, IpAddr);

/// An endpoint that is no pod.
pub struct Outside {
    pub node: String,
    pub zone: String,
    pub memberships: Vec<pb::Membership>,
}

/// The pods that endpoints may name, by name (with uid) and by address.
pub struct PodIndex {
    pub uids: HashMap<PodName, String>,
    /// Without host-network pods: their addresses are their node's.
    pub addresses: HashMap<IpAddr, PodName>,
}

impl Memberships {
    pub fn of(objects: &Objects, pods: &PodIndex, slices: &mut Readings<EndpointSlice>) -> Self {
        let mut all = Self::default();
        let mut ports = ServicePorts { objects, known: HashMap::new() };
        for object in objects.of_kind(Kind::EndpointSlice) {
            if let Some(service) = object.label(EndpointSlice::SERVICE_NAME_LABEL)
                && let Some(slice) = slices.of(object, |object| object.root().ok())
                && let Some(mappings) = ports.mappings(object.namespace(), service, &slice)
            {
                all.add_slice(object, service, &slice, &mappings, pods);
            }
        }
        all
    }

    /// Memberships of a pod, in the order of their Services.
    pub fn of_pod(&self, namespace: &str, name: &str) -> Vec<pb::Membership> {
        let mut memberships =
            self.pods.get(&(namespace.to_owned(), name.to_owned())).cloned().unwrap_or_default();
        memberships.sort_by(|a, b| a.service.cmp(&b.service));
        memberships
    }

    /// The endpoints that are no pods.
    pub fn outside(&self) -> impl Iterator<Item = (&OutsideName, &Outside)> {
        self.outside.iter()
    }

    fn add_slice(
        &mut self,
        object: &Object,
        service: &str,
        slice: &EndpointSlice,
        mappings: &[pb::PortMapping],
        pods: &PodIndex,
    ) {
        let key = services::key(object.namespace(), service);
        for endpoint in &slice.endpoints {
            // Several addresses are the same endpoint; consumers use the first. Names (FQDN) are resolved by nobody here.
            let Some(Ok(address)) = endpoint.addresses.first().map(|text| text.parse::<IpAddr>()) else {
                continue;
            };
            let membership = membership(&key, endpoint, mappings);
            match whose(endpoint, object.namespace(), address, pods) {
                Whose::Pod(name) => merge(self.pods.entry(name).or_default(), membership),
                Whose::Nobody => {
                    let name = (object.namespace().to_owned(), object.name().to_owned(), address);
                    let outside = self.outside.entry(name).or_insert_with(|| Outside {
                        node: endpoint.node_name.clone().unwrap_or_default(),
                        zone: endpoint.zone.clone().unwrap_or_default(),
                        memberships: Vec::new(),
                    });
                    merge(&mut outside.memberships, membership);
                }
                Whose::Gone => {}
            }
        }
    }
}

enum Whose {
    Pod(PodName),
    Nobody,
    /// A pod that is no more. Its address may be somebody else's by now, so it must not become an endpoint without
    /// identity, which would be spoken to in plaintext.
    Gone,
}

fn whose(endpoint: &Endpoint, namespace: &str, address: IpAddr, pods: &PodIndex) -> Whose {
    match endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod") {
        Some(target) => {
            let namespace = if target.namespace.is_empty() { namespace } else { &target.namespace };
            let name = (namespace.to_owned(), target.name.clone());
            match pods.uids.get(&name) {
                Some(uid) if target.uid.is_empty() || target.uid == *uid => Whose::Pod(name),
                _ => Whose::Gone,
            }
        }
        // Somebody may list a pod's address by hand; it is that pod nevertheless, with its identity.
        None => pods.addresses.get(&address).cloned().map_or(Whose::Nobody, Whose::Pod),
    }
}

fn membership(service: &str, endpoint: &Endpoint, ports: &[pb::PortMapping]) -> pb::Membership {
    let zones = endpoint.hints.iter().flat_map(|hints| &hints.for_zones);
    let nodes = endpoint.hints.iter().flat_map(|hints| &hints.for_nodes);
    pb::Membership {
        service: service.to_owned(),
        ports: ports.to_vec(),
        ready: endpoint.conditions.is_ready(),
        serving: endpoint.conditions.is_serving(),
        terminating: endpoint.conditions.is_terminating(),
        zone_hints: zones.map(|zone| zone.name.clone()).collect(),
        node_hints: nodes.map(|node| node.name.clone()).collect(),
    }
}

/// A pod is in one slice per address family: the two are one membership, as ready as the less ready of them.
fn merge(memberships: &mut Vec<pb::Membership>, new: pb::Membership) {
    let Some(known) = memberships.iter_mut().find(|known| known.service == new.service) else {
        return memberships.push(new);
    };
    known.ready &= new.ready;
    known.serving &= new.serving;
    known.terminating |= new.terminating;
    for mapping in new.ports {
        if !known.ports.iter().any(|port| port.service_port == mapping.service_port) {
            known.ports.push(mapping);
        }
    }
    for zone in new.zone_hints {
        if !known.zone_hints.contains(&zone) {
            known.zone_hints.push(zone);
        }
    }
    for node in new.node_hints {
        if !known.node_hints.contains(&node) {
            known.node_hints.push(node);
        }
    }
}

/// Name and number of each TCP port.
type NamedPorts = Vec<(String, u16)>;

struct ServicePorts<'a> {
    objects: &'a Objects,
    /// By namespace and name; None for what is no Service of endpoints.
    known: HashMap<(String, String), Option<NamedPorts>>,
}

impl ServicePorts<'_> {
    /// Service port to the slice's port of the same name. None when the Service does not exist.
    fn mappings(
        &mut self,
        namespace: &str,
        name: &str,
        slice: &EndpointSlice,
    ) -> Option<Vec<pb::PortMapping>> {
        let key = (namespace.to_owned(), name.to_owned());
        let ports = self.known.entry(key).or_insert_with(|| {
            let service = self.objects.find(Kind::Service, namespace, name)?;
            let spec = service.spec::<ServiceSpec>().ok()?;
            if spec.kind == ServiceType::ExternalName {
                return None;
            }
            Some(services::tcp_ports(&spec).map(|port| (port.name.clone(), port.port)).collect())
        });
        let mapping = |(name, service_port): &(String, u16)| {
            let same = |port: &&culvert_objects::types::EndpointPort| {
                port.name == *name && port.protocol == Protocol::Tcp
            };
            let target_port = slice.ports.iter().find(same)?.port?;
            Some(pb::PortMapping { service_port: (*service_port).into(), target_port: target_port.into() })
        };
        Some(ports.as_ref()?.iter().filter_map(mapping).collect())
    }
}
