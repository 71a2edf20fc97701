//! What the status of an object should say, without times.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use culvert_objects::types::{ConditionStatus, GATEWAY_GROUP};
use culvert_objects::{Object, ObjectKey};
use serde_json::{Map, Value, json};

/// Longest message of a condition that is written whole, in bytes; the API takes 32,768.
const LONGEST_MESSAGE: usize = 30_000;

/// A status as wanted. Only what Culvert owns of it.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredStatus {
    pub api_version: String,
    pub key: ObjectKey,
    /// Of the object, so that a status is never taken for that of a successor of the same name.
    pub uid: String,
    /// `metadata.generation` that was looked at.
    pub generation: Option<i64>,
    pub conditions: Vec<DesiredCondition>,
    /// Entries of a route's `status.parents`.
    pub parents: Vec<DesiredParent>,
    /// Entries of a Gateway's `status.listeners`.
    pub listeners: Vec<DesiredListener>,
    /// Entries of a policy's `status.ancestors`.
    pub ancestors: Vec<DesiredAncestor>,
    /// Further fields of `status`.
    pub fields: Map<String, Value>,
    /// Labels of the object that show in a table what its conditions say; only pods of an API server get them.
    pub labels: BTreeMap<String, String>,
}

/// A condition as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredCondition {
    pub kind: String,
    pub status: ConditionStatus,
    pub reason: String,
    pub message: String,
}

/// One entry of a route's `status.parents`.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredParent {
    /// As the route has it.
    pub parent_ref: Value,
    pub controller_name: String,
    pub conditions: Vec<DesiredCondition>,
    /// Names of what proxies get of the route at this parent; not written. Their refusal concerns this entry.
    pub resources: Vec<String>,
}

/// One entry of a policy's `status.ancestors`.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredAncestor {
    pub ancestor_ref: Value,
    pub controller_name: String,
    pub conditions: Vec<DesiredCondition>,
}

/// One entry of a Gateway's `status.listeners`.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredListener {
    pub name: String,
    /// Kinds of routes, of the group of the Gateway API.
    pub supported_kinds: Vec<String>,
    pub attached_routes: u32,
    pub conditions: Vec<DesiredCondition>,
}

impl DesiredCondition {
    pub fn yes(kind: &str, reason: &str, message: impl Into<String>) -> Self {
        Self::new(kind, ConditionStatus::True, reason, message)
    }

    pub fn no(kind: &str, reason: &str, message: impl Into<String>) -> Self {
        Self::new(kind, ConditionStatus::False, reason, message)
    }

    fn new(kind: &str, status: ConditionStatus, reason: &str, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        if message.len() > LONGEST_MESSAGE {
            message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
            message.push_str(" ...");
        }
        Self { kind: kind.to_owned(), status, reason: reason.to_owned(), message }
    }

    /// With the time of the last flip: that of `before` unless its status was another.
    fn json(&self, generation: Option<i64>, before: &[Value], now: DateTime<Utc>) -> Value {
        let status = json!(self.status);
        let same = before.iter().find(|at| at.get("type").and_then(Value::as_str) == Some(&self.kind));
        let since =
            same.filter(|at| at.get("status") == Some(&status)).and_then(|at| at.get("lastTransitionTime"));
        let since = since.cloned().unwrap_or_else(|| now.to_rfc3339_opts(SecondsFormat::Secs, true).into());
        let mut condition = json!({"type": self.kind, "status": status});
        if let Some(generation) = generation {
            condition["observedGeneration"] = generation.into();
        }
        condition["lastTransitionTime"] = since;
        condition["reason"] = self.reason.as_str().into();
        condition["message"] = self.message.as_str().into();
        condition
    }
}

impl DesiredStatus {
    /// An empty status of an object.
    pub fn of(object: &Object) -> Self {
        Self {
            api_version: object.api_version.clone(),
            key: object.key(),
            uid: object.uid().to_owned(),
            generation: object.metadata.generation,
            conditions: Vec::new(),
            parents: Vec::new(),
            listeners: Vec::new(),
            ancestors: Vec::new(),
            fields: Map::new(),
            labels: BTreeMap::new(),
        }
    }

    #[must_use]
    pub fn with_condition(mut self, condition: DesiredCondition) -> Self {
        self.conditions.push(condition);
        self
    }

    #[must_use]
    pub fn with_parents(mut self, parents: Vec<DesiredParent>) -> Self {
        self.parents = parents;
        self
    }

    #[must_use]
    pub fn with_ancestors(mut self, ancestors: Vec<DesiredAncestor>) -> Self {
        self.ancestors = ancestors;
        self
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.conditions.is_empty()
            && self.parents.is_empty()
            && self.listeners.is_empty()
            && self.ancestors.is_empty()
            && self.fields.is_empty()
    }

