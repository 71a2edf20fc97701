//! Backends that cannot be called, and rules that have none.

use culvert_controller::translate::outcomes::{
    DraftFilter, DraftRef, DraftRule, Outcome, Site, Unresolved, UnresolvedReason,
};
use culvert_objects::types::ParentKind;
use culvert_objects::{Kind, ObjectKey};
use culvert_routing::model::{Carries, Filter, PathMatch};

use super::object_of;
use crate::code::{Code, Severity};
use crate::context::Context;
use crate::finding::Finding;
use crate::references::Share;

pub fn find(context: &Context) -> Vec<Finding> {
    let mut findings = Vec::new();
    for outcome in &context.translation.outcomes {
        findings.extend(outcome.in_force.unresolved.iter().filter_map(|of| unresolved(context, outcome, of)));
        let rules = outcome.draft.rules.iter().enumerate();
        findings.extend(rules.filter_map(|(index, rule)| without_backend(context, outcome, index, rule)));
    }
    findings
}

fn unresolved(context: &Context, outcome: &Outcome, of: &Unresolved) -> Option<Finding> {
    // Which kinds and protocols can be called is each implementation's own.
    let is_own = matches!(of.reason, UnresolvedReason::InvalidKind | UnresolvedReason::UnsupportedProtocol);
    if is_own && is_at_foreign(context, outcome) {
        return None;
    }
    let rule = outcome.draft.rules.get(of.at.rule)?;
    let to = reference(rule, of.at)?;
    let namespace = to.namespace.as_deref().unwrap_or(&outcome.draft.key.namespace).to_owned();
    let key = ObjectKey::namespaced(Kind::Service, &*namespace, &*to.name);
    let is_written = context.keys.contains(&key);
    let (code, remedy) = match of.reason {
        UnresolvedReason::RefNotPermitted => {
            let remedy = grant(outcome, &namespace, &to.name);
            (if is_written { Code::NotGranted } else { Code::NotInFiles }, remedy)
        }
        UnresolvedReason::UnsupportedProtocol => protocol(outcome.draft.key.kind.carries(), &of.message),
        UnresolvedReason::InvalidKind if is_api_kind(&to.group, &to.kind) => {
            (Code::NotDone, "call a Service".to_owned())
        }
        UnresolvedReason::InvalidKind if to.kind.ends_with("Route") => (
            Code::Unusable,
            "routes are not handed on to other routes in the Gateway API: attach both routes to the same parent, the more \
             specific match wins"
                .to_owned(),
        ),
        UnresolvedReason::InvalidKind => (Code::Unusable, "call a Service with endpoints".to_owned()),
        UnresolvedReason::BackendNotFound if is_written && context.written.get(&key).is_none() => return None,
        UnresolvedReason::BackendNotFound => (Code::Unusable, ports(context, &key)),
    };
    let share = of.at.backend.map(|backend| share(outcome, rule, backend));
    let effect = match (of.at.mirror, share) {
        (Some(_), _) => "; nothing is mirrored".to_owned(),
        (None, Some(share)) => format!("; {}", share.lost()),
        (None, None) => String::new(),
    };
    let what = format!("{}{effect}", of.message);
    let finding =
        context.finding(code, &object_of(&outcome.draft.key), format!("spec.{}", of.at), what, remedy)?;
    let is_met = share.is_none_or(|share| share.weight > 0);
    Some(if is_met { finding } else { finding.as_bad_as(Severity::Notice) })
}

/// Whether the parent is a Gateway of another implementation.
fn is_at_foreign(context: &Context, outcome: &Outcome) -> bool {
    let parent = outcome.parent.and_then(|parent| outcome.draft.parents.get(parent)?.read.as_ref().ok());
    parent.filter(|parent| parent.parent_kind() == ParentKind::Gateway).is_some_and(|parent| {
        let namespace = parent.namespace.as_deref().unwrap_or(&outcome.draft.key.namespace);
        context.is_foreign(&ObjectKey::namespaced(Kind::Gateway, namespace, &*parent.name))
    })
}

/// What to do about a port that does not speak what the route carries.
fn protocol(carries: Carries, message: &str) -> (Code, String) {
    let is_not_done =
        message.contains("this version") || (carries == Carries::Requests && asks_for_tls(message));
    let (code, remedy) = match (is_not_done, carries) {
        (true, Carries::Requests) => (Code::NotDone, "call a port of plain HTTP until Culvert does it"),
        (true, Carries::Tls | Carries::Bytes) => {
            (Code::NotDone, "call a port without such a policy until Culvert does it")
        }
        (false, Carries::Requests) => {
            (Code::Unusable, "call a TCP port that speaks HTTP, or correct its appProtocol")
        }
        (false, Carries::Tls) => {
            (Code::Unusable, "call a TCP port that speaks TLS, or correct its appProtocol")
        }
        (false, Carries::Bytes) => (Code::Unusable, "call a TCP port"),
    };
    (code, remedy.to_owned())
}

