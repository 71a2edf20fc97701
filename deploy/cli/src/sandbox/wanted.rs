//! Objects that the mesh's controller wants to exist, made as somebody with `kubectl` would: the pods, Service and account
//! of each Gateway. What a user wrote under the same name is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use culvert_objects::{Kind, Object, ObjectKey, Objects};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::apply::merge;
use super::cluster::Cluster;
use super::services::{self, Allocator};
use super::store::{Change, Scanned, Store, scan};

/// How often the directory is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Annotation of the objects that are made here, so that they are told apart from those of users.
const MADE: &str = "sandbox.culvert.dev/made-for";

/// An object that is wanted and cannot be made, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    pub object: ObjectKey,
    pub why: String,
}

/// Keeps the store equal to the directory until cancelled: objects come, change and go with their files.
pub async fn run(store: Store, cluster: Arc<Cluster>, directory: PathBuf, cancel: CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = follow(&store, &cluster, directory) => {}
    }
}

async fn follow(store: &Store, cluster: &Cluster, directory: PathBuf) {
    let mut known = Scanned::default();
    let mut told: BTreeSet<Conflict> = BTreeSet::new();
    let mut changed = store.changed();
    loop {
        let (from, before) = (directory.clone(), known.clone());
        match tokio::task::spawn_blocking(move || scan(&from, before)).await {
            Ok(Some(now)) => {
                known = now;
                changed.mark_changed();
            }
            Ok(None) => {}
            Err(error) => warn!(%error, "reading wanted objects failed"),
        }
        // The store is gone only with everything else.
        if !changed.has_changed().unwrap_or(false) {
            tokio::time::sleep(POLL).await;
            continue;
        }
        changed.mark_unchanged();
        let wanted: Vec<Object> = known.values().filter_map(|file| file.object.as_deref().cloned()).collect();
        let conflicts: BTreeSet<Conflict> = apply(store, cluster, &wanted).into_iter().collect();
        for Conflict { object, why } in conflicts.difference(&told) {
            warn!(%object, why, "an object that a Gateway needs is not made");
        }
        told = conflicts;
        tokio::time::sleep(POLL).await;
    }
}

/// Makes, changes and deletes until exactly the wanted objects are there; returns what cannot be made.
pub fn apply(store: &Store, cluster: &Cluster, wanted: &[Object]) -> Vec<Conflict> {
    let planned = store.transact(|objects| {
        let plan = plan(objects, cluster, wanted);
        Ok::<_, std::convert::Infallible>((plan.changes, (plan.conflicts, plan.summary)))
    });
    let Ok((conflicts, summary)) = planned;
    for line in summary {
        info!("{line}");
    }
    conflicts
}

#[derive(Default)]
struct Plan {
    changes: Vec<Change>,
    conflicts: Vec<Conflict>,
    /// What changes, for the log.
    summary: Vec<String>,
}

/// What is to be done. Pure.
fn plan(objects: &Objects, cluster: &Cluster, wanted: &[Object]) -> Plan {
    let mut plan = Plan::default();
    let mut allocator = Allocator::new(objects, cluster.service_cidr);
    let wanted = wanted.iter().filter(|object| has_owner(objects, object));
    let by_key: BTreeMap<ObjectKey, &Object> = wanted.map(|object| (object.key(), object)).collect();
    for (key, object) in &by_key {
        match complete(objects, &mut allocator, object) {
            Ok(Some(object)) => {
                plan.summary.push(format!("{key} is made for a Gateway"));
                plan.changes.push(Change::put(object));
            }
            Ok(None) => {}
            Err(why) => plan.conflicts.push(Conflict { object: key.clone(), why }),
        }
    }
    for object in objects.iter().filter(|object| is_ours(object) && !by_key.contains_key(&object.key())) {
        if object.metadata.deletion_timestamp.is_none() {
            plan.summary.push(format!("{} is no longer needed", object.key()));
            plan.changes.push(Change::Delete(object.key()));
        }
    }
    plan
}

/// A Gateway that is gone takes its objects along before the controller has said that they are not wanted.
fn has_owner(objects: &Objects, wanted: &Object) -> bool {
    let owners = &wanted.metadata.owner_references;
    owners.is_empty() || owners.iter().any(|owner| objects.iter().any(|object| object.uid() == owner.uid))
}

fn is_ours(object: &Object) -> bool {
    object.metadata.annotations.contains_key(MADE)
}

/// The object to store; `None` when it is there already.
fn complete(objects: &Objects, allocator: &mut Allocator, wanted: &Object) -> Result<Option<Object>, String> {
    let namespace = objects.namespace(wanted.namespace());
    if namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
        return Err(format!("there is no namespace {:?}, or it is being deleted", wanted.namespace()));
    }
    let existing = objects.get(&wanted.key()).map(AsRef::as_ref);
    if existing.is_some_and(|existing| !is_ours(existing)) {
        return Err("somebody else's object of that name exists; rename or delete it".to_owned());
    }
    let mut wanted = wanted.clone();
    let owner = wanted.metadata.owner_references.first();
    let owner = owner.map(|owner| format!("{}/{}", owner.kind, owner.name)).unwrap_or_default();
    wanted.metadata.annotations.insert(MADE.to_owned(), owner);
    if wanted.kind == Kind::Service {
        both_families(&mut wanted);
    }
    let mut object = merge::merge(&wanted, existing).map_err(|fault| fault.to_string())?;
    if object.kind == Kind::Service {
        services::complete(&mut object, existing, allocator).map_err(|fault| fault.to_string())?;
    }
    Ok((!existing.is_some_and(|existing| merge::same(existing, &object))).then_some(object))
}

