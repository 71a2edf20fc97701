//! Manifests in few words, and what is found in them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside test functions are tests too")]
#![allow(dead_code, reason = "no file of tests uses all of it")]

use culvert_check::{Absent, File, Finding, Report, check};

pub fn with(absent: Absent, text: &str) -> Report {
    check(&[File { path: "m.yaml".into(), text: text.to_owned() }], absent)
}

pub fn findings(text: &str) -> Vec<Finding> {
    with(Absent::There, text).findings
}

/// `CODE field` of each.
pub fn told(text: &str) -> Vec<String> {
    findings(text).iter().map(|of| format!("{} {}", of.code, of.field)).collect()
}

pub fn one(text: &str) -> Finding {
    let mut all = findings(text);
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}

pub fn object(kind: &str, name: &str, spec: &str) -> String {
    let version = match kind {
        "Service" | "Namespace" => "v1",
        _ => "gateway.networking.k8s.io/v1",
    };
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    let namespace = if namespace.is_empty() { String::new() } else { format!(", namespace: {namespace}") };
    format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}{namespace}}}\nspec: {spec}\n")
}

pub fn service(name: &str) -> String {
    object("Service", name, "{selector: {app: a}, ports: [{name: http, port: 80}]}")
}

pub const CART: &str = r#"{group: "", kind: Service, name: cart}"#;

pub fn route(name: &str, parent: &str, rules: &str) -> String {
    object("HTTPRoute", name, &format!("{{parentRefs: [{parent}], rules: [{rules}]}}"))
}

pub fn at_cart(rules: &str) -> String {
    service("shop/cart") + &route("shop/cart", CART, rules)
}

pub const TO_CART: &str = "backendRefs: [{name: cart, port: 80}]";
