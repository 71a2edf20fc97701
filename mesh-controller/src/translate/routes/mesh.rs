//! Routes at Services: what the mesh says of them, and the resources that come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use culvert_api::mesh as pb;
use culvert_objects::Object;
use culvert_objects::types::{ParentKind, ParentRef};
use culvert_routing::model::{Carries, Hostname, RouteKey, RouteKind};
use serde_json::Value;

use super::attach::{self, Attachment, Group, Refusal, ServiceName, Taken};
use super::memory::{Entry, InForce};
use super::normalize::reader::Fault;
use super::normalize::{Draft, Parent};
use super::outcomes::{Outcome, Place};
use super::resolve::Side;
use super::services::Services;
use super::status::Facts;
use super::{Pass, Said, emit, parent_faults};
use crate::CONTROLLER_NAME;
use crate::status::{DesiredCondition, DesiredParent};

/// A parentRef that is the mesh's.
struct Claim {
    index: usize,
    attachment: Result<Attachment, Refusal>,
    fault: Vec<Fault>,
}

/// A route at one Service.
struct AtService {
    in_force: Arc<InForce>,
    ports: BTreeSet<u16>,
}

/// What became of a route at its Services. The same again in another pass, as long as its Services, its backends and the policies
/// are the same and other routes leave the same to it.
#[derive(Debug)]
pub struct AtServices {
    /// Of each parentRef with an attachment.
    left: Vec<(Attachment, Left)>,
    taken: Vec<Takes>,
    routes: Vec<(String, Arc<pb::Route>)>,
    outcomes: Vec<Arc<Outcome>>,
    said: Said,
}

/// What other routes leave of an attachment.
#[derive(Debug, PartialEq)]
struct Left {
    ports: BTreeSet<u16>,
    /// What has taken the others.
    taken: BTreeMap<u16, RouteKey>,
    /// Server names that are another's already, in words.
    names: String,
}

/// What a route takes at one Service.
#[derive(Debug)]
struct Takes {
    service: ServiceName,
    ports: BTreeSet<u16>,
    hostnames: Vec<Hostname>,
    is_honoured: bool,
}

impl AtServices {
    /// What is said of it, by the index of the parentRef.
    pub fn said(&self) -> &Said {
        &self.said
    }

    /// Whether other routes, those of this pass so far, leave to it what they left before.
    pub fn is_left_the_same(&self, taken: &Taken, draft: &Draft) -> bool {
        let hostnames = |service: &ServiceName| {
            self.taken.iter().find(|takes| takes.service == *service).map(|takes| &*takes.hostnames)
        };
        self.left.iter().all(|(attachment, before)| {
            let hostnames = hostnames(&attachment.service).unwrap_or_default();
            Left::of(attachment, hostnames, taken, draft) == *before
        })
    }

    /// Takes its ports, and gives the pass what came of it.
    pub fn put(&self, pass: &mut Pass<'_>, draft: &Draft) {
        for Takes { service, ports, hostnames, is_honoured } in &self.taken {
            pass.taken.take(&draft.key, service, ports, hostnames, *is_honoured);
        }
        pass.routes.extend(self.routes.iter().cloned());
        pass.outcomes.extend(self.outcomes.iter().cloned());
    }
}

impl Left {
    fn of(attachment: &Attachment, hostnames: &[Hostname], all: &Taken, draft: &Draft) -> Self {
        let (ports, taken) = all.left(&draft.key, attachment);
        let names = names(all, &draft.key, (&attachment.service, &ports), hostnames);
        Self { ports, taken, names }
    }
}

