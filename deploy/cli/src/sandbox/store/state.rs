//! What an API server keeps about objects besides their content, as a plain data structure.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use culvert_objects::types::PodSpec;
use culvert_objects::{Kind, Object, ObjectKey, Objects, Scope};
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// One thing to do to the objects.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Create, or replace everything but identity, history and status.
    Put(Box<Object>),
    /// Replace the status.
    Status(ObjectKey, Value),
    /// Ask for removal: pods stop gracefully, namespaces take their contents along, the rest is gone at once.
    Delete(ObjectKey),
    /// Gone at once, whatever it is.
    Remove(ObjectKey),
}

impl Change {
    /// [`Change::Put`].
    #[must_use]
    pub fn put(object: Object) -> Self {
        Self::Put(Box::new(object))
    }
}

/// Objects and the number of the last change.
#[derive(Debug, Default)]
pub struct State {
    objects: Arc<Objects>,
    version: u64,
}

impl State {
    #[must_use]
    pub fn objects(&self) -> Arc<Objects> {
        Arc::clone(&self.objects)
    }

    /// Number of changes so far, `resourceVersion` of the object changed last.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Carries out changes in order. Changes that change nothing leave no trace.
    pub fn commit(&mut self, changes: Vec<Change>, now: DateTime<Utc>) {
        for change in changes {
            match change {
                Change::Put(object) => self.put(*object, now),
                Change::Status(key, status) => self.update_status(&key, |old| *old = status),
                Change::Delete(key) => self.delete(&key, now),
                Change::Remove(key) => self.remove(&key),
            }
        }
    }

    /// Changes the status of an object in place; nothing happens when it is gone.
    pub fn update_status(&mut self, key: &ObjectKey, change: impl FnOnce(&mut Value)) {
        let Some(old) = self.objects.get(key) else { return };
        let before = old.body.get("status");
        let mut status = before.cloned().unwrap_or_else(|| Value::Object(Map::new()));
        change(&mut status);
        if before == Some(&status) || (before.is_none() && status == json!({})) {
            return;
        }
        let mut object = Object::clone(old);
        object.body.insert("status".to_owned(), status);
        self.write(object);
    }

    fn put(&mut self, mut object: Object, now: DateTime<Utc>) {
        if object.kind.scope() == Scope::Namespaced {
            object.metadata.namespace = Some(object.namespace().to_owned());
        }
        let Some(old) = self.objects.get(&object.key()) else {
            let metadata = &mut object.metadata;
            metadata.uid.get_or_insert_with(|| Uuid::new_v4().to_string());
            metadata.creation_timestamp = Some(now);
            metadata.deletion_timestamp = None;
            metadata.generation = Some(1);
            self.write(object);
            return;
        };
        let (metadata, kept) = (&mut object.metadata, &old.metadata);
        metadata.uid.clone_from(&kept.uid);
        metadata.creation_timestamp = kept.creation_timestamp;
        metadata.deletion_timestamp = kept.deletion_timestamp;
        metadata.generation = kept.generation;
        metadata.resource_version.clone_from(&kept.resource_version);
        if let Some(grace) = kept.rest.get(GRACE) {
            metadata.rest.insert(GRACE.to_owned(), grace.clone());
        }
        object.body.shift_remove("status");
        if let Some(status) = old.body.get("status") {
            object.body.insert("status".to_owned(), status.clone());
        }
        if object == **old {
            return;
        }
        if object.body != old.body {
            object.metadata.generation = Some(kept.generation.unwrap_or(0) + 1);
        }
        self.write(object);
    }

    fn delete(&mut self, key: &ObjectKey, now: DateTime<Utc>) {
        let Some(object) = self.objects.get(key) else { return };
        if object.metadata.deletion_timestamp.is_some() {
            return;
        }
        let mut object = Object::clone(object);
        match key.kind {
            Kind::Pod => {
                let spec: PodSpec = object.spec().unwrap_or_default();
                if spec.node_name.is_none() {
                    self.remove(key);
                    return;
                }
                let grace = chrono::Duration::from_std(spec.grace_period()).unwrap_or_default();
                object.metadata.deletion_timestamp = Some(now + grace);
                object.metadata.rest.insert(GRACE.to_owned(), grace.num_seconds().into());
            }
            Kind::Namespace => {
                object.metadata.deletion_timestamp = Some(now);
                object.body.insert("status".to_owned(), json!({"phase": "Terminating"}));
            }
            _ => {
                self.remove(key);
                return;
            }
        }
        self.write(object);
    }

