//! Every object as a file for CA and controller: written under a name that readers ignore, then renamed.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert_objects::{Object, Objects};
use tracing::warn;

use super::Store;

/// After a failed write (a full disk), the wait before the next attempt.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps `directory` equal to the store, forever.
pub(super) async fn run(store: Store, directory: PathBuf) {
    let mut changed = store.changed();
    let mut written = Arc::new(Objects::default());
    loop {
        changed.mark_unchanged();
        let (wanted, before, to) = (store.objects(), Arc::clone(&written), directory.clone());
        let attempt =
            tokio::task::spawn_blocking(move || write(&to, &before, &wanted).map(|()| wanted)).await;
        match attempt.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(wanted) => {
                written = wanted;
                if changed.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                warn!(%error, directory = %directory.display(), "objects cannot be written for CA and controller");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Writes what differs between two states. Repeating it after a failure is safe.
fn write(directory: &Path, before: &Objects, after: &Objects) -> io::Result<()> {
    for object in after.iter() {
        let same = before.get(&object.key()).is_some_and(|old| Arc::ptr_eq(old, object));
        if !same {
            write_object(directory, object)?;
        }
    }
    let mut emptied = BTreeSet::new();
    for object in before.iter().filter(|object| after.get(&object.key()).is_none()) {
        let path = directory.join(object.key().relative_path());
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => emptied.extend(path.parent().map(Path::to_owned)),
        }
    }
    for directory in emptied {
        // Fails while other objects are left in it, which is as it should be.
        let _ = std::fs::remove_dir(directory);
    }
    Ok(())
}

fn write_object(directory: &Path, object: &Object) -> io::Result<()> {
    let path = directory.join(object.key().relative_path());
    let parent = path.parent().unwrap_or(directory);
    std::fs::create_dir_all(parent)?;
    let draft = parent.join(format!(".{}.new", object.name()));
    std::fs::write(&draft, serde_json::to_vec_pretty(object)?)?;
    std::fs::rename(&draft, &path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_objects::{Kind, ObjectKey};

    fn object(namespace: &str, label: &str) -> Object {
        let mut object = Object::new(ObjectKey::namespaced(Kind::Service, namespace, "cart"));
        object.metadata.labels.insert("version".to_owned(), label.to_owned());
        object
    }

    #[test]
    fn files_follow_the_objects() {
        let directory = tempfile::tempdir().unwrap();
        let first: Objects = [object("shop", "1"), object("bank", "1")].into_iter().collect();
        write(directory.path(), &Objects::default(), &first).unwrap();
        let second: Objects = [object("shop", "2")].into_iter().collect();
        write(directory.path(), &first, &second).unwrap();

        let text = std::fs::read(directory.path().join("Service/shop/cart.json")).unwrap();
        let read: Object = serde_json::from_slice(&text).unwrap();
        assert_eq!(read, object("shop", "2"));
        assert!(!directory.path().join("Service/bank").exists());
        assert_eq!(
            std::fs::read_dir(directory.path().join("Service/shop")).unwrap().count(),
            1,
            "no drafts stay"
        );
    }
}