/// Attaches a route to its Services.
pub fn at_services(pass: &mut Pass<'_>, entry: &mut Entry) -> AtServices {
    let draft = entry.draft.clone();
    let claims: Vec<Claim> = (draft.parents.iter().enumerate())
        .filter_map(|(index, parent)| claim(index, parent, &draft, &mut pass.resolver.services))
        .collect();
    let mut services: BTreeMap<ServiceName, AtService> = BTreeMap::new();
    for name in claims.iter().filter_map(|claim| claim.attachment.as_ref().ok()).map(|at| &at.service) {
        if !services.contains_key(name) {
            // References to one Service are one resource, so what stops one of them stops all.
            let same = |claim: &&Claim| claim.attachment.as_ref().is_ok_and(|at| at.service == *name);
            let of_refs = claims.iter().filter(same).flat_map(|claim| claim.fault.clone()).collect();
            let in_force = entry.in_force(pass.objects, &mut pass.resolver, Side::Mesh, of_refs);
            services.insert(name.clone(), AtService { in_force, ports: BTreeSet::new() });
        }
    }
    let mut all = AtServices {
        left: Vec::new(),
        taken: Vec::new(),
        routes: Vec::new(),
        outcomes: Vec::new(),
        said: Said::new(),
    };
    for claim in claims {
        let parent_ref = draft.parents[claim.index].written.clone();
        let service = claim.attachment.as_ref().ok().map(|at| at.service.to_string());
        let resources = service.iter().map(|service| emit::name(&draft.key, service)).collect();
        let conditions = conditions(pass, entry, &claim, &mut services, &mut all);
        all.said.insert(claim.index, of_mesh(parent_ref, conditions, resources));
    }
    for (name, at) in services.into_iter().filter(|(_, at)| !at.ports.is_empty()) {
        let is_honoured = !Facts::new(Ok(String::new()), &draft, &at.in_force).is_hopeless();
        let hostnames = at.in_force.compiled.route.route().hostnames_at_service().to_vec();
        let parent = pb::ServiceParent {
            service: name.to_string(),
            ports: at.ports.iter().map(|port| u32::from(*port)).collect(),
            consumer_namespace: match Group::of(&draft.key, &name) {
                Group::Producers => String::new(),
                Group::Consumers(namespace) => namespace.to_string(),
            },
        };
        let key = emit::name(&draft.key, &parent.service);
        let route = entry.emit(&key, &at.in_force, &hostnames, pb::route::Parent::Service(parent));
        all.routes.push((key, route));
        all.taken.push(Takes { service: name, ports: at.ports, hostnames, is_honoured });
    }
    all
}

/// None where the parent is somebody else's.
fn claim(index: usize, parent: &Parent, draft: &Draft, services: &mut Services<'_>) -> Option<Claim> {
    let attachment = match &parent.read {
        Err(error) => {
            let ours = ParentRef::guess(&parent.written).parent_kind() == ParentKind::Service;
            ours.then(|| Err(Refusal::new("NoMatchingParent", error.to_string())))?
        }
        Ok(read) => match read.parent_kind() {
            ParentKind::Service => attach::service(read, &draft.key, services),
            // What a Service parent without its group reads as: a kind that nobody serves.
            ParentKind::Other if read.group.is_none() && read.kind.as_deref() == Some("Service") => {
                let message = "without a group this is a Service of gateway.networking.k8s.io, which does not exist; \
                               a parent of kind Service is written with group: \"\"";
                Err(Refusal::new("NoMatchingParent", message))
            }
            ParentKind::Gateway | ParentKind::Other => return None,
        },
    };
    Some(Claim { index, attachment, fault: parent_faults(draft, index) })
}

fn conditions(
    pass: &mut Pass<'_>,
    entry: &mut Entry,
    claim: &Claim,
    services: &mut BTreeMap<ServiceName, AtService>,
    all: &mut AtServices,
) -> Vec<DesiredCondition> {
    let draft = entry.draft.clone();
    let attachment = match &claim.attachment {
        Ok(attachment) => attachment,
        Err(refusal) => {
            let in_force = entry.in_force(pass.objects, &mut pass.resolver, Side::Mesh, Vec::new());
            let conditions = Facts::new(Err(refusal.clone()), &draft, &in_force).conditions();
            all.outcomes.push(outcome(claim, draft, Err(refusal.clone()), in_force));
            return conditions;
        }
    };
    let Some(at) = services.get_mut(&attachment.service) else { return Vec::new() };
    let hostnames = at.in_force.compiled.route.route().hostnames_at_service();
    let left = Left::of(attachment, hostnames, &pass.taken, &draft);
    let attached = match left.ports.is_empty() {
        true => Err(Refusal::new("Conflicted", conflict(&draft.key, &left.taken, &attachment.service))),
        false => Ok(attached(&draft, attachment, &left.ports, &left.taken) + &left.names),
    };
    let place = attached.as_ref().map_err(Refusal::clone).map(|_| Place::Service {
        service: attachment.service.clone(),
        ports: left.ports.clone(),
        contradicted: attachment.contradicted.clone(),
        taken: left.taken.clone(),
    });
    all.outcomes.push(outcome(claim, draft.clone(), place, at.in_force.clone()));
    at.ports.extend(&left.ports);
    all.left.push((attachment.clone(), left));
    Facts::new(attached, &draft, &at.in_force).conditions()
}

fn outcome(
    claim: &Claim,
    draft: Arc<Draft>,
    attached: Result<Place, Refusal>,
    in_force: Arc<InForce>,
) -> Arc<Outcome> {
    Arc::new(Outcome { draft, parent: Some(claim.index), side: Side::Mesh, attached, in_force })
}

fn list(ports: impl Iterator<Item = u16>) -> String {
    ports.map(|port| port.to_string()).collect::<Vec<_>>().join(", ")
}