    /// The document to write. `before` is the one written last, if it was of the same object.
    pub fn json(&self, before: Option<&Value>, now: DateTime<Utc>) -> Value {
        let ours =
            |at: &&Value| at.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default() == self.uid;
        let body = self.body(before.filter(ours).and_then(|at| at.get("status")), now);
        let mut metadata = Map::new();
        if let Some(namespace) = &self.key.namespace {
            metadata.insert("namespace".to_owned(), namespace.as_str().into());
        }
        metadata.insert("name".to_owned(), self.key.name.as_str().into());
        metadata.insert("uid".to_owned(), self.uid.as_str().into());
        json!({
            "apiVersion": self.api_version,
            "kind": self.key.kind,
            "metadata": metadata,
            "status": body,
        })
    }

    /// What Culvert says in `status`. `before` is the status that the object has: times of conditions that do not flip are
    /// kept.
    pub fn body(&self, before: Option<&Value>, now: DateTime<Utc>) -> Map<String, Value> {
        let list = |value: Option<&Value>, field: &str| -> Vec<Value> {
            value.and_then(|at| at.get(field)).and_then(Value::as_array).cloned().unwrap_or_default()
        };
        let conditions = |wanted: &[DesiredCondition], before: &[Value]| -> Value {
            wanted.iter().map(|condition| condition.json(self.generation, before, now)).collect()
        };
        let mut body = Map::new();
        if !self.conditions.is_empty() {
            body.insert("conditions".to_owned(), conditions(&self.conditions, &list(before, "conditions")));
        }
        if !self.parents.is_empty() {
            let before = list(before, "parents");
            let parent = |parent: &DesiredParent| {
                // Several controllers may speak about one parent.
                let same = before.iter().find(|at| {
                    at.get("parentRef") == Some(&parent.parent_ref)
                        && at.get("controllerName").and_then(Value::as_str) == Some(&parent.controller_name)
                });
                json!({
                    "parentRef": parent.parent_ref,
                    "controllerName": parent.controller_name,
                    "conditions": conditions(&parent.conditions, &list(same, "conditions")),
                })
            };
            body.insert("parents".to_owned(), self.parents.iter().map(parent).collect());
        }
        if !self.listeners.is_empty() {
            let before = list(before, "listeners");
            let listener = |listener: &DesiredListener| {
                let same = before.iter().find(|at| at.get("name") == Some(&json!(listener.name)));
                let kind = |kind: &String| json!({"group": GATEWAY_GROUP, "kind": kind});
                json!({
                    "name": listener.name,
                    "supportedKinds": listener.supported_kinds.iter().map(kind).collect::<Vec<_>>(),
                    "attachedRoutes": listener.attached_routes,
                    "conditions": conditions(&listener.conditions, &list(same, "conditions")),
                })
            };
            body.insert("listeners".to_owned(), self.listeners.iter().map(listener).collect());
        }
        if !self.ancestors.is_empty() {
            let before = list(before, "ancestors");
            let ancestor = |ancestor: &DesiredAncestor| {
                let same = before.iter().find(|at| {
                    at.get("ancestorRef") == Some(&ancestor.ancestor_ref)
                        && at.get("controllerName").and_then(Value::as_str) == Some(&ancestor.controller_name)
                });
                json!({
                    "ancestorRef": ancestor.ancestor_ref,
                    "controllerName": ancestor.controller_name,
                    "conditions": conditions(&ancestor.conditions, &list(same, "conditions")),
                })
            };
            body.insert("ancestors".to_owned(), self.ancestors.iter().map(ancestor).collect());
        }
        body.extend(self.fields.clone());
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_objects::Kind;

    #[test]
    fn a_message_is_no_longer_than_the_api_takes() {
        let condition = DesiredCondition::no("Accepted", "A", "\u{e4}".repeat(40_000));
        assert!(condition.message.len() < 32_768 && condition.message.ends_with("\u{e4} ..."));
    }

    #[test]
    fn the_time_of_a_condition_changes_only_when_it_flips() {
        let mut object = Object::new(ObjectKey::namespaced(Kind::Pod, "shop", "cart"));
        object.metadata.uid = Some("1".to_owned());
        let status = |condition| DesiredStatus::of(&object).with_condition(condition);
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let time = |document: &Value| document["status"]["conditions"][0]["lastTransitionTime"].clone();

        let first = status(DesiredCondition::no("Up", "A", "a")).json(None, at(0));
        let second = status(DesiredCondition::no("Up", "B", "b")).json(Some(&first), at(1));
        assert_eq!(time(&first), time(&second));
        assert_eq!(second["status"]["conditions"][0]["reason"], "B");
        let third = status(DesiredCondition::yes("Up", "C", "c")).json(Some(&second), at(2));
        assert_eq!(time(&third), "1970-01-01T00:00:02Z");
        object.metadata.uid = Some("2".to_owned());
        let successor = DesiredStatus::of(&object).with_condition(DesiredCondition::yes("Up", "C", "c"));
        assert_eq!(time(&successor.json(Some(&third), at(3))), "1970-01-01T00:00:03Z");
    }
}
