//! Objects as users see them: by kind, namespace and name, with the statuses that the mesh writes.

mod columns;
mod kinds;
mod table;

use chrono::{DateTime, Utc};
use culvert_objects::{Kind, Object, Scope};
use serde_json::{Value, json};
use thiserror::Error;

use crate::sandbox::store::{Statuses, Store, merge};

pub(crate) use columns::{enrolment, find_condition};
pub use kinds::{parse as parse_kinds, parse_one as parse_kind};
pub(crate) use table::{Table, duration};

/// Why nothing can be shown.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GetError {
    #[error("{0}")]
    UnknownKind(String),
    #[error("{kind} {name:?} not found in namespace {namespace:?}")]
    NotFound { kind: Kind, namespace: String, name: String },
    #[error("{kind} {name:?} not found")]
    NotFoundAnywhere { kind: Kind, name: String },
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing {
    kinds: Vec<Kind>,
    objects: Vec<Object>,
    /// The namespaces of objects are shown.
    namespaces: Namespaces,
    /// One object by name, which programs get without a list around it.
    single: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespaces {
    Shown,
    Hidden,
}

/// [`list`], as text for people and as a value for programs.
///
/// # Errors
/// As [`list`].
pub fn get(
    store: &Store,
    kind: &str,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Result<(String, Value), GetError> {
    let listing = list(store, kind, namespace, name)?;
    Ok((listing.table(Utc::now()), listing.value()))
}

/// Objects of a kind (`pods`, `po`, `svc,deploy`, `all`), in one namespace or in all of them (`None`), perhaps only the
/// one of that name.
///
/// # Errors
/// When the kind means nothing or there is no object of that name.
pub fn list(
    store: &Store,
    kind: &str,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Result<Listing, GetError> {
    let kinds = kinds::parse(kind).map_err(GetError::UnknownKind)?;
    let objects = store.objects();
    let statuses = store.statuses();
    let statuses: &Statuses = &statuses.borrow();
    let mut found = Vec::new();
    for kind in &kinds {
        let before = found.len();
        found.extend(
            objects
                .of_kind(*kind)
                .filter(|object| {
                    kind.scope() == Scope::Cluster || namespace.is_none_or(|name| object.namespace() == name)
                })
                .filter(|object| name.is_none_or(|name| object.name() == name))
                .map(|object| merge(object, statuses)),
        );
        if let Some(name) = name.filter(|_| found.len() == before) {
            return Err(not_found(*kind, namespace, name));
        }
    }
    let namespaces = if namespace.is_none() { Namespaces::Shown } else { Namespaces::Hidden };
    let single = name.is_some() && found.len() == 1;
    Ok(Listing { kinds, objects: found, namespaces, single })
}

fn not_found(kind: Kind, namespace: Option<&str>, name: &str) -> GetError {
    match namespace.filter(|_| kind.scope() == Scope::Namespaced) {
        Some(namespace) => {
            GetError::NotFound { kind, namespace: namespace.to_owned(), name: name.to_owned() }
        }
        None => GetError::NotFoundAnywhere { kind, name: name.to_owned() },
    }
}

impl Listing {
    /// The objects found.
    #[must_use]
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// For programs: the object asked for by name, else a `List`.
    #[must_use]
    pub fn value(&self) -> Value {
        // Objects have only keys that are strings, so they always have a JSON form.
        let value = |object: &Object| serde_json::to_value(object).unwrap_or_default();
        match self.objects.as_slice() {
            [only] if self.single => value(only),
            objects => {
                let items: Vec<Value> = objects.iter().map(value).collect();
                json!({"apiVersion": "v1", "kind": "List", "items": items})
            }
        }
    }

    /// For people: a table per kind.
    #[must_use]
    pub fn table(&self, now: DateTime<Utc>) -> String {
        if self.objects.is_empty() {
            return "No resources found.\n".to_owned();
        }
        let several = self.kinds.len() > 1;
        let tables = self.kinds.iter().filter_map(|kind| {
            let objects: Vec<&Object> = self.objects.iter().filter(|object| object.kind == *kind).collect();
            (!objects.is_empty()).then(|| self.table_of(*kind, &objects, several.then_some(*kind), now))
        });
        tables.collect::<Vec<_>>().join("\n")
    }

    fn table_of(&self, kind: Kind, objects: &[&Object], prefix: Option<Kind>, now: DateTime<Utc>) -> String {
        let shown = self.namespaces == Namespaces::Shown && kind.scope() == Scope::Namespaced;
        let first: &[&str] = if shown { &["NAMESPACE", "NAME"] } else { &["NAME"] };
        let mut table = Table::new(first.iter().chain(columns::headings(kind)).chain(&["AGE"]));
        for object in objects {
            let mut cells = Vec::new();
            if shown {
                cells.push(object.namespace().to_owned());
            }
            cells.push(match prefix {
                Some(kind) => format!("{}/{}", kind.as_str().to_lowercase(), object.name()),
                None => object.name().to_owned(),
            });
            cells.extend(columns::cells(object, now));
            table.row(cells);
        }
        table.render()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::cluster::Cluster;
    use crate::sandbox::store::Change;

    fn store() -> Store {
        let store = Store::new(&Cluster::new("test", 2));
        let pod =
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "cart"},
            "spec": {"nodeName": "node1", "containers": [{"name": "c", "image": "culvert/echo"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.2"}],
                "containerStatuses": [{"name": "c", "ready": true, "restartCount": 2}]}}));
        store.commit(vec![Change::put(pod.unwrap())]);
        store
    }

    fn lines(listing: &Listing) -> Vec<String> {
        let table = listing.table(Utc::now());
        table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn tables_are_kubectls() {
        let store = store();
        let pods = list(&store, "po", Some("default"), None).unwrap();
        let pods = lines(&pods);
        assert_eq!(pods[0], "NAME READY STATUS RESTARTS IP NODE MESH AGE");
        assert!(pods[1].starts_with("cart 1/1 Running 2 10.244.1.2 node1 - "), "{pods:?}");
        let services = lines(&list(&store, "services", None, None).unwrap());
        assert!(
            services[1].starts_with("kube-system kube-dns ClusterIP 10.96.0.10,fd00:10:96::a 53/UDP,53/TCP ")
        );
        let nodes = lines(&list(&store, "node", Some("default"), None).unwrap());
        assert!(nodes[2].starts_with("node2 Ready 10.89.0.12,fd00:10:89::c zone2 "), "{nodes:?}");
        assert_eq!(lines(&list(&store, "cm", None, None).unwrap()), ["No resources found."]);
        assert!(list(&store, "all", None, None).unwrap().table(Utc::now()).contains("pod/cart"));
    }

    #[test]
    fn one_object_by_name_is_no_list() {
        let store = store();
        let value = list(&store, "pod", Some("default"), Some("cart")).unwrap().value();
        assert_eq!(value["metadata"]["name"], "cart");
        assert_eq!(list(&store, "pod", None, None).unwrap().value()["items"][0]["kind"], "Pod");
        let error = list(&store, "pod", Some("shop"), Some("cart")).unwrap_err();
        assert_eq!(error.to_string(), "Pod \"cart\" not found in namespace \"shop\"");
    }

    #[test]
    fn routes_show_what_their_parents_say() {
        let store = store();
        let route = serde_json::from_value(
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "r"}, "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "cart"}]},
            "status": {"parents": [{"conditions": [{"type": "Accepted", "status": "False"}]}]}}),
        );
        store.commit(vec![Change::put(route.unwrap())]);
        let routes = lines(&list(&store, "httproutes", Some("default"), None).unwrap());
        assert!(routes[1].starts_with("r - Service/cart False "), "{routes:?}");
    }
}
