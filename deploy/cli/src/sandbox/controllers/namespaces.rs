//! Namespaces: the service account that every pod may count on, and taking the contents along at the end.

use culvert_objects::{Kind, Object, ObjectKey, Objects, Scope};
use serde_json::json;

use crate::sandbox::store::Change;

/// Label that selectors of namespaces by name use.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub fn reconcile(objects: &Objects) -> Vec<Change> {
    objects
        .of_kind(Kind::Namespace)
        .flat_map(|namespace| match namespace.metadata.deletion_timestamp {
            Some(_) => terminate(objects, namespace),
            None => furnish(objects, namespace),
        })
        .collect()
}

fn furnish(objects: &Objects, namespace: &Object) -> Vec<Change> {
    let mut changes = Vec::new();
    let name = namespace.name();
    if namespace.label(NAME_LABEL) != Some(name) {
        let mut labelled = namespace.clone();
        labelled.metadata.labels.insert(NAME_LABEL.to_owned(), name.to_owned());
        changes.push(Change::put(labelled));
    }
    if namespace.body.get("status").is_none() {
        changes.push(Change::Status(namespace.key(), json!({"phase": "Active"})));
    }
    if objects.find(Kind::ServiceAccount, name, "default").is_none() {
        let key = ObjectKey::namespaced(Kind::ServiceAccount, name, "default");
        changes.push(Change::put(Object::new(key)));
    }
    changes
}

fn terminate(objects: &Objects, namespace: &Object) -> Vec<Change> {
    let kinds = Kind::ALL.iter().filter(|kind| kind.scope() == Scope::Namespaced);
    let contents: Vec<&Object> =
        kinds.flat_map(|kind| objects.in_namespace(*kind, namespace.name())).map(AsRef::as_ref).collect();
    if contents.is_empty() {
        return vec![Change::Remove(namespace.key())];
    }
    contents
        .into_iter()
        .filter(|object| object.metadata.deletion_timestamp.is_none())
        .map(|object| Change::Delete(object.key()))
        .collect()
}
