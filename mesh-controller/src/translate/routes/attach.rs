//! Service parents: which ports of which Service a route is attached to, and for which clients.
//!
//! The parent is a core Service with a virtual address; its empty group must be written, because an absent one is that of
//! the Gateway API. `port` is a port of the Service, `sectionName` the name of one, and of both, both must fit.
//!
//! A route in the Service's namespace is a *producer* route, for every client; in another it is a *consumer* route, for the
//! clients of its own namespace. Per (Service, port) all consumer routes of the client's namespace replace all
//! producer routes; the groups never merge and know nothing of each other.
//!
//! Inside one group, kinds exclude each other on a port, in the order of GEP-1294 (GRPCRoute before HTTPRoute before TLSRoute
//! before TCPRoute): a route takes it, and those of later kinds are attached to the ports that are left. One with none left is
//! `Accepted=False`, reason `Conflicted`. Kinds share a Gateway's listener instead, as the Gateway API allows since v1.6.
//! A route of which nothing can be honoured takes no port from routes about the same: they share a table, where its rules
//! refuse. From a kind that decides about something else (requests, TLS, connections) it takes the port all the same, for of
//! these a port has only one.
//!
//! Of TCPRoutes the oldest takes the port, then the first by name: nothing tells connections apart, so what another would do
//! is never done. That one of them cannot be honoured makes no difference to that: its connections are reset. TLSRoutes share a
//! port, where each server name is the first one's that asks for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use culvert_objects::types::ParentRef;
use culvert_routing::model::{Carries, Hostname, RouteKey};

use super::services::{Nature, PortFacts, ServiceFacts, Services};

/// Why a route is not attached to a parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// A Service that a route is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl std::fmt::Display for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where one parentRef leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub service: ServiceName,
    /// Never empty.
    pub ports: BTreeSet<u16>,
    /// Those of them that the Service declares as something that routes of this kind do not carry, and as what.
    pub contradicted: BTreeMap<u16, String>,
}

/// The attachment of a parentRef that names a Service.
pub fn service(
    parent: &ParentRef,
    route: &RouteKey,
    services: &mut Services<'_>,
) -> Result<Attachment, Refusal> {
    let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
    let name = ServiceName { namespace: namespace.into(), name: parent.name.as_str().into() };
    let no_parent = |message: String| Refusal::new("NoMatchingParent", message);
    let Some(found) = services.find(namespace, &parent.name) else {
        return Err(no_parent(format!("there is no Service {name}")));
    };
    match found.nature {
        Nature::Virtual => {}
        Nature::Headless => {
            let message =
                format!("Service {name} is headless: it has no address that calls could be matched by");
            return Err(Refusal::new("UnsupportedValue", message));
        }
        Nature::ExternalName => {
            let message = format!("Service {name} is an ExternalName: it has no address of this cluster");
            return Err(Refusal::new("UnsupportedValue", message));
        }
    }
    let named: Vec<&PortFacts> = named(parent, &found).collect();
    if named.is_empty() {
        return Err(no_parent(format!("Service {name} has no {}", wanted(parent))));
    }
    let contradicted = named
        .iter()
        .filter_map(|port| Some((port.number, port.contradicts(route.kind.carries())?.to_owned())));
    Ok(Attachment {
        service: name,
        ports: named.iter().map(|port| port.number).collect(),
        contradicted: contradicted.collect(),
    })
}

/// Without `port` and `sectionName` every TCP port, whatever is declared of it (GEP-1294).
fn named<'s>(parent: &ParentRef, service: &'s ServiceFacts) -> impl Iterator<Item = &'s PortFacts> {
    service.tcp_ports().filter(|port| {
        parent.port.is_none_or(|number| number == port.number)
            && parent.section_name.as_ref().is_none_or(|name| *name == port.name)
    })
}

fn wanted(parent: &ParentRef) -> String {
    match (parent.port, &parent.section_name) {
        (None, None) => "TCP port".to_owned(),
        (Some(port), None) => format!("TCP port {port}"),
        (None, Some(name)) => format!("TCP port named {name:?}"),
        (Some(port), Some(name)) => format!("TCP port {port} named {name:?}"),
    }
}

