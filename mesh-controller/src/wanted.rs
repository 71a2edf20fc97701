//! Objects that the mesh needs made, as documents in a directory: whoever runs the controller applies them, and deletes what
//! has no document any more.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert_objects::{Object, ObjectKey};
use tokio::sync::watch;

use crate::files;

/// Before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What is wanted at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    pub objects: Vec<Object>,
    /// Some Gateway could not be read: what is not wanted may be its, and stays.
    pub is_partial: bool,
}

/// Follows what is wanted until its sender is gone.
pub async fn write(directory: PathBuf, mut wanted: watch::Receiver<Arc<Wanted>>) {
    loop {
        let newest = wanted.borrow_and_update().clone();
        let at = directory.clone();
        let written = tokio::task::spawn_blocking(move || settle(&at, &newest)).await;
        match written.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(()) => {
                if wanted.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(directory = %directory.display(), %error, "wanted objects cannot be written; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Brings the directory to what is wanted; leaves alone what is equal.
fn settle(directory: &Path, wanted: &Wanted) -> io::Result<()> {
    let mut gone: BTreeSet<ObjectKey> = files::existing(directory)?.into_iter().collect();
    for object in &wanted.objects {
        let key = object.key();
        let path = directory.join(key.relative_path());
        let before = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Object>(&text).ok());
        if before.as_ref() != Some(object) {
            files::replace(&path, object)?;
        }
        gone.remove(&key);
    }
    if !wanted.is_partial {
        for key in gone {
            files::remove(&directory.join(key.relative_path()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_objects::Kind;

    #[test]
    fn a_directory_holds_what_is_wanted_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let object = |kind, name: &str| Object::new(ObjectKey::namespaced(kind, "shop", name));
        let both = vec![object(Kind::ServiceAccount, "edge"), object(Kind::Deployment, "edge")];
        settle(at, &Wanted { objects: both.clone(), is_partial: false }).unwrap();
        let written = at.join("Deployment/shop/edge.json");
        let stamp = std::fs::metadata(&written).unwrap().modified().unwrap();
        let read = culvert_objects::manifest::load(&at.join("ServiceAccount")).objects;
        assert_eq!(read.first().map(|at| &at.object), Some(&both[0]));
        settle(at, &Wanted { objects: both.clone(), is_partial: false }).unwrap();
        assert_eq!(
            std::fs::metadata(&written).unwrap().modified().unwrap(),
            stamp,
            "equal: not written again"
        );

        let one = vec![both[0].clone()];
        settle(at, &Wanted { objects: one.clone(), is_partial: true }).unwrap();
        assert!(written.exists(), "it may belong to a Gateway that could not be read");
        settle(at, &Wanted { objects: one, is_partial: false }).unwrap();
        assert!(!written.exists() && at.join("ServiceAccount/shop/edge.json").exists());
    }
}
