//! Calls to a Gateway: whichever address leads to one of its pods, its listener there decides.

use culvert_node_proxy::balance::Family;
use culvert_node_proxy::state::Snapshot;
use culvert_node_proxy::state::model::{Listener, Service, Workload};
use culvert_objects::Object;
use culvert_routing::host::Host;
use culvert_routing::model::Hostname;
use http::header::HOST;
use std::net::SocketAddr;
use std::sync::Arc;

use super::data::{End, Explanation, Group, GroupKind, Outcome, Parent};
use super::endpoints::Chooser;
use super::explanation::names_in;
use super::facts::{Facts, FactsError, GatewayAt, says_enrolled};
use super::question::Question;
use super::requests::{self, Asked};

/// A client that is not captured. False when the address does not lead to a Gateway.
pub fn from_outside(
    explanation: &mut Explanation,
    facts: &Facts,
    question: &Question,
    to: SocketAddr,
) -> Result<bool, FactsError> {
    let Some(gateway) = facts.gateway_at(to) else { return Ok(false) };
    at(explanation, facts, question, &gateway)?;
    Ok(true)
}

/// The endpoints of a Service that a captured client calls may be pods of a Gateway.
pub fn behind_service(
    explanation: &mut Explanation,
    facts: &Facts,
    question: &Question,
    service: &Service,
    port: u16,
) -> Result<(), FactsError> {
    let address = service.vips.first().map(|vip| SocketAddr::new(*vip, port));
    match address.and_then(|to| facts.gateway_at(to)) {
        Some(gateway) => at(explanation, facts, question, &gateway),
        None => Ok(()),
    }
}

/// The pod that a captured client calls may be one of a Gateway.
pub fn behind_pod(
    explanation: &mut Explanation,
    facts: &Facts,
    question: &Question,
    workload: &Workload,
    port: u16,
) -> Result<(), FactsError> {
    let address = workload.addresses.first().map(|address| SocketAddr::new(*address, port));
    match address.and_then(|to| facts.gateway_at(to)) {
        Some(gateway) => at(explanation, facts, question, &gateway),
        None => Ok(()),
    }
}

fn at(
    explanation: &mut Explanation,
    facts: &Facts,
    question: &Question,
    gateway: &GatewayAt,
) -> Result<(), FactsError> {
    let pods = gateway.pods.iter().map(|pod| format!("{}/{}", pod.namespace(), pod.name())).collect();
    explanation.parent = Parent::Listener { gateway: gateway.name.clone(), listener: None, pods };
    let open = gateway.pods.iter().find(|pod| says_enrolled(pod));
    let Some(pod) = open else {
        let message = format!("no pod of Gateway {} is enrolled: its listeners are not open", gateway.name);
        explanation.outcomes = vec![Outcome { share: 1.0, end: End::Passed { message } }];
        return Ok(());
    };
    let (snapshot, source) = facts.own_view(pod)?;
    let of_port: Vec<&Arc<Listener>> = snapshot
        .listeners()
        .filter(|listener| *listener.gateway == *gateway.name && listener.port == gateway.port)
        .collect();
    let picked = pick(&of_port, &host(question));
    if let Parent::Listener { listener, .. } = &mut explanation.parent {
        *listener = picked.map(|picked| picked.name.to_string());
    }
    if of_port.is_empty() {
        let message = format!("Gateway {} has no listener on port {}", gateway.name, gateway.port);
        explanation.outcomes = vec![Outcome { share: 1.0, end: End::Passed { message } }];
        return Ok(());
    }
    decide(explanation, question, &snapshot, &source, gateway.port, picked);
    Ok(())
}

fn decide(
    explanation: &mut Explanation,
    question: &Question,
    snapshot: &Snapshot,
    source: &Workload,
    port: u16,
    listener: Option<&Arc<Listener>>,
) {
    let group = listener.and_then(|listener| snapshot.listener_routes(&listener.name));
    explanation.group = group.map(|group| Group {
        kind: GroupKind::Listener,
        namespace: None,
        routes: names_in(group),
        replaced: Vec::new(),
    });
    explanation.backends.clear();
    explanation.outcomes.clear();
    let chooser = Chooser { snapshot, source, family: Family::V4 };
    requests::explain(explanation, question, &Asked { chooser, group, port, unrouted: None });
}

/// The listener with the most specific hostname that matches.
fn pick<'a>(listeners: &[&'a Arc<Listener>], host: &str) -> Option<&'a Arc<Listener>> {
    let fits =
        |listener: &&&Arc<Listener>| listener.hostname.as_ref().is_none_or(|hostname| hostname.matches(host));
    let rank = |listener: &&&Arc<Listener>| match &listener.hostname {
        Some(Hostname::Exact(name)) => (2, name.len()),
        Some(Hostname::Wildcard(suffix)) => (1, suffix.len()),
        None => (0, 0),
    };
    listeners.iter().filter(fits).max_by_key(rank).copied()
}

fn host(question: &Question) -> String {
    let given = question.headers.get(HOST).and_then(|host| host.to_str().ok());
    let authority = given.unwrap_or(&question.authority);
    // What is no host is refused when the request is looked at.
    Host::parse(authority).map(|host| host.into_name().into_owned()).unwrap_or_default()
}

/// Whether an object is the Service that has the address, as its own or its load balancer's.
pub fn has_address(service: &Object, address: std::net::IpAddr) -> bool {
    let text = address.to_string();
    let spec: culvert_objects::types::ServiceSpec = service.spec().unwrap_or_default();
    let ingress = service.body.get("status").and_then(|status| status.pointer("/loadBalancer/ingress"));
    let mut ingress = ingress.and_then(serde_json::Value::as_array).into_iter().flatten();
    spec.vips().contains(&address)
        || ingress.any(|one| one.get("ip").and_then(serde_json::Value::as_str) == Some(&text))
}