/// Whom the routes of a group are for: everybody, or the clients of one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    Producers,
    Consumers(Arc<str>),
}

impl Group {
    pub fn of(route: &RouteKey, service: &ServiceName) -> Self {
        if route.namespace == service.namespace {
            Group::Producers
        } else {
            Group::Consumers(route.namespace.clone())
        }
    }
}

/// What a route has taken: what it carries, and whether any of it can be honoured.
#[derive(Clone, Debug)]
struct Holder {
    route: RouteKey,
    is_honoured: bool,
}

impl Holder {
    /// Whether nothing of the port is left for another route, which comes after it.
    fn excludes(&self, other: &RouteKey) -> bool {
        let (kind, carries) = (self.route.kind, self.route.kind.carries());
        match carries {
            _ if carries != other.kind.carries() => true,
            Carries::Requests => self.is_honoured && kind != other.kind,
            Carries::Tls => false,
            Carries::Bytes => true,
        }
    }
}

/// A port of a Service, as the routes of one group see it.
type At = (ServiceName, Group, u16);

/// What routes have taken: ports, each with the first of them by kind, age and name, and server names of TLSRoutes (`None`: all
/// that are left).
#[derive(Debug, Default)]
pub struct Taken {
    ports: HashMap<At, Holder>,
    names: HashMap<(At, Option<Hostname>), RouteKey>,
}

impl Taken {
    /// A route takes the ports it is attached to, for the server names that it is for. To be told in the order of kinds, of one
    /// kind the older first, then by name.
    pub fn take(
        &mut self,
        route: &RouteKey,
        service: &ServiceName,
        ports: &BTreeSet<u16>,
        hostnames: &[Hostname],
        is_honoured: bool,
    ) {
        let group = Group::of(route, service);
        for port in ports {
            let at = (service.clone(), group.clone(), *port);
            if route.kind.carries() == Carries::Tls {
                for name in server_names(hostnames) {
                    self.names.entry((at.clone(), name)).or_insert_with(|| route.clone());
                }
            }
            let holder = || Holder { route: route.clone(), is_honoured };
            let held = self.ports.entry(at).or_insert_with(holder);
            // Of what decides about the same, the first that can be honoured.
            if is_honoured && !held.is_honoured && held.route.kind.carries() == route.kind.carries() {
                *held = holder();
            }
        }
    }

    /// What is left for a route, and what the ports that are not were taken by.
    pub fn left(
        &self,
        route: &RouteKey,
        attachment: &Attachment,
    ) -> (BTreeSet<u16>, BTreeMap<u16, RouteKey>) {
        let mut left = attachment.ports.clone();
        let mut taken = BTreeMap::new();
        let group = Group::of(route, &attachment.service);
        for port in &attachment.ports {
            let at = (attachment.service.clone(), group.clone(), *port);
            if let Some(held) = self.ports.get(&at).filter(|held| held.excludes(route)) {
                left.remove(port);
                taken.insert(*port, held.route.clone());
            }
        }
        (left, taken)
    }

    /// The server names that a TLSRoute is for and another has at a port, and which one has it.
    pub fn names(
        &self,
        route: &RouteKey,
        service: &ServiceName,
        port: u16,
        hostnames: &[Hostname],
    ) -> Vec<(Option<Hostname>, RouteKey)> {
        if route.kind.carries() != Carries::Tls {
            return Vec::new();
        }
        let at = (service.clone(), Group::of(route, service), port);
        let taken = server_names(hostnames).filter_map(|name| {
            let key = (at.clone(), name);
            let by = self.names.get(&key)?.clone();
            Some((key.1, by))
        });
        taken.collect()
    }
}

/// As a table sees them.
fn server_names(hostnames: &[Hostname]) -> impl Iterator<Item = Option<Hostname>> {
    let any = hostnames.is_empty().then_some(None);
    hostnames.iter().cloned().map(Some).chain(any)
}
