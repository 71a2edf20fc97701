//! One Gateway: its listeners, and what stops it as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_api::names::NEVER_ENROLLED_NAMESPACES;
use culvert_objects::Object;
use culvert_objects::types::{GatewayAddress, GatewayInfrastructure, GatewaySpec};
use serde_json::Value;

use super::conflicts;
use super::listener::Listener;
use crate::translate::services;

/// A Gateway of a class of Culvert's.
#[derive(Debug)]
pub struct Gateway {
    pub object: Arc<Object>,
    pub listeners: Vec<Listener>,
    /// Why nothing of it is served: reason and message.
    pub refused: Option<(&'static str, String)>,
    pub infrastructure: GatewayInfrastructure,
    /// From any namespace at all.
    pub allows_listener_sets: bool,
}

impl Gateway {
    /// None when its class is somebody else's. `classes` says of each of Culvert's whether it is accepted.
    pub fn read(object: &Arc<Object>, classes: &BTreeMap<String, bool>) -> Option<Self> {
        let spec: GatewaySpec = match object.spec() {
            Ok(spec) => spec,
            Err(error) => {
                // The class alone says whose it is.
                let class = object.body.get("spec").and_then(|spec| spec.get("gatewayClassName"));
                classes.get(class.and_then(Value::as_str)?)?;
                return Some(Self {
                    object: object.clone(),
                    listeners: Vec::new(),
                    refused: Some(("UnsupportedValue", error.to_string())),
                    infrastructure: GatewayInfrastructure::default(),
                    allows_listener_sets: false,
                });
            }
        };
        let is_accepted = *classes.get(&spec.gateway_class_name)?;
        let refused = match is_accepted {
            true => of_system(object).or_else(|| fault(&spec)),
            false => Some(("Pending", format!("GatewayClass {} is not accepted", spec.gateway_class_name))),
        };
        let key = services::key(object.namespace(), object.name());
        let listeners = spec.listeners.iter().enumerate();
        let mut listeners: Vec<Listener> =
            listeners.map(|(index, listener)| Listener::read(listener, &key, index)).collect();
        conflicts::mark(&mut listeners);
        let from = spec.rest.get("allowedListeners").and_then(|allowed| allowed.pointer("/namespaces/from"));
        let allows_listener_sets = from.and_then(Value::as_str).is_some_and(|from| from != "None");
        let infrastructure = spec.infrastructure.unwrap_or_default();
        Some(Self { object: object.clone(), listeners, refused, infrastructure, allows_listener_sets })
    }

    pub fn namespace(&self) -> &str {
        self.object.namespace()
    }

    pub fn name(&self) -> &str {
        self.object.name()
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        services::key(self.namespace(), self.name())
    }

    /// The listeners that proxies open, with the Gateway's key.
    pub fn served(&self) -> impl Iterator<Item = (&str, &Listener)> {
        let usable = self.listeners.iter().filter(|listener| self.serves(listener));
        usable
            .map(|listener| (listener.resource.rsplit_once('/').map_or("", |(gateway, _)| gateway), listener))
    }

    /// Whether proxies open a listener of it.
    pub fn serves(&self, listener: &Listener) -> bool {
        self.refused.is_none() && listener.is_usable()
    }
}

/// The pods of a Gateway are in its namespace, and listeners are opened in pods of the mesh only.
fn of_system(object: &Object) -> Option<(&'static str, String)> {
    let namespace = object.namespace();
    let message = || format!("metadata.namespace: pods of {namespace} are never part of the mesh");
    NEVER_ENROLLED_NAMESPACES.contains(&namespace).then(|| ("UnsupportedValue", message()))
}

/// What stops a Gateway as a whole.
fn fault(spec: &GatewaySpec) -> Option<(&'static str, String)> {
    for (field, value) in &spec.rest {
        // ListenerSets have their own status; that they are allowed changes nothing of the Gateway.
        let harmless = field == "allowedListeners" || (field == "defaultScope" && value == "None");
        if !harmless {
            return Some((
                "UnsupportedValue",
                format!("spec.{field}: this version of Culvert does not do this field"),
            ));
        }
    }
    if let Some(infrastructure) = &spec.infrastructure {
        if let Some(parameters) = &infrastructure.parameters_ref {
            let message = format!(
                "spec.infrastructure.parametersRef: {} {} is not known; Gateways have no parameters in this version",
                parameters.kind, parameters.name
            );
            return Some(("InvalidParameters", message));
        }
        if let Some(field) = infrastructure.rest.keys().next() {
            let message =
                format!("spec.infrastructure.{field}: this version of Culvert does not do this field");
            return Some(("UnsupportedValue", message));
        }
    }
    // An address without value asks for one to be assigned, as a Gateway without addresses does.
    let assigned = |address: &GatewayAddress| {
        matches!(address.kind.as_deref(), None | Some("IPAddress"))
            && address.value.as_deref().unwrap_or_default().is_empty()
    };
    let index = spec.addresses.iter().position(|address| !assigned(address))?;
    let message =
        format!("spec.addresses[{index}]: this version of Culvert assigns addresses, it takes none");
    Some(("UnsupportedAddress", message))
}
