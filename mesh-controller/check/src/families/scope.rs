//! Whom a route is for: nobody, other clients than its author thinks, or not all who call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use culvert_api::names::{MESH_DISABLED, MESH_ENABLED, MESH_LABEL, NEVER_ENROLLED_NAMESPACES};
use culvert_controller::translate::outcomes::{Group, Outcome, Place, ServiceName};
use culvert_objects::types::{Protocol, ServicePort, ServiceSpec};
use culvert_objects::{Kind, ObjectKey};
use culvert_routing::model::{Carries, RouteKey};

use super::{list, object_of};
use crate::code::{Code, Severity};
use crate::context::Context;
use crate::finding::Finding;

/// A route at a Service.
struct AtService<'c> {
    outcome: &'c Outcome,
    /// Of the parentRef.
    field: String,
    service: &'c ServiceName,
    ports: &'c BTreeSet<u16>,
    contradicted: &'c BTreeMap<u16, String>,
    taken: &'c BTreeMap<u16, RouteKey>,
    group: Group,
}

impl AtService<'_> {
    fn key(&self) -> ObjectKey {
        object_of(&self.outcome.draft.key)
    }
}

pub fn find(context: &Context) -> Vec<Finding> {
    let attached: Vec<AtService<'_>> =
        context.translation.outcomes.iter().filter_map(|outcome| at_service(outcome)).collect();
    let mut findings = without_parents(context);
    for at in &attached {
        findings.extend(hostnames(context, at));
        findings.extend(consumers_outside(context, at));
        findings.extend(replaces(context, at, &attached));
        findings.extend(loses(context, at));
        findings.extend(not_http(context, at));
    }
    findings.extend(ports_around(context, &attached));
    findings
}

fn at_service(outcome: &Outcome) -> Option<AtService<'_>> {
    let Ok(Place::Service { service, ports, contradicted, taken }) = &outcome.attached else { return None };
    let group = Group::of(&outcome.draft.key, service);
    let field = format!("spec.parentRefs[{}]", outcome.parent?);
    Some(AtService { outcome, field, service, ports, contradicted, taken, group })
}

fn without_parents(context: &Context) -> Vec<Finding> {
    let mut findings = Vec::new();
    for document in &context.documents {
        let is_route = document.key.as_ref().is_some_and(|key| Kind::ROUTES.contains(&key.kind));
        let spec = &document.value["spec"];
        let has_parents = spec["parentRefs"].as_array().is_some_and(|refs| !refs.is_empty());
        let asks_for_default = spec["useDefaultGateways"].as_str().is_some_and(|scope| scope != "None");
        if is_route && !has_parents && !asks_for_default {
            let what = "it has no parentRefs: it is attached to nothing, and nobody uses it";
            let remedy = "write parentRefs: a Gateway, or a Service with group: \"\" and kind: Service";
            findings.push(document.finding(Code::Unused, "spec.parentRefs", what, remedy));
        }
    }
    findings
}

fn hostnames(context: &Context, at: &AtService<'_>) -> Option<Finding> {
    let names = &at.outcome.draft.hostnames;
    if names.is_empty() || at.outcome.draft.key.kind.carries() != Carries::Requests {
        return None;
    }
    let what = format!(
        "at Service {} hostnames are ignored: the address that is called decides, so the route takes requests for any host, \
         not only {}",
        at.service,
        list(names)
    );
    let remedy = "take them away; to tell hosts apart, attach to a Gateway or match a header of your own";
    context.finding(Code::HostnamesIgnored, &at.key(), "spec.hostnames", what, remedy)
}