/// Gateways are reached over IPv4 and IPv6, unless the Service says otherwise.
fn both_families(service: &mut Object) {
    if let Some(Value::Object(spec)) = service.body.get_mut("spec") {
        spec.entry("ipFamilyPolicy").or_insert_with(|| json!("PreferDualStack"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &str, name: &str, spec: Value) -> Object {
        let mut value = json!({"kind": kind, "metadata": {"name": name, "namespace": "default",
            "ownerReferences": [{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": "edge",
                "uid": "1", "controller": true}]}});
        value["apiVersion"] = if kind == "Deployment" { "apps/v1".into() } else { "v1".into() };
        if !spec.is_null() {
            value["spec"] = spec;
        }
        serde_json::from_value(value).unwrap()
    }

    fn service(port: u16) -> Object {
        object(
            "Service",
            "edge-culvert",
            json!({"type": "LoadBalancer", "selector": {"g": "edge"},
            "ports": [{"name": "http", "port": port}]}),
        )
    }

    fn store_with_gateway() -> (Store, Cluster) {
        let cluster = Cluster::new("test", 2);
        let store = Store::new(&cluster);
        let mut gateway = Object::new(ObjectKey::namespaced(Kind::Gateway, "default", "edge"));
        gateway.metadata.uid = Some("1".to_owned());
        store.commit(vec![Change::put(gateway)]);
        (store, cluster)
    }

    fn find(store: &Store, kind: Kind, name: &str) -> Option<Arc<Object>> {
        store.objects().find(kind, "default", name).cloned()
    }

    #[tokio::test]
    async fn objects_come_change_and_go() {
        let (store, cluster) = store_with_gateway();
        let account = object("ServiceAccount", "edge-culvert", Value::Null);
        assert_eq!(apply(&store, &cluster, &[service(80), account.clone()]), []);
        let made = find(&store, Kind::Service, "edge-culvert").unwrap();
        assert_eq!(made.body["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(made.body["status"]["loadBalancer"]["ingress"][0]["ip"], "10.90.0.10");
        let version = *store.changed().borrow();
        assert_eq!(apply(&store, &cluster, &[service(80), account.clone()]), []);
        assert_eq!(*store.changed().borrow(), version, "nothing changes twice");
        apply(&store, &cluster, &[service(81), account.clone()]);
        let changed = find(&store, Kind::Service, "edge-culvert").unwrap();
        assert_eq!(changed.body["spec"]["ports"][0]["port"], 81);
        assert_eq!(changed.body["spec"]["clusterIP"], made.body["spec"]["clusterIP"]);
        assert_eq!(changed.body["status"], made.body["status"], "the address stays");
        apply(&store, &cluster, &[account]);
        assert!(find(&store, Kind::Service, "edge-culvert").is_none());
        assert!(find(&store, Kind::ServiceAccount, "edge-culvert").is_some());
    }

    #[tokio::test]
    async fn what_users_wrote_is_left_alone() {
        let (store, cluster) = store_with_gateway();
        let mine = object("ServiceAccount", "edge-culvert", Value::Null);
        let mut mine = Object { metadata: mine.metadata.clone(), ..mine };
        mine.metadata.owner_references.clear();
        store.commit(vec![Change::put(mine)]);
        let wanted = object("ServiceAccount", "edge-culvert", Value::Null);
        let conflicts = apply(&store, &cluster, &[wanted]);
        assert_eq!(conflicts.len(), 1);
        assert!(conflicts[0].why.contains("somebody else's"));
        assert!(!is_ours(&find(&store, Kind::ServiceAccount, "edge-culvert").unwrap()));
        apply(&store, &cluster, &[]);
        assert!(find(&store, Kind::ServiceAccount, "edge-culvert").is_some(), "not ours to delete");
    }

    #[tokio::test]
    async fn nothing_is_made_for_a_gateway_that_is_gone() {
        let (store, cluster) = store_with_gateway();
        apply(&store, &cluster, &[service(80)]);
        store.commit(vec![Change::Delete(ObjectKey::namespaced(Kind::Gateway, "default", "edge"))]);
        assert!(find(&store, Kind::Service, "edge-culvert").is_none(), "it goes with its owner");
        assert_eq!(apply(&store, &cluster, &[service(80)]), []);
        assert!(find(&store, Kind::Service, "edge-culvert").is_none());
    }

    #[tokio::test]
    async fn a_namespace_that_is_not_there_is_told() {
        let (store, cluster) = store_with_gateway();
        let mut lost = service(80);
        lost.metadata.namespace = Some("nowhere".to_owned());
        let conflicts = apply(&store, &cluster, &[lost]);
        assert!(conflicts[0].why.contains("nowhere"), "{conflicts:?}");
    }
}
