//! Objects that others refer to and that are not in the files. They are taken as being there as they would have to be, so
//! that the rest can be judged, and each is told once: how sure it is that it is missing depends on what the files say of its
//! namespace.

use std::collections::{BTreeMap, BTreeSet};

use culvert_api::names::GATEWAY_CONTROLLER;
use culvert_objects::{Kind, Object, ObjectKey, Objects};
use serde_json::{Value, json};

use crate::code::Code;
use crate::context::Absent;
use crate::references::{Reference, Role};
use crate::words::nearest;

/// The class that Culvert's installation makes.
pub const CLASS: &str = "culvert";
/// Of a Service of which nobody names a port.
const SOME_PORT: u16 = 80;
/// What listeners of which nobody names one are called, before a number.
const SOME_LISTENER: &str = "assumed-";

/// An object that is not in the files.
#[derive(Clone, Debug, PartialEq)]
pub struct Gone {
    pub key: ObjectKey,
    /// Into the list of references; never empty.
    pub references: Vec<usize>,
    /// How sure it is that there is none.
    pub code: Code,
    /// An object of that kind with nearly that name, or with that name in another namespace.
    pub near: Option<ObjectKey>,
}

#[derive(Debug, Default)]
pub struct Assumptions {
    pub objects: Vec<Object>,
    pub gone: Vec<Gone>,
    /// Ports and listeners that nobody wrote, as findings name them, and what is said instead.
    invented: Vec<(String, String)>,
}

impl Assumptions {
    /// A text without what nobody wrote.
    pub fn said(&self, text: &str) -> String {
        let mut said = text.to_owned();
        for (invented, instead) in &self.invented {
            let mut from = 0;
            while let Some(at) = said[from..].find(invented.as_str()).map(|at| from + at) {
                let end = at + invented.len();
                // Another name may begin so.
                let goes_on =
                    said[end..].starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
                from = if goes_on { end } else { at + instead.len() };
                if !goes_on {
                    said.replace_range(at..end, instead);
                }
            }
        }
        said
    }
}

/// What is referred to and neither in `keys` nor told of by `absent`.
pub fn assume(
    keys: &BTreeSet<ObjectKey>,
    written: &Objects,
    references: &[Reference],
    absent: Absent,
) -> Assumptions {
    let mut by_key: BTreeMap<&ObjectKey, Vec<usize>> = BTreeMap::new();
    for (index, reference) in references.iter().enumerate() {
        if !keys.contains(&reference.to) {
            by_key.entry(&reference.to).or_default().push(index);
        }
    }
    let mut assumptions = Assumptions::default();
    for (key, found) in by_key {
        let uses: Vec<&Reference> = found.iter().map(|index| &references[*index]).collect();
        let stand_in = stand_in(key, &uses);
        assumptions.invented.extend(stand_in.iter().flat_map(|object| invented(object, &uses)));
        assumptions.objects.extend(stand_in);
        let is_ours = key.kind == Kind::GatewayClass && key.name == CLASS;
        if absent != Absent::There && !is_ours {
            let near = near(key, keys);
            let code =
                if absent == Absent::Missing { Code::Missing } else { judged(key, keys, near.as_ref()) };
            assumptions.gone.push(Gone { key: key.clone(), references: found, code, near });
        }
    }
    let made = assumptions.objects.iter().any(|of| of.kind == Kind::GatewayClass && of.name() == CLASS);
    if !made && written.find(Kind::GatewayClass, "", CLASS).is_none() {
        assumptions.objects.push(class(CLASS));
    }
    assumptions
}

/// A namespace that the files create is described by them; one of which they have other objects of the kind probably is.
fn judged(key: &ObjectKey, keys: &BTreeSet<ObjectKey>, near: Option<&ObjectKey>) -> Code {
    let Some(namespace) = &key.namespace else {
        return if near.is_some() { Code::ProbablyMissing } else { Code::NotInFiles };
    };
    let is_created = keys.contains(&ObjectKey::cluster(Kind::Namespace, namespace.as_str()));
    let has_others = keys.iter().any(|other| other.kind == key.kind && other.namespace == key.namespace);
    // Certificates are often made by others, after everything else.
    let comes_later = matches!(key.kind, Kind::Secret | Kind::ConfigMap);
    match (is_created && !comes_later, (has_others && !comes_later) || near.is_some()) {
        (true, _) => Code::Missing,
        (false, true) => Code::ProbablyMissing,
        (false, false) => Code::NotInFiles,
    }
}

