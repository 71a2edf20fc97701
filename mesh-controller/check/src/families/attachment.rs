//! Parents that do not take a route.

use culvert_controller::translate::outcomes::{Outcome, Refusal};
use culvert_objects::types::{GATEWAY_GROUP, ParentKind, ParentRef};
use culvert_objects::{Kind, ObjectKey};

use super::object_of;
use crate::code::Code;
use crate::context::{Context, Document};
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
        let is_ours = matches!(group.as_str(), "" | GATEWAY_GROUP);
        // A Service in the group of Gateways is told by the controller.
        let is_parent = PARENTS.contains(&(&*group, &*kind)) || kind == "Service";
        if is_ours && !is_parent {
            let near = nearest(&kind, PARENTS.iter().map(|(_, kind)| *kind));
            let what =
                format!("routes have no parents of kind {kind} of group {group:?}{}", did_you_mean(near));
            let remedy = "write a Gateway, or a Service with group: \"\" and kind: Service";
            findings.push(document.finding(Code::NoParent, at, what, remedy));
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
    context.finding(code, &route, format!("spec.parentRefs[{parent}]"), refusal.message.clone(), remedy)
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
    let object = context.object(&ObjectKey::namespaced(kind, namespace, &*parent.name));
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
