//! What other objects say about backends: which references are granted, where TLS is asked for, whose sessions are kept.

use std::collections::{BTreeMap, HashMap, HashSet};

use culvert_objects::types::{GATEWAY_GROUP, ReferenceGrantSpec};
use culvert_objects::{Kind, Objects};
use culvert_routing::model::{RouteKey, RouteKind};
use serde_json::Value;

use super::normalize::session::DraftSession;

/// All of it. Equal policies let routes that have not changed stay as they are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Policies {
    pub grants: Grants,
    pub tls: TlsPolicies,
    pub sessions: Sessions,
}

impl Policies {
    pub fn of(objects: &Objects, sessions: Sessions) -> Self {
        Self { grants: Grants::of(objects), tls: TlsPolicies::of(objects), sessions }
    }
}

/// What XBackendTrafficPolicies say of the sessions of Services, by namespace and name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sessions(pub BTreeMap<(String, String), DraftSession>);

impl Sessions {
    pub fn of(&self, namespace: &str, service: &str) -> Option<&DraftSession> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&(namespace.to_owned(), service.to_owned()))
    }
}

/// Grants of references from routes to Services.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Grants {
    granted: HashSet<Grant>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Grant {
    from: (RouteKind, String),
    namespace: String,
    /// None: any Service of the namespace.
    name: Option<String>,
}

impl Grants {
    /// Every ReferenceGrant, also under its former name. A grant with fields that nobody knows grants nothing: they could
    /// only narrow it.
    fn of(objects: &Objects) -> Self {
        let mut granted = HashSet::new();
        for kind in [Kind::ReferenceGrant, Kind::ReferencePolicy] {
            for object in objects.of_kind(kind) {
                let Ok(spec) = object.spec::<ReferenceGrantSpec>() else { continue };
                let from =
                    spec.from.iter().filter(|from| from.group == GATEWAY_GROUP && from.rest.is_empty());
                for from in from {
                    let Some(route) = RouteKind::named(&from.kind) else { continue };
                    let to = spec.to.iter();
                    let to =
                        to.filter(|to| to.group.is_empty() && to.kind == "Service" && to.rest.is_empty());
                    granted.extend(to.map(|to| Grant {
                        from: (route, from.namespace.clone()),
                        namespace: object.namespace().to_owned(),
                        name: to.name.clone().filter(|name| !name.is_empty()),
                    }));
                }
            }
        }
        Self { granted }
    }

    pub fn allow(&self, route: &RouteKey, namespace: &str, name: &str) -> bool {
        let grant = |name: Option<&str>| Grant {
            from: (route.kind, route.namespace.to_string()),
            namespace: namespace.to_owned(),
            name: name.map(str::to_owned),
        };
        !self.granted.is_empty()
            && (self.granted.contains(&grant(None)) || self.granted.contains(&grant(Some(name))))
    }
}

/// Backends that a BackendTLSPolicy asks to speak TLS to. This version does not, and must not speak plaintext to them instead
/// (GEP-1897: a connection that cannot be made as the policy says fails).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TlsPolicies {
    /// By namespace and name of the Service.
    services: HashMap<(String, String), Vec<TlsPolicy>>,
}

#[derive(Debug, PartialEq, Eq)]
struct TlsPolicy {
    name: String,
    /// Name of the port it is for; None: for all of them.
    section: Option<String>,
}

impl TlsPolicies {
    fn of(objects: &Objects) -> Self {
        let mut services: HashMap<_, Vec<TlsPolicy>> = HashMap::new();
        for object in objects.of_kind(Kind::BackendTlsPolicy) {
            let spec = object.body.get("spec");
            // The field had another form in v1alpha2.
            let several = spec.and_then(|spec| spec.get("targetRefs")).and_then(Value::as_array);
            let targets = several.into_iter().flatten().chain(spec.and_then(|spec| spec.get("targetRef")));
            for target in targets {
                let text = |field: &str| target.get(field).and_then(Value::as_str).unwrap_or_default();
                if text("group").is_empty() && text("kind") == "Service" {
                    let key = (object.namespace().to_owned(), text("name").to_owned());
                    let section = Some(text("sectionName").to_owned()).filter(|section| !section.is_empty());
                    let policy = TlsPolicy { name: object.name().to_owned(), section };
                    services.entry(key).or_default().push(policy);
                }
            }
        }
        Self { services }
    }

    /// What a policy asks of a port of a Service, in words.
    pub fn of_port(&self, namespace: &str, service: &str, port: &str) -> Option<String> {
        if self.services.is_empty() {
            return None;
        }
        let policies = self.services.get(&(namespace.to_owned(), service.to_owned()))?;
        let fits = |policy: &&TlsPolicy| policy.section.as_deref().is_none_or(|section| section == port);
        let policy = &policies.iter().find(fits)?.name;
        Some(format!(
            "to be spoken to in TLS (BackendTLSPolicy {namespace}/{policy}), which this version does not do"
        ))
    }
}
