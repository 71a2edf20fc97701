//! Parents that do not take a route.

use culvert_controller::translate::outcomes::{Outcome, Refusal};
use culvert_objects::types::{GATEWAY_GROUP, ParentKind, ParentRef};
use culvert_objects::{Kind, ObjectKey};
use serde_json::Value;

use super::object_of;
use crate::code::{Code, Severity};
use crate::context::{Absent, Context, Document};
use crate::finding::Finding;
use crate::words::{did_you_mean, nearest};

pub fn find(context: &Context) -> Vec<Finding> {
    let refused = context.translation.outcomes.iter().filter_map(|outcome| {
        let refusal = outcome.attached.as_ref().err()?;
        told(context, outcome, refusal, outcome.parent?)
    });
    let mut findings: Vec<Finding> = refused.collect();
    findings.extend(context.documents.iter().flat_map(of_refs));
    findings
}

/// Kinds that routes of the Gateway API attach to, by group.
const PARENTS: &[(&str, &str)] =
    &[("", "Service"), (GATEWAY_GROUP, "Gateway"), (GATEWAY_GROUP, "ListenerSet")];

/// What is wrong with parentRefs whatever is there: a kind that is no parent, and one parent named twice in the same way.
fn of_refs(document: &Document) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_route = document.key.as_ref().is_some_and(|key| Kind::ROUTES.contains(&key.kind));
    let refs = document.value["spec"]["parentRefs"].as_array().filter(|_| is_route);
    let mut seen: Vec<[String; 6]> = Vec::new();
    for (index, parent) in refs.into_iter().flatten().enumerate() {
        let text = |field: &str, default: &str| parent[field].as_str().unwrap_or(default).to_owned();
        let (group, kind) = (text("group", GATEWAY_GROUP), text("kind", "Gateway"));
        let at = format!("spec.parentRefs[{index}]");
        // A Service without its group is told by the controller.
        let is_told = parent["group"].is_null() && kind == "Service";
        if let Some((severity, what, remedy)) = no_parent(&group, &kind).filter(|_| !is_told) {
            findings.push(document.finding(Code::NoParent, at, what, remedy).as_bad_as(severity));
            continue;
        }
        let port = parent["port"].as_u64().map(|port| port.to_string()).unwrap_or_default();
        let namespace = text("namespace", document.namespace());
        let this = [group, kind, namespace, text("name", ""), text("sectionName", ""), port];
        let same = |other: &&[String; 6]| other[..4] == this[..4];
        let is_whole = |of: &[String; 6]| of[4].is_empty() && of[5].is_empty();
        if seen.iter().filter(same).any(|other| *other == this || is_whole(other) || is_whole(&this)) {
            let what = "two references to one parent, of which one has neither sectionName nor port or both have the same";
            let remedy = "tell them apart by sectionName or port, or keep one; the API server refuses the object as it is";
            findings.push(document.finding(Code::Schema, at, what, remedy));
        }
        seen.push(this);
    }
    findings
}

/// Why no route attaches to a kind, and what to write; kinds of groups that nobody but their owner knows are theirs.
fn no_parent(group: &str, kind: &str) -> Option<(Severity, String, String)> {
    if PARENTS.contains(&(group, kind)) {
        return None;
    }
    let parents = "a Gateway, or a Service with group: \"\" and kind: Service";
    if !is_of_kubernetes(group) {
        let what = format!(
            "Culvert knows no parents of kind {kind} of group {group:?}: whoever owns that kind may attach the route, Culvert does not"
        );
        return Some((Severity::Notice, what, format!("if Culvert is to serve it, name {parents}")));
    }
    let near = nearest(kind, PARENTS.iter().map(|(_, kind)| *kind));
    let what = format!("routes have no parents of kind {kind} of group {group:?}{}", did_you_mean(near));
    let remedy = match PARENTS.iter().find(|(_, parent)| *parent == kind) {
        Some(("", _)) => "write group: \"\"".to_owned(),
        Some((group, _)) => format!("write group: {group}"),
        None => format!("write {parents}"),
    };
    Some((Severity::Error, what, remedy))
}

/// Groups that are Kubernetes' own, or that are taken for one of them: all kinds there that routes attach to are known.
fn is_of_kubernetes(group: &str) -> bool {
    !group.contains('.') || group.ends_with(".k8s.io") || group.starts_with("gateway.networking.")
}

fn told(context: &Context, outcome: &Outcome, refusal: &Refusal, parent: usize) -> Option<Finding> {
    let route = object_of(&outcome.draft.key);
    let parent_ref = outcome.draft.parents.get(parent)?;
    let read = parent_ref.read.clone().unwrap_or_else(|_| ParentRef::guess(&parent_ref.written));
    let namespace = read.namespace.as_deref().unwrap_or(&outcome.draft.key.namespace).to_owned();
    // What could not be read is told where it is written.
    if is_unread(context, &ObjectKey::namespaced(Kind::Service, &*namespace, &*read.name), &read) {
        return None;
    }
    let (code, remedy) = match refusal.reason {
        // The Gateway's own finding says why.
        "Pending" => return None,
        "NotAllowedByListeners" if is_not_served(context, &read, &namespace) => (
            Code::NotDone,
            "attach it to a listener that is served; the finding at the listener says what this one waits for".to_owned(),
        ),
        "NotAllowedByListeners" if namespace != *outcome.draft.key.namespace => (
            Code::NamespaceNotAllowed,
            format!(
                "on that Gateway's listener write allowedRoutes: {{namespaces: {{from: All}}}}, or a Selector that takes {} \
                 (without it only routes of namespace {namespace} attach)",
                outcome.draft.key.namespace
            ),
        ),
        "NotAllowedByListeners" => {
            (Code::NoParent, "name a listener whose protocol and allowedRoutes.kinds take this kind of route".to_owned())
        }
        "NoMatchingListenerHostname" => {
            (Code::NoHostname, "give the route a hostname that is, or is below, the listener's".to_owned())
        }
        "Conflicted" => (
            Code::Conflicted,
            "bring all routes of the port to one kind, and TCPRoutes of one port into one, or give each a port of its own"
                .to_owned(),
        ),
        _ if read.group.is_none() && read.kind.as_deref() == Some("Service") => {
            (Code::NoParent, "write group: \"\" beside kind: Service".to_owned())
        }
        _ => (Code::NoParent, remedy(context, &read, &namespace)),
    };
    let at = format!("spec.parentRefs[{parent}]");
    if code == Code::NamespaceNotAllowed && depends_on_labels(context, &read, &namespace, &route) {
        return unknown_labels(context, &route, at, &read);
    }
    context.finding(code, &route, at, refusal.message.clone(), remedy)
}

