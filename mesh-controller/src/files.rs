//! Documents of objects in a directory: `Kind/namespace-or-_cluster/name.json`.

use std::io;
use std::path::Path;

use culvert_objects::{Kind, ObjectKey, Scope};
use serde::Serialize;

/// The object of a document, by its path below the directory.
pub fn key_of(path: &Path) -> Option<ObjectKey> {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    let [kind, namespace, file] = parts[..] else { return None };
    let (kind, name) = (kind.parse::<Kind>().ok()?, file.strip_suffix(".json")?);
    Some(match kind.scope() {
        Scope::Cluster => ObjectKey::cluster(kind, name),
        Scope::Namespaced => ObjectKey::namespaced(kind, namespace, name),
    })
}

/// The objects that have a document.
///
/// # Errors
/// When the directory cannot be made or listed.
pub fn existing(directory: &Path) -> io::Result<Vec<ObjectKey>> {
    std::fs::create_dir_all(directory)?;
    let files = culvert_objects::manifest::files_below(directory)?;
    Ok(files.iter().filter_map(|file| key_of(file.strip_prefix(directory).ok()?)).collect())
}

/// Puts a document in place; readers see the one before or the new one. Not synced: documents are made anew after a crash.
///
/// # Errors
/// When it cannot be written.
pub fn replace(path: &Path, document: &impl Serialize) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return Err(io::Error::other("not a path of a file"));
    };
    std::fs::create_dir_all(directory)?;
    let temporary = directory.join(format!(".{name}.new"));
    std::fs::write(&temporary, serde_json::to_vec_pretty(document)?)?;
    std::fs::rename(&temporary, path)
}

/// Takes a document away; whether there was one.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
