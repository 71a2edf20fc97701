//! One object as written over the one there is: the file decides, except about what the cluster itself put there.

use std::collections::BTreeMap;

use culvert_objects::{FieldError, Kind, Metadata, Object};
use serde_json::{Map, Value, json};

/// Labels of the cluster's own on namespaces and nodes; a file need not repeat them.
const OURS: [&str; 5] = [
    "kubernetes.io/metadata.name",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// The object to store. Fields that only the cluster sets are dropped from what was written.
///
/// # Errors
/// Names a field that may not change.
pub fn merge(written: &Object, existing: Option<&Object>) -> Result<Object, FieldError> {
    let mut object = written.clone();
    object.metadata = Metadata {
        name: written.metadata.name.clone(),
        namespace: written.metadata.namespace.clone(),
        labels: written.metadata.labels.clone(),
        annotations: written.metadata.annotations.clone(),
        owner_references: written.metadata.owner_references.clone(),
        ..Metadata::default()
    };
    object.body.shift_remove("status");
    if let Some(existing) = existing {
        keep(&mut object, existing);
    }
    match object.kind {
        Kind::Pod => {
            let spec = object.body.entry("spec").or_insert_with(|| json!({}));
            default_pod_spec(spec);
            if let Some(existing) = existing {
                keep_node(spec, existing);
                immutable(&object, existing, &["spec"], "delete the pod first")?;
            }
        }
        Kind::Deployment => {
            if let Some(existing) = existing {
                immutable(&object, existing, &["spec", "selector"], "delete the Deployment first")?;
            }
        }
        Kind::Node => {
            if let Some(existing) = existing {
                object.body.clone_from(&existing.body);
                object.body.shift_remove("status");
            }
        }
        _ => {}
    }
    Ok(object)
}

/// Whether storing `object` over `existing` would change nothing.
pub fn same(existing: &Object, object: &Object) -> bool {
    let content = |object: &Object| {
        let mut body = object.body.clone();
        body.shift_remove("status");
        body
    };
    let (old, new) = (&existing.metadata, &object.metadata);
    existing.api_version == object.api_version
        && old.labels == new.labels
        && old.annotations == new.annotations
        && old.owner_references == new.owner_references
        && content(existing) == content(object)
}

fn keep(object: &mut Object, existing: &Object) {
    let ours = existing.metadata.labels.iter().filter(|(key, _)| OURS.contains(&key.as_str()));
    let kept: BTreeMap<String, String> = ours.map(|(key, value)| (key.clone(), value.clone())).collect();
    let labels = &mut object.metadata.labels;
    if matches!(object.kind, Kind::Namespace | Kind::Node) {
        for (key, value) in kept {
            labels.entry(key).or_insert(value);
        }
    }
    if object.metadata.owner_references.is_empty() {
        object.metadata.owner_references.clone_from(&existing.metadata.owner_references);
    }
    object.metadata.rest.clone_from(&existing.metadata.rest);
}

/// The scheduler's choice stays where the file makes none.
fn keep_node(spec: &mut Value, existing: &Object) {
    let chosen = existing.body.get("spec").and_then(|spec| spec.get("nodeName"));
    if let (None, Some(node)) = (spec.get("nodeName"), chosen) {
        spec["nodeName"] = node.clone();
    }
}

/// Refuses a change of one field of the body.
fn immutable(object: &Object, existing: &Object, path: &[&str], remedy: &str) -> Result<(), FieldError> {
    let at = |object: &Object| {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(object.body.get(*first)?.clone(), |value, field| value.get(*field).cloned())
    };
    if at(object) == at(existing) {
        return Ok(());
    }
    let message = format!("differs from what is there and cannot change; {remedy}");
    Err(FieldError::new(path.join("."), message))
}

/// Fills in what an API server would, as far as anything here reads it.
pub(crate) fn default_pod_spec(spec: &mut Value) {
    let Value::Object(fields) = spec else { return };
    let defaults = [
        ("serviceAccountName", json!("default")),
        ("restartPolicy", json!("Always")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("terminationGracePeriodSeconds", json!(30)),
    ];
    for (name, value) in defaults {
        default(fields, name, value);
    }
    for list in ["initContainers", "containers"] {
        let Some(Value::Array(containers)) = fields.get_mut(list) else { continue };
        for container in containers {
            let Some(Value::Array(ports)) = container.get_mut("ports") else { continue };
            ports.iter_mut().filter_map(Value::as_object_mut).for_each(|port| {
                default(port, "protocol", json!("TCP"));
            });
        }
    }
}

fn default(fields: &mut Map<String, Value>, name: &str, value: Value) {
    if fields.get(name).is_none_or(|old| old.as_str() == Some("")) {
        fields.insert(name.to_owned(), value);
    }
}