/// Whether a listener that is asked for selects namespaces by labels, and the files do not say which ones the route's has.
fn depends_on_labels(context: &Context, parent: &ParentRef, namespace: &str, route: &ObjectKey) -> bool {
    let own = route.namespace.as_deref().unwrap_or_default();
    // Where the files are all there is, it has no other labels than its name.
    if context.absent == Absent::Missing || context.keys.contains(&ObjectKey::cluster(Kind::Namespace, own)) {
        return false;
    }
    let gateway = context.object(&ObjectKey::namespaced(Kind::Gateway, namespace, &*parent.name));
    let listeners = gateway.and_then(|object| object.body.get("spec")?.get("listeners")?.as_array());
    listeners.into_iter().flatten().any(|listener| {
        let is_named = parent.section_name.as_deref().is_none_or(|name| listener["name"] == name)
            && parent.port.is_none_or(|port| listener["port"] == port);
        let allowed = &listener["allowedRoutes"];
        let kinds = allowed["kinds"].as_array().filter(|kinds| !kinds.is_empty());
        is_named
            && kinds.is_none_or(|kinds| kinds.iter().any(|of| of["kind"] == route.kind.as_str()))
            && allowed["namespaces"]["from"] == "Selector"
            && may_select(&allowed["namespaces"]["selector"], own)
    })
}

/// Whether a selector asks for more than the name of a namespace, and not for another name.
fn may_select(selector: &Value, namespace: &str) -> bool {
    const NAME: &str = "kubernetes.io/metadata.name";
    let labels = || selector["matchLabels"].as_object().into_iter().flatten();
    let keys = selector["matchExpressions"].as_array().into_iter().flatten().map(|of| &of["key"]);
    labels().all(|(label, value)| label != NAME || value == namespace)
        && (labels().any(|(label, _)| label != NAME) || keys.into_iter().any(|key| key != NAME))
}

fn unknown_labels(context: &Context, route: &ObjectKey, at: String, parent: &ParentRef) -> Option<Finding> {
    if context.absent == Absent::There {
        return None;
    }
    let own = route.namespace.as_deref().unwrap_or_default();
    let what = format!(
        "a listener of Gateway {} takes routes by the labels of their namespace, and namespace {own} is not in the files",
        parent.name
    );
    let remedy = "make sure that it has the labels, or check with the file that has the Namespace";
    let finding = context.finding(Code::NamespaceNotAllowed, route, at, what, remedy)?;
    Some(finding.as_bad_as(Severity::Notice))
}

/// Whether it is for listeners that this version does not serve, so that whom they allow is not the question.
fn is_not_served(context: &Context, parent: &ParentRef, namespace: &str) -> bool {
    let key = ObjectKey::namespaced(Kind::Gateway, namespace, &*parent.name);
    let Some(status) = context.translation.statuses.get(&key) else { return false };
    let is_named = |name: &str| parent.section_name.as_deref().is_none_or(|section| section == name);
    let named: Vec<_> = status.listeners.iter().filter(|listener| is_named(&listener.name)).collect();
    !named.is_empty()
        && named.iter().all(|listener| {
            listener.conditions.iter().any(|of| of.message.contains("this version of Culvert"))
        })
}

fn is_unread(context: &Context, key: &ObjectKey, read: &ParentRef) -> bool {
    read.parent_kind() == ParentKind::Service
        && context.keys.contains(key)
        && context.written.get(key).is_none()
}

/// What the parent does have.
fn remedy(context: &Context, parent: &ParentRef, namespace: &str) -> String {
    let (kind, list, fields) = match parent.parent_kind() {
        ParentKind::Service => (Kind::Service, "ports", "port or sectionName"),
        _ => (Kind::Gateway, "listeners", "sectionName or port"),
    };
    // What stands in for others has no names that anybody could write.
    let object = context.written.get(&ObjectKey::namespaced(kind, namespace, &*parent.name));
    let items = object.and_then(|object| object.body.get("spec")?.get(list)?.as_array());
    let named: Vec<String> = (items.into_iter().flatten())
        .map(|item| {
            let name = item["name"].as_str().unwrap_or("without a name");
            format!("{} ({name})", item["port"])
        })
        .collect();
    match named.is_empty() {
        true => "name a Service with a virtual address, or a Gateway".to_owned(),
        false => format!("write {fields} of one that is there: {}", named.join(", ")),
    }
}
