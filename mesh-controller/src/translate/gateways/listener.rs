//! Listeners of a Gateway, one by one.

use std::collections::BTreeMap;

use culvert_api::mesh as pb;
use culvert_api::names::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};
use culvert_objects::types::{AllowedRoutes, GATEWAY_GROUP, GatewayListener, LabelSelector, RouteNamespaces};
use culvert_objects::{Kind, Objects};
use culvert_routing::model::{Hostname, RouteKind};

/// One of `spec.listeners`.
#[derive(Clone, Debug)]
pub struct Listener {
    pub name: String,
    /// Name of its resource.
    pub resource: String,
    pub port: u16,
    pub protocol: Protocol,
    pub hostname: Option<Hostname>,
    pub namespaces: Namespaces,
    /// The kinds of routes that may attach, in the order of the specification.
    pub kinds: Vec<RouteKind>,
    /// Kinds asked for that it does not serve.
    pub unknown_kinds: Vec<String>,
    /// Why it is not accepted: reason and message.
    pub refused: Option<(&'static str, String)>,
    /// Reason and message of its conflict with another listener of the Gateway.
    pub conflict: Option<(&'static str, String)>,
}

/// `protocol` as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    /// HTTPS and TLS.
    Secured,
    Tcp,
    Udp,
    Other,
}

/// `allowedRoutes.namespaces`.
#[derive(Clone, Debug, PartialEq)]
pub enum Namespaces {
    All,
    Same,
    Selected(LabelSelector),
}

impl Listener {
    /// Reads one listener of the Gateway `namespace/name`.
    pub fn read(written: &GatewayListener, gateway: &str, index: usize) -> Self {
        let at = |field: &str| format!("spec.listeners[{index}].{field}");
        let mut faults: Vec<(&'static str, String)> = Vec::new();
        let protocol = protocol(&written.protocol);
        if protocol != Protocol::Http {
            let message =
                format!("{}: this version of Culvert serves HTTP, not {}", at("protocol"), written.protocol);
            faults.push(("UnsupportedProtocol", message));
        }
        let unsupported = |field: String| {
            ("UnsupportedValue", format!("{field}: this version of Culvert does not do this"))
        };
        faults.extend(written.rest.keys().map(|field| unsupported(at(field))));
        if [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT].contains(&written.port) {
            faults.push((
                "PortUnavailable",
                format!("{}: {} is a port of the mesh itself", at("port"), written.port),
            ));
        }
        let hostname = match written.hostname.as_deref().filter(|name| !name.is_empty()).map(Hostname::parse)
        {
            None => None,
            Some(Ok(hostname)) => Some(hostname),
            Some(Err(error)) => {
                faults.push(("UnsupportedValue", format!("{}: {error}", at("hostname"))));
                None
            }
        };
        let default = AllowedRoutes::default();
        let allowed = written.allowed_routes.as_ref().unwrap_or(&default);
        faults.extend(allowed.rest.keys().map(|field| unsupported(at(&format!("allowedRoutes.{field}")))));
        let namespaces = namespaces(allowed.namespaces.as_ref()).unwrap_or_else(|message| {
            faults.push(("UnsupportedValue", format!("{}: {message}", at("allowedRoutes.namespaces"))));
            Namespaces::Same
        });
        let (kinds, unknown_kinds) = kinds(allowed, protocol);
        Self {
            name: written.name.clone(),
            resource: format!("{gateway}/{}", written.name),
            port: written.port,
            protocol,
            hostname,
            namespaces,
            kinds,
            unknown_kinds,
            refused: faults.into_iter().next(),
            conflict: None,
        }
    }

    /// Why routes cannot be served on it.
    pub fn fault(&self) -> Option<&(&'static str, String)> {
        self.refused.as_ref().or(self.conflict.as_ref())
    }

    /// Whether proxies open it, as far as it is concerned.
    pub fn is_usable(&self) -> bool {
        self.fault().is_none() && !self.kinds.is_empty()
    }

    /// Whether routes of a namespace may attach to the listener of a Gateway in `own`.
    pub fn allows(&self, objects: &Objects, own: &str, namespace: &str) -> bool {
        match &self.namespaces {
            Namespaces::All => true,
            Namespaces::Same => own == namespace,
            Namespaces::Selected(selector) => {
                let object = objects.find(Kind::Namespace, "", namespace);
                let mut labels: BTreeMap<String, String> =
                    object.map(|object| object.metadata.labels.clone()).unwrap_or_default();
                // The API server labels every namespace so.
                labels.entry(NAME_LABEL.to_owned()).or_insert_with(|| namespace.to_owned());
                selector.matches(&labels)
            }
        }
    }

    /// What proxies are told.
    pub fn message(&self, gateway: &str) -> pb::Listener {
        pb::Listener {
            gateway: gateway.to_owned(),
            name: self.name.clone(),
            port: self.port.into(),
            hostname: self.hostname.as_ref().map(ToString::to_string).unwrap_or_default(),
            protocol: pb::ListenerProtocol::Http.into(),
        }
    }
}

const NAME_LABEL: &str = "kubernetes.io/metadata.name";

fn protocol(written: &str) -> Protocol {
    match written {
        "HTTP" => Protocol::Http,
        "HTTPS" | "TLS" => Protocol::Secured,
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        _ => Protocol::Other,
    }
}

fn namespaces(written: Option<&RouteNamespaces>) -> Result<Namespaces, String> {
    let default = RouteNamespaces::default();
    let written = written.unwrap_or(&default);
    if let Some(field) = written.rest.keys().next() {
        return Err(format!("this version of Culvert does not do {field}"));
    }
    match written.from.as_deref() {
        None | Some("Same") => Ok(Namespaces::Same),
        Some("All") => Ok(Namespaces::All),
        Some("Selector") => match &written.selector {
            Some(selector) => Ok(Namespaces::Selected(selector.clone())),
            None => Err("from is Selector, expected a selector".to_owned()),
        },
        Some(other) => Err(format!("from is {other:?}, expected All, Selector or Same")),
    }
}

/// The kinds that may attach, and those asked for that the protocol does not carry.
fn kinds(allowed: &AllowedRoutes, protocol: Protocol) -> (Vec<RouteKind>, Vec<String>) {
    if protocol != Protocol::Http {
        return (Vec::new(), Vec::new());
    }
    if allowed.kinds.is_empty() {
        return (vec![RouteKind::Http, RouteKind::Grpc], Vec::new());
    }
    let (mut kinds, mut unknown) = (Vec::new(), Vec::new());
    for of in &allowed.kinds {
        let group = of.group.as_deref().unwrap_or(GATEWAY_GROUP);
        match (group, of.kind.as_str()) {
            (GATEWAY_GROUP, "HTTPRoute") => kinds.push(RouteKind::Http),
            (GATEWAY_GROUP, "GRPCRoute") => kinds.push(RouteKind::Grpc),
            (group, kind) => unknown.push(format!("{kind} of group {group:?}")),
        }
    }
    kinds.dedup();
    (kinds, unknown)
}