fn attached(draft: &Draft, at: &Attachment, left: &BTreeSet<u16>, taken: &BTreeMap<u16, RouteKey>) -> String {
    let service = &at.service;
    let word = if left.len() == 1 { "port" } else { "ports" };
    let whose = match Group::of(&draft.key, service) {
        Group::Producers => "for every client whose namespace has no route of its own".to_owned(),
        Group::Consumers(namespace) => format!("for clients in namespace {namespace}"),
    };
    let mut text = format!("attached to {word} {} of Service {service}, {whose}", list(left.iter().copied()));
    if !taken.is_empty() {
        text = format!("{text}; {}", conflict(&draft.key, taken, service));
    }
    let declared: Vec<String> = (at.contradicted.iter().filter(|(port, _)| left.contains(port)))
        .map(|(port, declared)| format!("{port} ({declared})"))
        .collect();
    if !declared.is_empty() {
        let what = match draft.key.kind.carries() {
            Carries::Requests => "HTTP",
            Carries::Tls | Carries::Bytes => "TLS",
        };
        text = format!(
            "{text}; these ports are declared to carry no {what}, and where a route is attached nothing else passes \
             (ProtocolMismatch): {}; name other ports with port or sectionName if that is not meant",
            declared.join(", ")
        );
    }
    if !draft.hostnames.is_empty() && draft.key.kind.carries() == Carries::Requests {
        text.push_str("; hostnames play no part, the destination's address decides");
    }
    text
}

fn conflict(route: &RouteKey, taken: &BTreeMap<u16, RouteKey>, service: &ServiceName) -> String {
    let of = |(port, by): (&u16, &RouteKey)| {
        format!("port {port} of Service {service} is taken by {} {}/{}", by.kind, by.namespace, by.name)
    };
    let lines: Vec<String> = taken.iter().map(of).collect();
    let kinds: BTreeSet<RouteKind> = taken.values().map(|by| by.kind).collect();
    let of_others = kinds.iter().filter(|kind| **kind != route.kind).map(|kind| indefinite(*kind));
    let before: Vec<String> = of_others.collect();
    let mut why = Vec::new();
    if !before.is_empty() {
        why.push(format!("{} comes before {}", before.join(" or "), indefinite(route.kind)));
    }
    if kinds.contains(&route.kind) {
        why.push(format!(
            "of several {}s the oldest takes every connection, then the first by name",
            route.kind
        ));
    }
    format!("{}; {}", lines.join(", "), why.join("; "))
}

/// Which server names of a route are another's already, in words; nothing where none is.
fn names(
    taken: &Taken,
    route: &RouteKey,
    (service, ports): (&ServiceName, &BTreeSet<u16>),
    hostnames: &[Hostname],
) -> String {
    let mut had: BTreeMap<(String, RouteKey), Vec<u16>> = BTreeMap::new();
    for port in ports {
        for (name, by) in taken.names(route, service, *port, hostnames) {
            let name = name.map_or("what no hostname is for".to_owned(), |name| name.to_string());
            had.entry((name, by)).or_default().push(*port);
        }
    }
    if had.is_empty() {
        return String::new();
    }
    let line = |((name, by), ports): (&(String, RouteKey), &Vec<u16>)| {
        let word = if ports.len() == 1 { "port" } else { "ports" };
        let ports = list(ports.iter().copied());
        format!("{name} at {word} {ports} by {} {}/{}", by.kind, by.namespace, by.name)
    };
    let lines: Vec<String> = had.iter().map(line).collect();
    format!("; taken already, by an older route or one whose name comes first: {}", lines.join(", "))
}

fn indefinite(kind: RouteKind) -> String {
    match kind {
        RouteKind::Http => format!("an {kind}"),
        RouteKind::Grpc | RouteKind::Tls | RouteKind::Tcp => format!("a {kind}"),
    }
}

fn of_mesh(parent_ref: Value, conditions: Vec<DesiredCondition>, resources: Vec<String>) -> DesiredParent {
    DesiredParent { parent_ref, controller_name: CONTROLLER_NAME.to_owned(), conditions, resources }
}

/// What a route of a kind that this version does not evaluate is told at a Service.
pub fn unevaluated(parent: &Parent, route: &Object) -> Option<DesiredParent> {
    let is_service = parent.read.as_ref().is_ok_and(|read| read.parent_kind() == ParentKind::Service);
    let message = format!(
        "this version of Culvert does not evaluate a {}; traffic to the Service is not changed by it",
        route.kind
    );
    let condition = DesiredCondition::no("Accepted", "UnsupportedValue", message);
    is_service.then(|| of_mesh(parent.written.clone(), vec![condition], Vec::new()))
}
