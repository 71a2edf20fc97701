//! The keys in a file that nobody else reads.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use super::ring::Ring;

/// The ring that is kept, or the one that has taken its place just now.
///
/// # Errors
/// When the file cannot be read or written, or is damaged: then it is left as it is.
pub fn look(path: &Path, now: u64) -> io::Result<Ring> {
    let fault = |what: &dyn std::fmt::Display| io::Error::other(format!("{}: {what}", path.display()));
    let kept = match std::fs::read(path) {
        Ok(text) => Ring::parse(&text).map_err(|error| {
            fault(&format!("{error}; delete the file for new keys, with which every session ends"))
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ring::default(),
        Err(error) => return Err(fault(&error)),
    };
    let Some(next) = kept.due(now) else { return Ok(kept) };
    write(path, &next.text()).map_err(|error| fault(&error))?;
    Ok(next)
}

/// In one step, and readable to the owner only, also where an earlier attempt has left something.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_kept_for_the_owner_only_and_damage_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.json");
        let made = look(&path, 1).unwrap();
        assert_eq!(look(&path, 2).unwrap(), made);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "x").unwrap();
        let error = look(&path, 3).unwrap_err().to_string();
        assert!(error.contains("keys.json: damaged"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }
}
