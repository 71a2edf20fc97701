//! Routes that Culvert does not honour as they are written, from their statuses.

use culvert_api::names::GATEWAY_CONTROLLER;
use culvert_controller::CONTROLLER_NAME;
use culvert_objects::{Kind, Objects};
use serde::Serialize;
use serde_json::Value;

/// A condition of a route at one of its parents that is not as wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedRoute {
    /// `KIND NAMESPACE/NAME`
    pub route: String,
    /// As in `Service cart:80`.
    pub parent: String,
    pub condition: String,
    pub reason: String,
    pub message: String,
}

/// By kind and name.
pub fn refused(objects: &Objects) -> Vec<RefusedRoute> {
    let mut all = Vec::new();
    for route in Kind::ROUTES.iter().flat_map(|kind| objects.of_kind(*kind)) {
        let parents = route.body.get("status").and_then(|status| status.get("parents")?.as_array());
        let own = |parent: &&Value| {
            let by = parent.get("controllerName").and_then(Value::as_str);
            matches!(by, Some(CONTROLLER_NAME | GATEWAY_CONTROLLER))
        };
        for parent in parents.into_iter().flatten().filter(own) {
            let conditions = parent.get("conditions").and_then(Value::as_array).into_iter().flatten();
            for condition in conditions.filter(|of| is_bad(of)) {
                let text =
                    |field: &str| condition.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
                all.push(RefusedRoute {
                    route: route.key().to_string(),
                    parent: name(parent.get("parentRef").unwrap_or(&Value::Null)),
                    condition: text("type"),
                    reason: text("reason"),
                    message: text("message"),
                });
            }
        }
    }
    all
}

/// Accepted and ResolvedRefs are to be true; PartiallyInvalid is not.
fn is_bad(condition: &Value) -> bool {
    let is = |field: &str, value: &str| condition.get(field).and_then(Value::as_str) == Some(value);
    is("status", if is("type", "PartiallyInvalid") { "True" } else { "False" })
}

fn name(reference: &Value) -> String {
    let text = |field: &str| reference.get(field).and_then(Value::as_str);
    let mut name = format!("{} ", text("kind").unwrap_or("Gateway"));
    if let Some(namespace) = text("namespace") {
        name.push_str(&format!("{namespace}/"));
    }
    name.push_str(text("name").unwrap_or_default());
    if let Some(port) = reference.get("port").and_then(Value::as_u64) {
        name.push_str(&format!(":{port}"));
    }
    if let Some(section) = text("sectionName") {
        name.push_str(&format!(" ({section})"));
    }
    name
}