/// A consumer route is for clients of its own namespace, which must be in the mesh.
fn consumers_outside(context: &Context, at: &AtService<'_>) -> Option<Finding> {
    let Group::Consumers(namespace) = &at.group else { return None };
    let never = NEVER_ENROLLED_NAMESPACES.contains(&&**namespace);
    if !never && (is_enrolled(context, namespace) || !context.keys.contains(&namespace_key(namespace))) {
        return None;
    }
    // Files that enrol nothing leave that to others, but for a namespace that they keep out.
    let own = context.written.namespace(namespace);
    let is_kept_out = own.is_some_and(|own| own.label(MESH_LABEL) == Some(MESH_DISABLED));
    let others = context.written.of_kind(Kind::Namespace);
    let enrols = others.into_iter().any(|other| other.label(MESH_LABEL) == Some(MESH_ENABLED));
    if !never && !is_kept_out && !enrols {
        return None;
    }
    let what = format!(
        "it is for clients in namespace {namespace} (the Service is in {}), and that namespace is not in the mesh: nobody uses it",
        at.service.namespace
    );
    let remedy = match never {
        true => format!(
            "write it in the namespace of the Service, {}, to have it for every client",
            at.service.namespace
        ),
        false => format!(
            "label namespace {namespace} {MESH_LABEL}: {MESH_ENABLED}, or write the route in {} for every client",
            at.service.namespace
        ),
    };
    context.finding(Code::Unused, &at.key(), at.field.clone(), what, remedy)
}

fn namespace_key(name: &str) -> ObjectKey {
    ObjectKey::cluster(Kind::Namespace, name)
}

/// The namespace, or a pod of it, has the label.
fn is_enrolled(context: &Context, namespace: &str) -> bool {
    let object = context.written.namespace(namespace);
    let pods = context.documents.iter().filter(|of| of.namespace() == namespace);
    let of_pod = pods.filter_map(|of| match of.kind.as_str() {
        "Pod" => of.value.pointer("/metadata/labels"),
        _ => of.value.pointer("/spec/template/metadata/labels"),
    });
    object.is_some_and(|object| object.label(MESH_LABEL) == Some(MESH_ENABLED))
        || of_pod.into_iter().any(|labels| labels[MESH_LABEL] == MESH_ENABLED)
}

fn replaces(context: &Context, at: &AtService<'_>, all: &[AtService<'_>]) -> Option<Finding> {
    let Group::Consumers(namespace) = &at.group else { return None };
    let producers = all.iter().filter(|other| other.group == Group::Producers && other.service == at.service);
    let replaced: BTreeMap<&RouteKey, BTreeSet<u16>> = producers
        .filter_map(|other| {
            let common: BTreeSet<u16> = other.ports.intersection(at.ports).copied().collect();
            (!common.is_empty()).then_some((&other.outcome.draft.key, common))
        })
        .collect();
    if replaced.is_empty() {
        return None;
    }
    let names: Vec<String> = replaced.keys().map(|key| object_of(key).to_string()).collect();
    let ports: BTreeSet<u16> = replaced.into_values().flatten().collect();
    let where_none_matches = match at.outcome.draft.key.kind.carries() {
        Carries::Requests => ", also where none of these rules matches (404)",
        Carries::Tls => ", also for server names that are none of these (they are reset)",
        Carries::Bytes => "",
    };
    let what = format!(
        "for clients in namespace {namespace} it replaces {} at port {} of Service {}: no rule of that applies to \
         them{where_none_matches}",
        names.join(", "),
        list(ports),
        at.service
    );
    let remedy = "repeat the rules that are to hold here too, or add the rule to the producer's route";
    context.finding(Code::ReplacesProducer, &at.key(), at.field.clone(), what, remedy)
}

/// Ports that it is for and does not get: one that gets none is no more attached, and told with the other refusals.
fn loses(context: &Context, at: &AtService<'_>) -> Option<Finding> {
    if at.taken.is_empty() {
        return None;
    }
    let service = at.service;
    let of = |(port, by): (&u16, &RouteKey)| {
        format!("port {port} of Service {service} is taken by {}", object_of(by))
    };
    let what = format!(
        "{}; only port {} of Service {service} is left to this route",
        list(at.taken.iter().map(of)),
        list(at.ports)
    );
    let remedy = "bring all routes of a port to one kind (TCPRoutes to one route), or name the ports that are meant with port or \
                  sectionName";
    let finding = context.finding(Code::Conflicted, &at.key(), at.field.clone(), what, remedy)?;
    Some(finding.as_bad_as(Severity::Warning))
}

