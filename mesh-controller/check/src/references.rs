//! What objects refer to, as they are written: whether anything is there is asked elsewhere.

use culvert_objects::types::{GATEWAY_GROUP, ParentKind, ParentRef};
use culvert_objects::{Kind, ObjectKey};
use culvert_routing::model::{Carries, RouteKind};
use serde_json::Value;

use crate::context::Document;

/// What a reference is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Parent,
    Backend(Share),
    Mirror,
    Certificate,
    Authority,
    Class,
    Target,
}

/// How much of what a rule takes goes to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub carries: Carries,
    pub weight: u64,
    /// Of all backends of the rule.
    pub sum: u64,
}

impl Share {
    /// What comes of it when the backend cannot be called.
    pub fn lost(self) -> String {
        let (one, many, comes_of_it) = match self.carries {
            Carries::Requests => ("request", "requests", "answered 500"),
            Carries::Tls | Carries::Bytes => ("connection", "connections", "reset"),
        };
        match (self.weight, self.sum) {
            (0, _) => format!("its weight is 0, so no {one} meets it"),
            (weight, sum) if weight == sum => format!("every {one} of the rule is {comes_of_it}"),
            (weight, sum) => format!("{weight} of {sum} {many} of the rule are {comes_of_it}"),
        }
    }
}

/// One reference to an object of a kind that Culvert reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// Its place among the documents.
    pub document: usize,
    pub field: String,
    pub role: Role,
    pub to: ObjectKey,
    pub port: Option<u16>,
    pub section: Option<String>,
}

impl Reference {
    /// What comes of it when nothing is there.
    pub fn consequence(&self) -> String {
        let without = match self.role {
            Role::Parent => "the route is attached nowhere",
            Role::Backend(share) if share.weight == 0 => return share.lost(),
            Role::Backend(share) => &share.lost(),
            Role::Mirror => "nothing is mirrored",
            Role::Certificate => "the listener has no certificate",
            Role::Authority => "no certificate can be checked",
            Role::Class => "nobody serves the Gateway",
            Role::Target => "the policy is for nothing",
        };
        format!("without it {without}")
    }

    /// Whether anybody notices that nothing is there.
    pub fn matters(&self) -> bool {
        !matches!(self.role, Role::Backend(Share { weight: 0, .. }))
    }
}

/// Every reference of every object.
pub fn all(documents: &[Document]) -> Vec<Reference> {
    let mut found = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let mut collector = Collector { document: index, namespace: document.namespace(), found: &mut found };
        let spec = &document.value["spec"];
        match document.key.as_ref().map(|key| key.kind) {
            Some(kind) if Kind::ROUTES.contains(&kind) => {
                let carries = RouteKind::named(kind.as_str()).map_or(Carries::Bytes, RouteKind::carries);
                collector.route(spec, carries);
            }
            Some(Kind::Gateway) => collector.gateway(spec),
            Some(Kind::BackendTlsPolicy | Kind::XBackendTrafficPolicy) => {
                collector.each(&spec["targetRefs"], "spec.targetRefs", Role::Target);
                let authorities = &spec["validation"]["caCertificateRefs"];
                collector.each(authorities, "spec.validation.caCertificateRefs", Role::Authority);
            }
            _ => {}
        }
    }
    found
}

struct Collector<'a> {
    document: usize,
    namespace: &'a str,
    found: &'a mut Vec<Reference>,
}

fn items(value: &Value) -> impl Iterator<Item = (usize, &Value)> {
    value.as_array().into_iter().flatten().enumerate()
}

/// It is 1 unless written.
fn weight(backend: &Value) -> u64 {
    backend["weight"].as_u64().unwrap_or(1)
}

impl Collector<'_> {
    fn route(&mut self, spec: &Value, carries: Carries) {
        for (index, parent) in items(&spec["parentRefs"]) {
            let kind = match ParentRef::guess(parent).parent_kind() {
                ParentKind::Service => Kind::Service,
                ParentKind::Gateway => Kind::Gateway,
                ParentKind::Other => continue,
            };
            self.add(parent, format!("spec.parentRefs[{index}]"), Role::Parent, kind);
        }
        for (index, rule) in items(&spec["rules"]) {
            let at = format!("spec.rules[{index}]");
            self.filters(rule, &at);
            let sum = items(&rule["backendRefs"]).map(|(_, backend)| weight(backend)).sum();
            for (index, backend) in items(&rule["backendRefs"]) {
                let at = format!("{at}.backendRefs[{index}]");
                let share = Share { carries, weight: weight(backend), sum };
                self.one(backend, at.clone(), Role::Backend(share));
                self.filters(backend, &at);
            }
        }
    }

    fn filters(&mut self, of: &Value, at: &str) {
        for (index, filter) in items(&of["filters"]) {
            let mirror = &filter["requestMirror"]["backendRef"];
            self.one(mirror, format!("{at}.filters[{index}].requestMirror.backendRef"), Role::Mirror);
        }
    }

    fn gateway(&mut self, spec: &Value) {
        if let Some(name) = spec["gatewayClassName"].as_str() {
            self.found.push(Reference {
                document: self.document,
                field: "spec.gatewayClassName".to_owned(),
                role: Role::Class,
                to: ObjectKey::cluster(Kind::GatewayClass, name),
                port: None,
                section: None,
            });
        }
        for (index, listener) in items(&spec["listeners"]) {
            let at = format!("spec.listeners[{index}].tls.certificateRefs");
            for (index, certificate) in items(&listener["tls"]["certificateRefs"]) {
                let kind = certificate["kind"].as_str().unwrap_or("Secret");
                if kind == "Secret" {
                    self.add(certificate, format!("{at}[{index}]"), Role::Certificate, Kind::Secret);
                }
            }
        }
    }

    fn each(&mut self, list: &Value, at: &str, role: Role) {
        for (index, value) in items(list) {
            self.one(value, format!("{at}[{index}]"), role);
        }
    }

    /// A reference whose kind is `Service` unless it says otherwise.
    fn one(&mut self, value: &Value, field: String, role: Role) {
        let group = value["group"].as_str().unwrap_or_default();
        let kind = match (group, value["kind"].as_str().unwrap_or("Service")) {
            ("", "Service") => Kind::Service,
            ("", "Secret") => Kind::Secret,
            ("", "ConfigMap") => Kind::ConfigMap,
            (GATEWAY_GROUP, "Gateway") => Kind::Gateway,
            _ => return,
        };
        self.add(value, field, role, kind);
    }

    fn add(&mut self, value: &Value, field: String, role: Role, kind: Kind) {
        let Some(name) = value["name"].as_str().filter(|name| !name.is_empty()) else { return };
        let namespace = value["namespace"].as_str().filter(|namespace| !namespace.is_empty());
        let to = ObjectKey::namespaced(kind, namespace.unwrap_or(self.namespace), name);
        let port = value["port"].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        let section = value["sectionName"].as_str().map(str::to_owned);
        self.found.push(Reference { document: self.document, field, role, to, port, section });
    }
}
