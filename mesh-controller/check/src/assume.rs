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
        assumptions.objects.extend(stand_in(key, &uses));
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

/// A class of Culvert's.
pub fn class(name: &str) -> Object {
    let mut object = Object::new(ObjectKey::cluster(Kind::GatewayClass, name));
    object.body.insert("spec".to_owned(), json!({"controllerName": GATEWAY_CONTROLLER}));
    object
}

fn ports(uses: &[&Reference]) -> Vec<Value> {
    let mut ports: BTreeMap<u16, String> = BTreeMap::new();
    for of in uses {
        let Some(number) = of.port else { continue };
        let name = of.section.clone().filter(|_| of.role == Role::Parent);
        ports.insert(number, name.unwrap_or_else(|| format!("http-{number}")));
    }
    // Named only, so any free number will do.
    let named = uses.iter().filter(|of| of.port.is_none()).filter_map(|of| of.section.clone());
    for name in named.filter(|_| uses.iter().any(|of| of.role == Role::Parent)) {
        let number = (1..=u16::MAX).rev().find(|number| !ports.contains_key(number)).unwrap_or(80);
        if !ports.values().any(|other| *other == name) {
            ports.insert(number, name);
        }
    }
    if ports.is_empty() {
        ports.insert(80, "http".to_owned());
    }
    ports.into_iter().map(|(port, name)| json!({"port": port, "name": name})).collect()
}

fn listeners(uses: &[&Reference]) -> Vec<Value> {
    let mut listeners: BTreeMap<String, u16> = BTreeMap::new();
    for (index, of) in uses.iter().enumerate() {
        let name = of.section.clone().unwrap_or_else(|| format!("assumed-{index}"));
        let port = of.port.unwrap_or(80);
        if of.section.is_some() || !listeners.values().any(|other| *other == port) {
            listeners.insert(name, port);
        }
    }
    let listener = |(name, port): (String, u16)| json!({"name": name, "port": port, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}});
    listeners.into_iter().map(listener).collect()
}
