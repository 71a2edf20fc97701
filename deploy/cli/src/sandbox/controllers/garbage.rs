//! Objects whose owners are gone go too.

use std::collections::BTreeSet;

use culvert_objects::{Kind, Objects};

use super::deployment;
use crate::sandbox::store::Change;

pub fn reconcile(objects: &Objects) -> Vec<Change> {
    let alive: BTreeSet<&str> = objects.iter().map(|object| object.uid()).collect();
    let mut changes: Vec<Change> = Vec::new();
    for object in objects.iter().filter(|object| object.metadata.deletion_timestamp.is_none()) {
        let owners = &object.metadata.owner_references;
        let orphaned = !owners.is_empty()
            && owners.iter().all(|owner| !alive.contains(owner.uid.as_str()))
            // Pods of a Deployment name a ReplicaSet, which exists here in name only.
            && !(object.kind == Kind::Pod && deployment::owner_exists(objects, object));
        if orphaned {
            changes.push(Change::Delete(object.key()));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_objects::Object;
    use serde_json::json;

    fn object(kind: &str, name: &str, owner: Option<&str>) -> Object {
        let owners: Vec<_> = owner
            .map(|uid| json!({"apiVersion": "v1", "kind": "Service", "name": "x", "uid": uid}))
            .into_iter()
            .collect();
        serde_json::from_value(json!({"apiVersion": "v1", "kind": kind, "metadata":
            {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "ownerReferences": owners}}))
        .unwrap()
    }

    #[test]
    fn only_objects_with_owners_that_are_all_gone_go() {
        let objects: Objects = [
            object("Service", "cart", None),
            object("ConfigMap", "kept", Some("uid-cart")),
            object("ConfigMap", "orphan", Some("uid-gone")),
        ]
        .into_iter()
        .collect();
        assert_eq!(reconcile(&objects), [Change::Delete(object("ConfigMap", "orphan", None).key())]);
    }
}
