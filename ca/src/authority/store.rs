//! The data directory. One process at a time writes it; `rotate-root` only adds a file of its own.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use culvert_identity::TrustDomain;
use culvert_identity::files::{self, Readers};
use thiserror::Error;

use super::state::{NewRoot, RootError, RootPhase, State};

const STATE: &str = "authority.json";
const NEXT: &str = "next-root.json";
const LOCK: &str = "lock";

/// Why the data directory cannot be used. Each says what to do.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(
        "{path}: another culvert-ca uses this directory; end it first, or give this one its own --data-dir"
    )]
    Locked { path: PathBuf },
    #[error(
        "{path}: damaged ({detail}). Restore it from a copy. Without one, remove the file: the next start makes a new \
         root, and every workload must get a new certificate and the new bundle before it is trusted again"
    )]
    Damaged { path: PathBuf, detail: String },
    #[error(
        "{path}: its roots are for trust domain {kept}, not {asked}; start with --trust-domain {kept}, or with another \
         --data-dir"
    )]
    OtherTrustDomain { path: PathBuf, kept: TrustDomain, asked: TrustDomain },
    #[error("{path}: there is no root to replace yet; start `culvert-ca run` with this --data-dir once")]
    NoRootYet { path: PathBuf },
    #[error("a root is being replaced already ({path}); wait until the new one is active")]
    RotationUnderWay { path: PathBuf },
    #[error(transparent)]
    Root(#[from] RootError),
}

/// The data directory, held by this process.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    /// Locked while it lives.
    _lock: File,
}

impl Store {
    /// Makes the directory (0700) if it is missing and locks it.
    ///
    /// # Errors
    /// When it cannot be made or another process holds it.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let about = |error: io::Error| files::about(directory, &error);
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(about)?;
        let path = directory.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| files::about(&path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked { path: directory.to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(files::about(&path, &error).into()),
        }
        remove_leftovers(directory).map_err(about)?;
        Ok(Self { directory: directory.to_owned(), _lock: lock })
    }

    /// What is kept; None before the first start.
    pub(super) fn load(&self, trust_domain: &TrustDomain) -> Result<Option<State>, StoreError> {
        let path = self.directory.join(STATE);
        let Some(state) = read_state(&path)? else { return Ok(None) };
        if state.trust_domain != *trust_domain {
            let (kept, asked) = (state.trust_domain, trust_domain.clone());
            return Err(StoreError::OtherTrustDomain { path, kept, asked });
        }
        // Somebody may have restored it with wider permissions.
        fs::set_permissions(&path, Permissions::from_mode(0o600))
            .map_err(|error| files::about(&path, &error))?;
        Ok(Some(state))
    }

    pub(super) fn save(&self, state: &State) -> Result<(), StoreError> {
        let json = serde_json::to_vec_pretty(state).map_err(io::Error::from)?;
        Ok(files::replace(&self.directory.join(STATE), &json, Readers::Owner)?)
    }

    /// The root that `rotate-root` put down.
    pub(super) fn next(&self) -> Result<Option<NewRoot>, StoreError> {
        let path = self.directory.join(NEXT);
        let Some(json) = read(&path)? else { return Ok(None) };
        let damaged = |detail: String| StoreError::Damaged { path: path.clone(), detail };
        let next: NewRoot = serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
        next.check().map_err(|error| damaged(error.to_string()))?;
        Ok(Some(next))
    }

    pub(super) fn remove_next(&self) -> Result<(), StoreError> {
        let path = self.directory.join(NEXT);
        Ok(fs::remove_file(&path).map_err(|error| files::about(&path, &error))?)
    }
}

/// Puts the next root into the data directory, for the authority that runs there, or will, to take up.
///
/// # Errors
/// When there is no root yet, or one is being replaced already.
pub fn put_next_root(directory: &Path, now: SystemTime) -> Result<(), StoreError> {
    let path = directory.join(STATE);
    let state = read_state(&path)?.ok_or(StoreError::NoRootYet { path: path.clone() })?;
    if state.roots.iter().any(|root| root.phase() == RootPhase::Announced) {
        return Err(StoreError::RotationUnderWay { path });
    }
    let next = NewRoot::generate(&state.trust_domain, now)?;
    let json = serde_json::to_vec_pretty(&next).map_err(io::Error::from)?;
    let path = directory.join(NEXT);
    match files::create(&path, &json, Readers::Owner) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(StoreError::RotationUnderWay { path })
        }
        other => Ok(other?),
    }
}

fn read_state(path: &Path) -> Result<Option<State>, StoreError> {
    let Some(json) = read(path)? else { return Ok(None) };
    let damaged = |detail: String| StoreError::Damaged { path: path.to_owned(), detail };
    let state: State = serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
    state.check().map_err(|error| damaged(error.to_string()))?;
    Ok(Some(state))
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(files::about(path, &error)),
    }
}

/// Half-written copies of the state hold keys; a crash may have left some.
fn remove_leftovers(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&format!(".{STATE}.")) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
