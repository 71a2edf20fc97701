//! Routes that name a Service and have no say on the port that was called.

use culvert_controller::status::DesiredStatus;
use culvert_node_proxy::state::Snapshot;
use culvert_node_proxy::state::model::Service;
use culvert_objects::types::ConditionStatus;
use serde_json::Value;

use super::data::{Explanation, NotApplied, WhyNot};
use super::facts::Facts;
use super::groups::names_in;

/// What was called, and from where.
#[derive(Clone, Copy)]
pub struct At<'a> {
    pub service: &'a Service,
    pub port: u16,
    /// Of the client.
    pub namespace: &'a str,
}

/// Adds replaced routes, those of other clients and ports, and those that were not accepted.
pub fn of_service(explanation: &mut Explanation, facts: &Facts, snapshot: &Snapshot, at: At<'_>) {
    let At { service, port, namespace } = at;
    let mut not_applied = Vec::new();
    let mut add = |reason: WhyNot, message: String, routes: Vec<String>| {
        not_applied.push(NotApplied { reason, message, routes });
    };
    let mut seen: Vec<String> = Vec::new();
    if let Some(group) = explanation.group.as_ref() {
        seen.extend(group.routes.iter().chain(&group.replaced).cloned());
        if !group.replaced.is_empty() {
            let message = format!("consumer routes of {namespace} replace them for its clients");
            add(WhyNot::ReplacedByConsumerRoutes, message, group.replaced.clone());
        }
    }
    let here = snapshot.routes(&service.key, port);
    for (of, group) in
        here.into_iter().flat_map(|routes| &routes.consumers).filter(|(of, _)| **of != *namespace)
    {
        let names = names_in(group);
        seen.extend(names.iter().cloned());
        let message = format!("consumer routes apply to clients in their own namespace, {of}");
        add(WhyNot::ConsumersOfOtherNamespace, message, names);
    }
    let all = snapshot.routed_services().find(|(key, _)| **key == service.key);
    for (other, routes) in
        all.into_iter().flat_map(|(_, routes)| routes.ports()).filter(|(other, _)| *other != port)
    {
        let mine = routes.consumers.iter().filter(|(of, _)| **of == *namespace).map(|(_, group)| group);
        let names: Vec<String> = routes
            .producers
            .iter()
            .chain(mine)
            .flat_map(names_in)
            .filter(|name| !seen.contains(name))
            .collect();
        if !names.is_empty() {
            seen.extend(names.iter().cloned());
            add(WhyNot::OtherPort, format!("attached to port {other}, not to {port}"), names);
        }
    }
    for status in facts.translation.statuses.values() {
        if let Some(message) = refusal(status, service) {
            let routes = vec![format!(
                "{} {}/{}",
                status.key.kind,
                status.key.namespace.as_deref().unwrap_or_default(),
                status.key.name
            )];
            add(WhyNot::NotAccepted, message, routes);
        }
    }
    if explanation.group.is_none() {
        let message = format!("no route applies to port {port} of {} for this client", service.key);
        add(WhyNot::NoRoutes, message, Vec::new());
    }
    explanation.not_applied.extend(not_applied);
}

/// What a route is told of this Service as its parent, when it was not accepted.
fn refusal(status: &DesiredStatus, service: &Service) -> Option<String> {
    let namespace = status.key.namespace.as_deref().unwrap_or_default();
    let is_ours = |parent: &Value| {
        let text = |field: &str| parent.get(field).and_then(Value::as_str);
        text("kind") == Some("Service")
            && text("name") == Some(&*service.name)
            && text("namespace").unwrap_or(namespace) == &*service.namespace
    };
    let parents = status.parents.iter().filter(|parent| is_ours(&parent.parent_ref));
    let mut conditions = parents.flat_map(|parent| &parent.conditions);
    let refused = conditions
        .find(|condition| condition.kind == "Accepted" && condition.status == ConditionStatus::False)?;
    Some(format!("Accepted is False, {}: {}", refused.reason, refused.message))
}
