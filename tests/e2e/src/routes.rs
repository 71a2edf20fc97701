//! Routes and the versions of a server they choose between, as the YAML a user would write.

use serde_json::{Value, json};

use crate::manifests::Shop;

/// A route object; `kind` is `HTTPRoute` or `GRPCRoute`.
pub fn route(kind: &str, namespace: &str, name: &str, parent: &Value, rules: &Value) -> String {
    route_to(kind, namespace, name, std::slice::from_ref(parent), rules)
}

/// A route object with several parents.
pub fn route_to(kind: &str, namespace: &str, name: &str, parents: &[Value], rules: &Value) -> String {
    let object = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"parentRefs": parents, "rules": rules},
    });
    format!("---\n{object}\n")
}

/// A Service as a parent: all of its ports.
pub fn service_parent(namespace: &str, name: &str) -> Value {
    json!({"group": "", "kind": "Service", "namespace": namespace, "name": name})
}

/// The same, one port.
pub fn port_parent(namespace: &str, name: &str, port: u16) -> Value {
    json!({"group": "", "kind": "Service", "namespace": namespace, "name": name, "port": port})
}

/// A backend on port 8080 with a weight.
pub fn weighted(name: &str, weight: u32) -> Value {
    json!({"name": name, "port": 8080, "weight": weight})
}

/// A backend on port 8080.
pub fn backend(name: &str) -> Value {
    json!({"name": name, "port": 8080})
}

/// A rule that sends what matches to one backend.
pub fn rule(matches: &Value, to: &str) -> Value {
    json!({"matches": matches, "backendRefs": [backend(to)]})
}

impl Shop {
    /// The shop, and beside `server` a Deployment and Service for each of these versions, on `node2`.
    pub fn with_versions(&self, versions: &[&str]) -> String {
        let mut all = self.yaml();
        for version in versions {
            all += &self.account(version);
            all += &self.deployment(version, 1, Some("node2"), &[]);
            all += &self.service(version, &json!({}));
        }
        all
    }
}
