//! Statuses that the mesh's controller writes: files in the layout of the objects directory, merged into objects where
//! users look at them and nowhere else. Read again when they change; never written back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_objects::{Object, ObjectKey, manifest};
use serde_json::Value;
use tokio::sync::watch;
use tracing::warn;

/// How often the directory is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Statuses by object. The uid says which incarnation of the name they speak of.
#[derive(Clone, Debug, Default)]
pub struct Statuses {
    by_key: BTreeMap<ObjectKey, Arc<Object>>,
}

impl Statuses {
    /// The status written for exactly this object, not for one of the same name before it.
    #[must_use]
    pub fn of(&self, object: &Object) -> Option<&Value> {
        let written = self.by_key.get(&object.key())?;
        let same = written.uid().is_empty() || written.uid() == object.uid();
        if same { written.body.get("status") } else { None }
    }
}

impl FromIterator<Object> for Statuses {
    fn from_iter<I: IntoIterator<Item = Object>>(objects: I) -> Self {
        Self { by_key: objects.into_iter().map(|object| (object.key(), Arc::new(object))).collect() }
    }
}

/// An object with its status as users see it: the mesh's conditions beside the others of the object, the mesh's fields
/// over those of the same name.
#[must_use]
pub fn merge(object: &Object, statuses: &Statuses) -> Object {
    let mut merged = object.clone();
    if let Some(status) = statuses.of(object) {
        let target = merged.body.entry("status").or_insert_with(|| Value::Object(serde_json::Map::new()));
        merge_value(target, status);
    }
    merged
}

fn merge_value(target: &mut Value, from: &Value) {
    let (Value::Object(target), Value::Object(from)) = (&mut *target, from) else {
        target.clone_from(from);
        return;
    };
    for (field, value) in from {
        match (target.get_mut(field), value) {
            (Some(Value::Array(conditions)), Value::Array(more)) if field == "conditions" => {
                merge_conditions(conditions, more);
            }
            (Some(old), value) => merge_value(old, value),
            (None, value) => {
                target.insert(field.clone(), value.clone());
            }
        }
    }
}

fn merge_conditions(conditions: &mut Vec<Value>, more: &[Value]) {
    for condition in more {
        match conditions.iter_mut().find(|old| old.get("type") == condition.get("type")) {
            Some(old) => old.clone_from(condition),
            None => conditions.push(condition.clone()),
        }
    }
}

/// A file as it was read: what tells whether it must be read again, and what it said.
#[derive(Clone)]
pub(crate) struct Entry {
    changed: SystemTime,
    length: u64,
    inode: u64,
    pub(crate) object: Option<Arc<Object>>,
}

/// The files of a directory of objects.
pub(crate) type Scanned = BTreeMap<PathBuf, Entry>;

/// Keeps `publish` equal to the directory, forever.
pub(super) async fn run(directory: PathBuf, publish: &watch::Sender<Arc<Statuses>>) {
    let mut known = Scanned::new();
    loop {
        let (from, before) = (directory.clone(), known.clone());
        match tokio::task::spawn_blocking(move || scan(&from, before)).await {
            Ok(Some(now)) => {
                let objects = now.values().filter_map(|entry| entry.object.clone());
                let by_key = objects.map(|object| (object.key(), object)).collect();
                publish.send_replace(Arc::new(Statuses { by_key }));
                known = now;
            }
            Ok(None) => {}
            Err(error) => warn!(%error, "reading statuses failed"),
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What the directory holds now; `None` when nothing changed since `before`.
pub(crate) fn scan(directory: &Path, before: Scanned) -> Option<Scanned> {
    // A directory that goes away while it is listed is looked at again at the next poll.
    let files = manifest::files_below(directory).ok()?;
    let mut now = BTreeMap::new();
    let mut differs = false;
    for path in files {
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        let changed = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let (length, inode) = (metadata.len(), std::os::unix::fs::MetadataExt::ino(&metadata));
        let kept =
            before.get(&path).filter(|old| (old.changed, old.length, old.inode) == (changed, length, inode));
        let entry = match kept {
            Some(old) => old.clone(),
            None => {
                differs = true;
                Entry { changed, length, inode, object: read(&path) }
            }
        };
        now.insert(path, entry);
    }
    (differs || now.len() != before.len()).then_some(now)
}

fn read(path: &Path) -> Option<Arc<Object>> {
    let text = std::fs::read(path).ok()?;
    match serde_json::from_slice(&text) {
        Ok(object) => Some(Arc::new(object)),
        Err(error) => {
            warn!(%error, file = %path.display(), "a document of the controller cannot be read");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, status: Value) -> Object {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "shop", "uid": uid}, "status": status}))
        .unwrap()
    }

    fn ready(status: &str) -> Value {
        json!({"type": "Ready", "status": status})
    }

    #[test]
    fn conditions_are_merged_by_type() {
        let enrolled = json!({"type": "culvert.dev/Enrolled", "status": "True"});
        let ours = pod("1", json!({"conditions": [enrolled], "culvert": {"phase": "Enrolled"}}));
        let object = pod("1", json!({"phase": "Running", "conditions": [ready("True")]}));
        let merged = merge(&object, &[ours].into_iter().collect());
        assert_eq!(
            merged.body["status"],
            json!({"phase": "Running", "conditions": [ready("True"), enrolled], "culvert": {"phase": "Enrolled"}})
        );
    }

    #[test]
    fn a_status_of_an_earlier_pod_of_that_name_is_not_merged() {
        let old = pod("1", json!({"culvert": {"phase": "Enrolled"}}));
        let object = pod("2", json!({"phase": "Pending"}));
        assert_eq!(merge(&object, &[old].into_iter().collect()), object);
    }

    #[test]
    fn the_directory_is_read_again_only_when_it_changed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("Pod/shop/a.json");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, serde_json::to_vec(&pod("1", json!({}))).unwrap()).unwrap();
        let first = scan(directory.path(), BTreeMap::new()).unwrap();
        assert_eq!(first.len(), 1);
        assert!(scan(directory.path(), first.clone()).is_none());
        std::fs::write(&file, "{ this is not JSON").unwrap();
        let second = scan(directory.path(), first).unwrap();
        assert!(second[&file].object.is_none());
        std::fs::remove_file(&file).unwrap();
        assert!(scan(directory.path(), second).unwrap().is_empty());
    }

    #[tokio::test]
    async fn readers_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("Pod/shop/a.json");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, serde_json::to_vec(&pod("1", json!({"phase": "x"}))).unwrap()).unwrap();
        let sender = watch::Sender::<Arc<Statuses>>::default();
        let mut seen = sender.subscribe();
        let told = async {
            loop {
                let current = Arc::clone(&seen.borrow_and_update());
                if current.of(&pod("1", json!({}))).is_some() {
                    return;
                }
                let _ = seen.changed().await;
            }
        };
        tokio::select! {
            () = run(directory.path().to_owned(), &sender) => {}
            () = told => {}
        }
    }
}