    fn remove(&mut self, key: &ObjectKey) {
        if self.objects.get(key).is_some() {
            self.version += 1;
            Arc::make_mut(&mut self.objects).remove(key);
        }
    }

    fn write(&mut self, mut object: Object) {
        self.version += 1;
        object.metadata.resource_version = Some(self.version.to_string());
        Arc::make_mut(&mut self.objects).insert(Arc::new(object));
    }
}

/// `metadata` field that says how long a pod that is being deleted may take.
const GRACE: &str = "deletionGracePeriodSeconds";

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn object(value: Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    fn service(port: u16) -> Object {
        object(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "cart", "namespace": "shop"},
            "spec": {"ports": [{"port": port}]}}),
        )
    }

    fn pod(node: Option<&str>) -> Object {
        object(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 5}}))
    }

    fn pod_key() -> ObjectKey {
        ObjectKey::namespaced(Kind::Pod, "default", "one")
    }

    #[test]
    fn history_numbers_follow_what_changed() {
        let mut state = State::default();
        let key = service(80).key();
        state.commit(vec![Change::put(service(80))], at(10));
        let first = Arc::clone(state.objects().get(&key).unwrap());
        assert_eq!(first.metadata.generation, Some(1));
        assert_eq!(first.metadata.creation_timestamp, Some(at(10)));
        assert!(!first.uid().is_empty());

        state.commit(vec![Change::put(service(80))], at(20));
        assert!(Arc::ptr_eq(&first, state.objects().get(&key).unwrap()), "an equal put is no change");

        state.commit(vec![Change::Status(key.clone(), json!({"loadBalancer": {}}))], at(20));
        let second = Arc::clone(state.objects().get(&key).unwrap());
        assert_eq!(second.metadata.generation, Some(1));
        assert_ne!(second.metadata.resource_version, first.metadata.resource_version);

        state.commit(vec![Change::put(service(81))], at(30));
        let third = Arc::clone(state.objects().get(&key).unwrap());
        assert_eq!(third.metadata.generation, Some(2));
        assert_eq!(third.uid(), first.uid());
        assert_eq!(third.body["status"], json!({"loadBalancer": {}}), "a put leaves the status alone");
    }

    #[test]
    fn labels_change_without_a_new_generation() {
        let mut state = State::default();
        state.commit(vec![Change::put(service(80))], at(10));
        let mut labelled = service(80);
        labelled.metadata.labels.insert("a".to_owned(), "b".to_owned());
        state.commit(vec![Change::put(labelled)], at(10));
        let object = Arc::clone(state.objects().get(&service(80).key()).unwrap());
        assert_eq!(object.metadata.generation, Some(1));
        assert_eq!(object.label("a"), Some("b"));
    }

    #[test]
    fn a_running_pod_is_given_its_grace_period() {
        let mut state = State::default();
        state.commit(vec![Change::put(pod(Some("node1"))), Change::Delete(pod_key())], at(100));
        let object = Arc::clone(state.objects().get(&pod_key()).unwrap());
        assert_eq!(object.metadata.deletion_timestamp, Some(at(105)));
        state.commit(vec![Change::Delete(pod_key())], at(200));
        assert_eq!(state.objects().get(&pod_key()).unwrap().metadata.deletion_timestamp, Some(at(105)));
        state.commit(vec![Change::put(pod(Some("node1")))], at(200));
        assert_eq!(state.objects().get(&pod_key()).unwrap().metadata.deletion_timestamp, Some(at(105)));
        state.commit(vec![Change::Remove(pod_key())], at(200));
        assert!(state.objects().get(&pod_key()).is_none());
    }

    #[test]
    fn a_pod_that_never_ran_is_gone_at_once() {
        let mut state = State::default();
        state.commit(vec![Change::put(pod(None)), Change::Delete(pod_key())], at(100));
        assert!(state.objects().get(&pod_key()).is_none());
    }

    #[test]
    fn a_reader_keeps_what_it_saw() {
        let mut state = State::default();
        state.commit(vec![Change::put(service(80))], at(10));
        let seen = state.objects();
        state.commit(vec![Change::Remove(service(80).key())], at(10));
        assert!(seen.get(&service(80).key()).is_some());
        assert!(state.objects().get(&service(80).key()).is_none());
    }
}