/// Ports that are declared to carry something that nothing but this route's kind passes at. Where the reference names no port
/// and other ports fit it, a declaration by the name alone is only worth knowing: many call a port `tcp` that speaks HTTP.
fn not_http(context: &Context, at: &AtService<'_>) -> Option<Finding> {
    let parent = at.outcome.draft.parents.get(at.outcome.parent?)?.read.as_ref().ok()?;
    let declared: Vec<(&u16, &String)> =
        at.contradicted.iter().filter(|(port, _)| at.ports.contains(port)).collect();
    if declared.is_empty() {
        return None;
    }
    let names_port = parent.port.is_some() || parent.section_name.is_some();
    let is_sure = names_port
        || declared.len() == at.ports.len()
        || declared.iter().any(|(port, _)| has_app_protocol(context, at.service, **port));
    let what_passes = match at.outcome.draft.key.kind.carries() {
        Carries::Requests => "HTTP",
        Carries::Tls | Carries::Bytes => "TLS",
    };
    let ports = declared
        .iter()
        .map(|(port, declared)| format!("port {port} of Service {} is declared as {declared}", at.service));
    let what = format!(
        "{}: with this route nothing but {what_passes} passes there, other connections are reset (ProtocolMismatch)",
        list(ports)
    );
    let remedy = match names_port {
        true => format!("attach to a port of {what_passes}, or correct the port's appProtocol or name"),
        false => format!(
            "name the port of {what_passes} with port or sectionName, or correct the other's appProtocol or name"
        ),
    };
    let finding = context.finding(Code::NotHttp, &at.key(), at.field.clone(), what, remedy)?;
    Some(if is_sure { finding } else { finding.as_bad_as(Severity::Notice) })
}

fn has_app_protocol(context: &Context, service: &ServiceName, port: u16) -> bool {
    let key = ObjectKey::namespaced(Kind::Service, &*service.namespace, &*service.name);
    let spec = context.written.get(&key).and_then(|object| object.spec::<ServiceSpec>().ok());
    spec.is_some_and(|spec| {
        let declares = |of: &ServicePort| of.app_protocol.as_ref().is_some_and(|of| !of.is_empty());
        spec.ports.iter().any(|of| of.port == port && declares(of))
    })
}

/// Ports that lead to the same port of the pods as a routed one, and have no route.
fn ports_around(context: &Context, all: &[AtService<'_>]) -> Vec<Finding> {
    let mut routed: BTreeMap<&ServiceName, BTreeSet<u16>> = BTreeMap::new();
    for at in all {
        routed.entry(at.service).or_default().extend(at.ports);
    }
    let mut findings = Vec::new();
    for (service, routed) in routed {
        let key = ObjectKey::namespaced(Kind::Service, &*service.namespace, &*service.name);
        let Some(spec) = context.written.get(&key).and_then(|object| object.spec::<ServiceSpec>().ok())
        else {
            continue;
        };
        let ports = || spec.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        for port in ports().filter(|port| !routed.contains(&port.port)) {
            let same = ports().find(|other| routed.contains(&other.port) && target(other) == target(port));
            let at = same.and_then(|same| {
                all.iter().find(|at| at.service == service && at.ports.contains(&same.port))
            });
            let (Some(same), Some(at)) = (same, at) else { continue };
            let what = format!(
                "port {} of Service {service} leads to the same port of the pods as port {} and has no route: its callers step \
                 around this one",
                port.port, same.port
            );
            let remedy =
                "leave port and sectionName out of the parentRef, or attach a route to that port, too";
            findings.extend(context.finding(Code::UnroutedPort, &at.key(), at.field.clone(), what, remedy));
        }
    }
    findings
}

/// The port of the pods.
fn target(port: &ServicePort) -> Arc<str> {
    let target = serde_json::to_value(&port.target_port).unwrap_or_default();
    match target {
        serde_json::Value::String(name) => name.into(),
        serde_json::Value::Number(number) => number.to_string().into(),
        _ => port.port.to_string().into(),
    }
}
