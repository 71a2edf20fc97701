//! What a Gateway is told: from the objects here, and from the proxies' reports in [`GatewayFacts::complete`].

use culvert_objects::types::ServiceSpec;
use culvert_objects::{Kind, Objects};
use serde_json::{Value, json};

use super::listener::Listener;
use super::{Attached, Gateway, names};
use crate::status::{DesiredCondition, DesiredListener, DesiredStatus};

/// What the `Programmed` conditions of a Gateway need besides reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayFacts {
    /// In the order of the status: the listener's resource, None when proxies do not open it.
    listeners: Vec<Option<String>>,
    /// `namespace/name` of the Gateway's Service.
    service: String,
    has_address: bool,
}

/// What became of one listener in all pods of its Gateway that were reported of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reported {
    /// Open in all of them.
    Open,
    /// Open in none yet.
    Nothing,
    /// One of them could not open it.
    Failed(String),
}

/// The status of a Gateway without `Programmed`, and what that needs.
pub fn of(gateway: &Gateway, objects: &Objects, attached: &Attached) -> (DesiredStatus, GatewayFacts) {
    let mut status = DesiredStatus::of(&gateway.object).with_condition(accepted(gateway));
    status.listeners = gateway.listeners.iter().map(|at| of_listener(at, attached)).collect();
    let service = names::object(gateway.name());
    let addresses = addresses(objects, gateway.namespace(), &service);
    let facts = GatewayFacts {
        listeners: gateway
            .listeners
            .iter()
            .map(|listener| gateway.serves(listener).then(|| listener.resource.clone()))
            .collect(),
        service: format!("{}/{service}", gateway.namespace()),
        has_address: !addresses.is_empty(),
    };
    if gateway.refused.is_none() && !addresses.is_empty() {
        status.fields.insert("addresses".to_owned(), addresses.into());
    }
    (status, facts)
}

fn accepted(gateway: &Gateway) -> DesiredCondition {
    let bad: Vec<&str> =
        gateway.listeners.iter().filter(|at| at.fault().is_some()).map(|at| at.name.as_str()).collect();
    let message = || format!("not accepted, as their status says: {}", bad.join(", "));
    match &gateway.refused {
        Some((reason, message)) => DesiredCondition::no("Accepted", reason, message.clone()),
        None if bad.len() == gateway.listeners.len() => {
            let message = if bad.is_empty() { "there are no listeners".to_owned() } else { message() };
            DesiredCondition::no("Accepted", "ListenersNotValid", message)
        }
        None if !bad.is_empty() => DesiredCondition::yes("Accepted", "ListenersNotValid", message()),
        None => DesiredCondition::yes("Accepted", "Accepted", "every listener is accepted"),
    }
}

fn of_listener(listener: &Listener, attached: &Attached) -> DesiredListener {
    let accepted = match listener.fault() {
        Some((reason, message)) => DesiredCondition::no("Accepted", reason, message.clone()),
        None => DesiredCondition::yes("Accepted", "Accepted", "accepted"),
    };
    let conflicted = match &listener.conflict {
        Some((reason, message)) => DesiredCondition::yes("Conflicted", reason, message.clone()),
        None => DesiredCondition::no(
            "Conflicted",
            "NoConflicts",
            "no other listener of the Gateway is in its way",
        ),
    };
    let resolved = match &listener.unknown_kinds[..] {
        [] => DesiredCondition::yes("ResolvedRefs", "ResolvedRefs", "every kind of route is served"),
        unknown => {
            let message = format!("allowedRoutes.kinds: not served by this listener: {}", unknown.join(", "));
            DesiredCondition::no("ResolvedRefs", "InvalidRouteKinds", message)
        }
    };
    DesiredListener {
        name: listener.name.clone(),
        supported_kinds: listener.kinds.iter().map(ToString::to_string).collect(),
        attached_routes: attached.get(&listener.resource).copied().unwrap_or_default(),
        conditions: vec![accepted, conflicted, resolved],
    }
}

/// The load-balancer addresses of the Gateway's own Service.
fn addresses(objects: &Objects, namespace: &str, service: &str) -> Vec<Value> {
    let Some(object) = objects.find(Kind::Service, namespace, service) else { return Vec::new() };
    if object.spec::<ServiceSpec>().is_err() {
        return Vec::new();
    }
    let ingress = object.body.get("status").and_then(|status| status.pointer("/loadBalancer/ingress"));
    let address = |of: &Value| {
        let text = |field: &str| of.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        text("ip")
            .map(|ip| json!({"type": "IPAddress", "value": ip}))
            .or_else(|| text("hostname").map(|name| json!({"type": "Hostname", "value": name})))
    };
    ingress.and_then(Value::as_array).into_iter().flatten().filter_map(address).collect()
}

impl GatewayFacts {
    /// Adds `Programmed` of the Gateway and of its listeners; `reported` knows a listener by the name of its resource.
    pub fn complete(&self, status: &mut DesiredStatus, reported: impl Fn(&str) -> Reported) {
        let mut open = 0;
        for (listener, resource) in status.listeners.iter_mut().zip(&self.listeners) {
            let condition = match resource.as_deref().map(&reported) {
                None => DesiredCondition::no(
                    "Programmed",
                    "Invalid",
                    "it is not served; see the other conditions",
                ),
                Some(Reported::Open) => {
                    open += 1;
                    DesiredCondition::yes("Programmed", "Programmed", "open in the pods of the Gateway")
                }
                Some(Reported::Nothing) => {
                    let message = "no node proxy has opened it in a pod of the Gateway yet";
                    DesiredCondition::no("Programmed", "Pending", message)
                }
                Some(Reported::Failed(why)) => DesiredCondition::no("Programmed", "Invalid", why),
            };
            listener.conditions.insert(1, condition);
        }
        let programmed = if self.listeners.iter().all(Option::is_none) {
            DesiredCondition::no("Programmed", "Invalid", "none of its listeners is served")
        } else if !self.has_address {
            let message = format!("Service {} has no load-balancer address yet", self.service);
            DesiredCondition::no("Programmed", "AddressNotAssigned", message)
        } else if open == 0 {
            DesiredCondition::no("Programmed", "Pending", "none of its listeners is open yet")
        } else {
            DesiredCondition::yes("Programmed", "Programmed", "its listeners say of each whether it is open")
        };
        status.conditions.insert(1, programmed);
    }
}