fn reference(rule: &DraftRule, at: Site) -> Option<&DraftRef> {
    let backend = match at.backend {
        Some(backend) => Some(rule.backends.get(backend)?),
        None => None,
    };
    let Some(index) = at.mirror else { return backend.map(|backend| &backend.to) };
    let filters = backend.map_or(&rule.filters, |backend| &backend.filters);
    filters.iter().find_map(|filter| match filter {
        DraftFilter::Mirror(mirror) if mirror.index == index => Some(&mirror.to),
        _ => None,
    })
}

/// The port is declared to speak TLS, which the API has policies for.
fn asks_for_tls(message: &str) -> bool {
    let message = message.to_lowercase();
    ["declared as https", "declared as kubernetes.io/wss", "declared as tls"]
        .iter()
        .any(|of| message.contains(of))
}

/// Kinds that the API allows as backends and that this version does not call.
fn is_api_kind(group: &str, kind: &str) -> bool {
    matches!(
        (group, kind),
        ("gateway.networking.x-k8s.io", "XBackend") | ("multicluster.x-k8s.io", "ServiceImport")
    )
}

/// How to grant a reference.
pub(super) fn grant(outcome: &Outcome, namespace: &str, name: &str) -> String {
    let route = object_of(&outcome.draft.key);
    format!(
        "in namespace {namespace} write a ReferenceGrant with from: [{{group: gateway.networking.k8s.io, kind: {}, namespace: \
         {}}}] and to: [{{group: \"\", kind: Service, name: {name}}}]",
        route.kind, outcome.draft.key.namespace
    )
}

fn ports(context: &Context, key: &ObjectKey) -> String {
    let service =
        context.written.get(key).and_then(|object| object.body.get("spec")?.get("ports")?.as_array());
    let ports: Vec<String> = service.into_iter().flatten().map(|port| port["port"].to_string()).collect();
    match ports.is_empty() {
        true => "write port: one of the Service's".to_owned(),
        false => format!("write port: one of {}", ports.join(", ")),
    }
}

/// How much of the rule's traffic a backend gets.
fn share(outcome: &Outcome, rule: &DraftRule, backend: usize) -> Share {
    let sum = rule.backends.iter().map(|of| u64::from(of.weight)).sum();
    let carries = outcome.draft.key.kind.carries();
    Share { carries, weight: u64::from(rule.backends[backend].weight), sum }
}

fn without_backend(context: &Context, outcome: &Outcome, index: usize, rule: &DraftRule) -> Option<Finding> {
    let is_refused = outcome.in_force.compiled.refused.iter().any(|refused| refused.rule == index);
    let redirects = |filter: &DraftFilter| matches!(filter, DraftFilter::Ready(Filter::Redirect(_)));
    let has_weight = rule.backends.iter().any(|backend| backend.weight > 0);
    // What connections come to is said for itself.
    let is_of_requests = outcome.draft.key.kind.carries() == Carries::Requests;
    if !is_of_requests || is_refused || has_weight || rule.filters.iter().any(redirects) {
        return None;
    }
    let requests = match rule.matches.iter().any(is_everything) {
        true => "every request that no more specific rule takes",
        false => "every request of the rule",
    };
    let (field, what, remedy) = match rule.backends.len() {
        0 => (
            format!("spec.rules[{index}]"),
            format!("it has neither backends nor a redirect: {requests} is answered 500"),
            "write backendRefs; to the Service itself, if nothing but the filters is meant",
        ),
        _ => (
            format!("spec.rules[{index}].backendRefs"),
            format!("the weights sum to 0: {requests} is answered 500"),
            "give a backend a weight above 0 (without weight it is 1)",
        ),
    };
    context.finding(Code::NoBackend, &object_of(&outcome.draft.key), field, what, remedy)
}

fn is_everything(of: &culvert_routing::model::Match) -> bool {
    let any_path = match &of.path {
        PathMatch::Prefix(prefix) => &**prefix == "/",
        PathMatch::Grpc { service, method } => service.is_none() && method.is_none(),
        _ => false,
    };
    any_path && of.method.is_none() && of.headers.is_empty() && of.query.is_empty()
}