fn near(key: &ObjectKey, keys: &BTreeSet<ObjectKey>) -> Option<ObjectKey> {
    let of_kind = || keys.iter().filter(|other| other.kind == key.kind);
    let here: Vec<&ObjectKey> = of_kind().filter(|other| other.namespace == key.namespace).collect();
    let slip = nearest(&key.name, here.iter().map(|other| other.name.as_str()));
    let slip = slip.and_then(|name| here.iter().find(|other| other.name == name).copied());
    slip.or_else(|| of_kind().find(|other| other.name == key.name)).cloned()
}

/// The object as its users need it.
fn stand_in(key: &ObjectKey, uses: &[&Reference]) -> Option<Object> {
    let spec = match key.kind {
        Kind::Service => json!({"ports": ports(uses)}),
        Kind::Gateway => json!({"gatewayClassName": CLASS, "listeners": listeners(uses)}),
        Kind::GatewayClass => return Some(class(&key.name)),
        _ => return None,
    };
    let mut object = Object::new(key.clone());
    object.body.insert("spec".to_owned(), spec);
    Some(object)
}

/// What a stand-in has that none of its users names.
fn invented(object: &Object, uses: &[&Reference]) -> Vec<(String, String)> {
    let key = object.key();
    let place = format!("{}/{}", key.namespace.as_deref().unwrap_or_default(), key.name);
    let list = |field: &str| {
        let items = object.body.get("spec").and_then(|spec| spec.get(field)?.as_array());
        items.into_iter().flatten()
    };
    let is_named = |port: &Value| uses.iter().any(|of| *port == json!(of.port));
    let ports = list("ports").filter(|port| !is_named(&port["port"])).map(|port| {
        let instead = match port["name"].as_str().filter(|name| !name.is_empty()) {
            Some(name) => format!("port {name} of {key}"),
            None => key.to_string(),
        };
        (format!("port {} of {key}", port["port"]), instead)
    });
    let names = list("listeners").filter_map(|listener| listener["name"].as_str());
    let listeners = names
        .filter(|name| name.starts_with(SOME_LISTENER))
        .map(|name| (format!("listener {place}/{name}"), key.to_string()));
    ports.chain(listeners).collect()
}

/// A class of Culvert's.
pub fn class(name: &str) -> Object {
    let mut object = Object::new(ObjectKey::cluster(Kind::GatewayClass, name));
    object.body.insert("spec".to_owned(), json!({"controllerName": GATEWAY_CONTROLLER}));
    object
}

/// Names are those that somebody wrote: a port's name says what it carries.
fn ports(uses: &[&Reference]) -> Vec<Value> {
    let mut ports: BTreeMap<u16, String> = BTreeMap::new();
    for of in uses {
        let Some(number) = of.port else { continue };
        let name = ports.entry(number).or_default();
        if let Some(section) = of.section.as_ref().filter(|_| of.role == Role::Parent) {
            name.clone_from(section);
        }
    }
    // Named only, so any free number will do.
    let named = uses.iter().filter(|of| of.port.is_none()).filter_map(|of| of.section.clone());
    for name in named.filter(|_| uses.iter().any(|of| of.role == Role::Parent)) {
        let number = (1..=u16::MAX).rev().find(|number| !ports.contains_key(number)).unwrap_or(SOME_PORT);
        if !ports.values().any(|other| *other == name) {
            ports.insert(number, name);
        }
    }
    if ports.is_empty() {
        ports.insert(SOME_PORT, String::new());
    }
    ports.into_iter().map(|(port, name)| json!({"port": port, "name": name})).collect()
}

fn listeners(uses: &[&Reference]) -> Vec<Value> {
    let mut listeners: BTreeMap<String, u16> = BTreeMap::new();
    for (index, of) in uses.iter().enumerate() {
        let name = of.section.clone().unwrap_or_else(|| format!("{SOME_LISTENER}{index}"));
        let port = of.port.unwrap_or(80);
        if of.section.is_some() || !listeners.values().any(|other| *other == port) {
            listeners.insert(name, port);
        }
    }
    let listener = |(name, port): (String, u16)| json!({"name": name, "port": port, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}});
    listeners.into_iter().map(listener).collect()
}
