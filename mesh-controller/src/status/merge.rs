//! What must be written for an object of an API server to say what is wanted: a pure function of the wanted status and the
//! one it has. What others say there stays.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use culvert_api::names::GATEWAY_CONTROLLER;
use culvert_kubernetes::source::{CurrentStatus, OWN_CONDITIONS};
use culvert_objects::Kind;
use serde_json::{Map, Value, json};

use super::DesiredStatus;
use crate::CONTROLLER_NAME;

/// A change of an object's status.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A strategic merge patch: conditions are merged by type, so that nobody else's change is in its way.
    Conditions(Value),
    /// A merge patch with whole lists, only over the version that they were made from.
    Whole(Value),
}

/// Whose the status of a kind is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Conditions of Culvert's own among those of others.
    Others,
    /// Entries of several controllers in the list named.
    Shared(&'static str),
    /// Culvert alone, but for conditions with the prefix of somebody else.
    Culvert,
}

fn owner(kind: Kind) -> Owner {
    match kind {
        Kind::Pod | Kind::Namespace => Owner::Others,
        kind if Kind::ROUTES.contains(&kind) => Owner::Shared("parents"),
        Kind::XBackendTrafficPolicy => Owner::Shared("ancestors"),
        _ => Owner::Culvert,
    }
}

/// Whether the status says something of Culvert's that must go when nothing is wanted of it.
pub fn is_ours(kind: Kind, current: &CurrentStatus) -> bool {
    match owner(kind) {
        Owner::Others => !list(&current.status, "conditions").is_empty() || !current.labels.is_empty(),
        Owner::Shared(entries) => list(&current.status, entries).iter().any(is_own),
        // The object is somebody else's now, and so is what it says.
        Owner::Culvert => false,
    }
}

/// What to write; None when the object says it already.
pub fn change(
    kind: Kind,
    wanted: Option<&DesiredStatus>,
    current: &CurrentStatus,
    now: DateTime<Utc>,
) -> Option<Change> {
    // Of a predecessor of the same name; what is wanted of this one is on its way.
    if wanted.is_some_and(|wanted| wanted.uid != current.uid) {
        return None;
    }
    let body = wanted.map(|wanted| wanted.body(Some(&current.status), now)).unwrap_or_default();
    match owner(kind) {
        Owner::Others => {
            let labels = wanted.map(|wanted| wanted.labels.clone()).unwrap_or_default();
            conditions(kind, &body, &labels, current)
        }
        Owner::Shared(entries) => {
            let before = list(&current.status, entries);
            let foreign = before.iter().filter(|entry| !is_own(entry)).cloned();
            let wanted: Vec<Value> = foreign.chain(items(&body, entries)).collect();
            (wanted != before).then(|| whole(current, json!({entries: wanted})))
        }
        Owner::Culvert => {
            wanted?;
            let mut status = body;
            let before = list(&current.status, "conditions");
            let foreign = before.into_iter().filter(|condition| {
                type_of(condition).contains('/') && !type_of(condition).starts_with(OWN_CONDITIONS)
            });
            let conditions: Vec<Value> = foreign.chain(items(&status, "conditions")).collect();
            status.insert("conditions".to_owned(), conditions.into());
            let known = current.status.as_object();
            for field in known
                .into_iter()
                .flat_map(Map::keys)
                .filter(|field| !status.contains_key(*field))
                .cloned()
                .collect::<Vec<_>>()
            {
                status.insert(field, Value::Null);
            }
            let differs = |(field, value): (&String, &Value)| {
                current.status.get(field).unwrap_or(&Value::Null) != value
            };
            status.iter().any(differs).then(|| whole(current, Value::Object(status)))
        }
    }
}

fn whole(current: &CurrentStatus, status: Value) -> Change {
    Change::Whole(json!({
        "metadata": {"uid": current.uid, "resourceVersion": current.resource_version},
        "status": status,
    }))
}

fn conditions(
    kind: Kind,
    body: &Map<String, Value>,
    labels: &BTreeMap<String, String>,
    current: &CurrentStatus,
) -> Option<Change> {
    let before = list(&current.status, "conditions");
    let mut wanted: Vec<Value> = items(body, "conditions").collect();
    if kind == Kind::Namespace {
        // Conditions of namespaces have no such field; the API server would drop it, and it would be written again and again.
        wanted.iter_mut().filter_map(Value::as_object_mut).for_each(|condition| {
            condition.remove("observedGeneration");
        });
    }
    // Pods that have nothing to do with the mesh are not told so one by one.
    if before.is_empty()
        && current.labels.is_empty()
        && wanted.iter().all(|condition| condition.get("reason") == Some(&json!("NotEnrolled")))
    {
        return None;
    }
    let gone = before.iter().filter(|at| !wanted.iter().any(|of| type_of(of) == type_of(at)));
    let gone: Vec<Value> = gone.map(|at| json!({"$patch": "delete", "type": type_of(at)})).collect();
    let changed = wanted.into_iter().filter(|condition| !before.contains(condition));
    let changes: Vec<Value> = changed.chain(gone).collect();
    let mut patch = json!({"metadata": {"uid": current.uid}});
    if !changes.is_empty() {
        patch["status"]["conditions"] = changes.into();
    }
    // The API server takes them with the status of a pod; a right to change pods is not needed for that.
    let gone = current.labels.keys().filter(|name| !labels.contains_key(*name));
    let gone = gone.map(|name| (name.clone(), Value::Null));
    let set = labels.iter().filter(|(name, value)| current.labels.get(*name) != Some(value));
    let labels: Map<String, Value> =
        set.map(|(name, value)| (name.clone(), json!(value))).chain(gone).collect();
    if !labels.is_empty() {
        patch["metadata"]["labels"] = labels.into();
    }
    let differs = patch.get("status").is_some() || patch["metadata"].get("labels").is_some();
    differs.then_some(Change::Conditions(patch))
}

