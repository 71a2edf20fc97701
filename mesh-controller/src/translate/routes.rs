//! Statuses of routes whose parent is a Service.

use culvert_objects::{Kind, Object, Objects};
use serde_json::Value;

use super::Statuses;
use crate::CONTROLLER_NAME;
use crate::status::{DesiredCondition, DesiredParent, DesiredStatus};

/// Nothing evaluates routes in this version, and each route with a Service parent is told so.
pub fn statuses(objects: &Objects, statuses: &mut Statuses) {
    for route in Kind::ROUTES.iter().flat_map(|kind| objects.of_kind(*kind)) {
        let parents: Vec<DesiredParent> =
            service_parents(route).map(|parent| refused(parent.clone())).collect();
        if !parents.is_empty() {
            statuses.insert(route.key(), DesiredStatus::of(route).with_parents(parents));
        }
    }
}

/// As written: a status echoes its `parentRef` unchanged.
fn service_parents(route: &Object) -> impl Iterator<Item = &Value> {
    let parents = route.body.get("spec").and_then(|spec| spec.get("parentRefs")).and_then(Value::as_array);
    let text = |parent: &Value, field: &str| parent.get(field).and_then(Value::as_str).map(str::to_owned);
    parents.into_iter().flatten().filter(move |parent| {
        text(parent, "group").as_deref() == Some("") && text(parent, "kind").as_deref() == Some("Service")
    })
}

fn refused(parent_ref: Value) -> DesiredParent {
    let message =
        "this version of Culvert does not evaluate routes; traffic to the Service is not changed by this one";
    DesiredParent {
        parent_ref,
        controller_name: CONTROLLER_NAME.to_owned(),
        conditions: vec![DesiredCondition::no("Accepted", "UnsupportedValue", message)],
    }
}
