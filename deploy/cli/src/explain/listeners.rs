//! Calls to a Gateway: whichever address leads to one of its pods, its listener there decides.

use culvert_node_proxy::balance::Family;
use culvert_node_proxy::reason::Reason;
use culvert_node_proxy::state::model::{Service, Workload};
use culvert_objects::Object;
use std::net::SocketAddr;

use super::data::{End, Explanation, Outcome, Parent};
use super::endpoints::Chooser;
use super::facts::{Facts, FactsError, GatewayAt, says_enrolled};
use super::question::{Question, Speaks};
use super::requests::{self, Asked, AskedParent};

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
    explanation.backends.clear();
    let passed = |message: String| vec![Outcome { share: 1.0, end: End::Passed { message } }];
    let Some(pod) = gateway.pods.iter().find(|pod| says_enrolled(pod)) else {
        let message = format!("no pod of Gateway {} is enrolled: its listeners are not open", gateway.name);
        explanation.outcomes = passed(message);
        return Ok(());
    };
    if question.speaks != Speaks::Http {
        let message = format!("port {} of Gateway {} is for HTTP", gateway.port, gateway.name);
        let reason = Reason::ProtocolMismatch.to_string();
        explanation.outcomes = vec![Outcome { share: 1.0, end: End::Refused { reason, message } }];
        return Ok(());
    }
    let (snapshot, source) = facts.own_view(pod)?;
    let mut listeners = snapshot.listeners();
    if !listeners.any(|one| *one.gateway == *gateway.name && one.port == gateway.port) {
        let message = format!("Gateway {} has no listener on port {}", gateway.name, gateway.port);
        explanation.outcomes = passed(message);
        return Ok(());
    }
    explanation.outcomes.clear();
    let chooser = Chooser { snapshot: &snapshot, source: &source, family: Family::V4 };
    let client = facts.address_of(&question.from);
    let parent = AskedParent::Gateway { gateway: &gateway.name, client };
    requests::explain(explanation, question, &Asked { chooser, port: gateway.port, parent });
    Ok(())
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