fn list(status: &Value, field: &str) -> Vec<Value> {
    status.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
}

fn items(body: &Map<String, Value>, field: &str) -> impl Iterator<Item = Value> {
    body.get(field).and_then(Value::as_array).into_iter().flatten().cloned().collect::<Vec<_>>().into_iter()
}

fn type_of(condition: &Value) -> &str {
    condition.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn is_own(entry: &Value) -> bool {
    let controller = entry.get("controllerName").and_then(Value::as_str);
    controller.is_some_and(|name| [CONTROLLER_NAME, GATEWAY_CONTROLLER].contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{DesiredAncestor, DesiredCondition, DesiredParent};
    use culvert_objects::{Object, ObjectKey};

    fn object(kind: Kind) -> Object {
        let mut object = Object::new(ObjectKey::namespaced(kind, "shop", "cart"));
        object.metadata.uid = Some("u".to_owned());
        object.metadata.generation = Some(3);
        object
    }

    fn current(status: Value) -> CurrentStatus {
        CurrentStatus { uid: "u".to_owned(), resource_version: "7".to_owned(), status, ..Default::default() }
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn parent(controller: &str, accepted: DesiredCondition) -> DesiredParent {
        DesiredParent {
            parent_ref: json!({"name": "cart", "kind": "Service", "group": ""}),
            controller_name: controller.to_owned(),
            conditions: vec![accepted],
            resources: Vec::new(),
        }
    }

    fn status_of(change: Option<Change>) -> Value {
        match change {
            Some(Change::Whole(patch)) => {
                assert_eq!(patch["metadata"], json!({"uid": "u", "resourceVersion": "7"}));
                patch["status"].clone()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn entries_of_other_controllers_stay_and_an_equal_status_is_not_written() {
        let foreign = json!({"controllerName": "example.com/x", "conditions": [],
            "parentRef": {"name": "cart", "kind": "Service", "group": ""}});
        let yes = || DesiredCondition::yes("Accepted", "Accepted", "");
        let wanted =
            DesiredStatus::of(&object(Kind::HttpRoute)).with_parents(vec![parent(CONTROLLER_NAME, yes())]);
        let first =
            status_of(change(Kind::HttpRoute, Some(&wanted), &current(json!({"parents": [foreign]})), at(1)));
        let parents = first["parents"].as_array().unwrap();
        assert_eq!((parents.len(), &parents[0]), (2, &foreign));
        assert_eq!(parents[1]["conditions"][0]["observedGeneration"], 3);
        let now = current(first.clone());
        assert_eq!(change(Kind::HttpRoute, Some(&wanted), &now, at(2)), None);
        // Another reason is no flip.
        let other = DesiredCondition::yes("Accepted", "Accepted", "said differently");
        let wanted =
            DesiredStatus::of(&object(Kind::HttpRoute)).with_parents(vec![parent(CONTROLLER_NAME, other)]);
        let second = status_of(change(Kind::HttpRoute, Some(&wanted), &now, at(2)));
        let time = |status: &Value| status["parents"][1]["conditions"][0]["lastTransitionTime"].clone();
        assert_eq!(time(&first), time(&second));
        // Nothing is wanted any more: only the own entry goes.
        assert!(is_ours(Kind::HttpRoute, &now));
        let gone = status_of(change(Kind::HttpRoute, None, &now, at(3)));
        assert_eq!(gone, json!({"parents": [foreign]}));
        assert_eq!(change(Kind::HttpRoute, None, &current(gone), at(3)), None);
    }

    #[test]
    fn a_policys_entries_of_other_controllers_stay() {
        let ancestor = json!({"group": "", "kind": "Service", "name": "cart"});
        let foreign = json!({"controllerName": "example.com/x", "ancestorRef": ancestor, "conditions": []});
        let own = DesiredAncestor {
            ancestor_ref: ancestor.clone(),
            controller_name: CONTROLLER_NAME.to_owned(),
            conditions: vec![DesiredCondition::yes("Accepted", "Accepted", "")],
        };
        let kind = Kind::XBackendTrafficPolicy;
        let wanted = DesiredStatus::of(&object(kind)).with_ancestors(vec![own]);
        let first = status_of(change(kind, Some(&wanted), &current(json!({"ancestors": [foreign]})), at(1)));
        assert_eq!(first["ancestors"][0], foreign);
        assert_eq!(first["ancestors"][1]["controllerName"], CONTROLLER_NAME);
        let now = current(first);
        assert_eq!(change(kind, Some(&wanted), &now, at(2)), None);
        assert!(is_ours(kind, &now));
        assert_eq!(status_of(change(kind, None, &now, at(3))), json!({"ancestors": [foreign]}));
    }

    #[test]
    fn a_pods_own_conditions_are_merged_and_strangers_are_left_alone() {
        let enrolled = |condition| DesiredStatus::of(&object(Kind::Pod)).with_condition(condition);
        let not = enrolled(DesiredCondition::no("culvert.dev/Enrolled", "NotEnrolled", "no label"));
        assert_eq!(change(Kind::Pod, Some(&not), &current(Value::Null), at(1)), None);
        let yes = enrolled(DesiredCondition::yes("culvert.dev/Enrolled", "Enrolled", "in force"));
        let Some(Change::Conditions(patch)) = change(Kind::Pod, Some(&yes), &current(Value::Null), at(1))
        else {
            panic!()
        };
        assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(patch["metadata"], json!({"uid": "u"}));
        let now = current(patch["status"].clone());
        assert_eq!(change(Kind::Pod, Some(&yes), &now, at(2)), None);
        assert!(
            change(Kind::Pod, Some(&not), &now, at(2)).is_some(),
            "one that was enrolled is told that it is no more"
        );
        let Some(Change::Conditions(gone)) = change(Kind::Pod, None, &now, at(2)) else { panic!() };
        assert_eq!(
            gone["status"]["conditions"],
            json!([{"$patch": "delete", "type": "culvert.dev/Enrolled"}])
        );
        let mut successor = now;
        successor.uid = "v".to_owned();
        assert_eq!(change(Kind::Pod, Some(&yes), &successor, at(2)), None);
    }

    #[test]
    fn a_pods_label_is_set_changed_and_removed_with_its_condition() {
        let name = culvert_api::names::ENROLLED_LABEL;
        let labelled = |condition, value: Option<&str>| {
            let mut status = DesiredStatus::of(&object(Kind::Pod)).with_condition(condition);
            status.labels = value.map(|value| (name.to_owned(), value.to_owned())).into_iter().collect();
            status
        };
        let patch_of = |wanted: Option<&DesiredStatus>, current: &CurrentStatus| match change(
            Kind::Pod,
            wanted,
            current,
            at(1),
        ) {
            Some(Change::Conditions(patch)) => patch,
            other => panic!("{other:?}"),
        };
        let yes = labelled(DesiredCondition::yes("culvert.dev/Enrolled", "Enrolled", ""), Some("true"));
        let first = patch_of(Some(&yes), &current(Value::Null));
        assert_eq!(first["metadata"], json!({"uid": "u", "labels": {name: "true"}}));
        let mut now = current(first["status"].clone());
        let alone = patch_of(Some(&yes), &now);
        assert_eq!(alone, json!({"metadata": {"uid": "u", "labels": {name: "true"}}}), "somebody removed it");
        now.labels.insert(name.to_owned(), "true".to_owned());
        assert_eq!(change(Kind::Pod, Some(&yes), &now, at(2)), None);
        let not = labelled(DesiredCondition::no("culvert.dev/Enrolled", "NotEnrolled", ""), None);
        for (wanted, what) in [(Some(&not), "no longer wanted"), (None, "nobody's")] {
            assert_eq!(patch_of(wanted, &now)["metadata"]["labels"], json!({name: null}), "{what}");
        }
        now.status = Value::Null;
        assert!(is_ours(Kind::Pod, &now));
        let gone = patch_of(None, &now);
        assert_eq!(gone, json!({"metadata": {"uid": "u", "labels": {name: null}}}));
    }

    #[test]
    fn what_culvert_owns_is_written_whole() {
        let mut wanted = DesiredStatus::of(&object(Kind::Gateway))
            .with_condition(DesiredCondition::yes("Accepted", "A", ""));
        wanted.fields.insert("addresses".to_owned(), json!([{"value": "10.0.0.1"}]));
        let foreign = json!({"type": "example.com/Seen", "status": "True"});
        let before = current(json!({"conditions": [foreign, {"type": "Scheduled", "status": "Unknown"}],
            "listeners": [{"name": "old"}]}));
        let status = status_of(change(Kind::Gateway, Some(&wanted), &before, at(1)));
        assert_eq!(status["conditions"][0], foreign);
        assert_eq!(status["conditions"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&status["listeners"], &status["addresses"][0]["value"]),
            (&Value::Null, &json!("10.0.0.1"))
        );
        let mut now = before;
        now.status = json!({"conditions": status["conditions"], "addresses": status["addresses"]});
        assert_eq!(change(Kind::Gateway, Some(&wanted), &now, at(2)), None);
        assert_eq!(change(Kind::Gateway, None, &now, at(2)), None, "it may have another controller now");
    }
}
