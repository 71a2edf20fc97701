//! What objects refer to, as they are written: whether anything is there is asked elsewhere.

use culvert_objects::types::{GATEWAY_GROUP, ParentKind, ParentRef};
use culvert_objects::{Kind, ObjectKey};
use serde_json::Value;

use crate::context::Document;

/// What a reference is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Parent,
    Backend,
    Mirror,
    Certificate,
    Authority,
    Class,
    Target,
}

impl Role {
    /// What comes of it when nothing is there.
    pub fn consequence(self) -> &'static str {
        match self {
            Role::Parent => "without it the route is attached nowhere",
            Role::Backend => "without it its share of requests is answered 500",
            Role::Mirror => "without it nothing is mirrored",
            Role::Certificate => "without it the listener has no certificate",
            Role::Authority => "without it no certificate can be checked",
            Role::Class => "without it nobody serves the Gateway",
            Role::Target => "without it the policy is for nothing",
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

/// Every reference of every object.
pub fn all(documents: &[Document]) -> Vec<Reference> {
    let mut found = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let mut collector = Collector { document: index, namespace: document.namespace(), found: &mut found };
        let spec = &document.value["spec"];
        match document.key.as_ref().map(|key| key.kind) {
            Some(kind) if Kind::ROUTES.contains(&kind) => collector.route(spec),
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

impl Collector<'_> {
    fn route(&mut self, spec: &Value) {
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
            self.each(&rule["backendRefs"], &format!("{at}.backendRefs"), Role::Backend);
            for (index, backend) in items(&rule["backendRefs"]) {
                self.filters(backend, &format!("{at}.backendRefs[{index}]"));
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
