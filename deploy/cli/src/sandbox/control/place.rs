//! The directory of a running sandbox on the machine: control socket, pid file, log. All that is ever outside of the
//! sandbox's own namespaces.

use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Each failed attempt means that another sandbox of the user ended just then.
const LOCK_ATTEMPTS: u32 = 100;

/// Where one sandbox is reached.
#[derive(Clone, Debug)]
pub struct Place {
    base: PathBuf,
    name: String,
}

/// Why a sandbox's place cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error(
        "`{0}` is no name for a sandbox: 1 to 40 letters, digits and dashes, starting with a letter or digit"
    )]
    Name(String),
    #[error(
        "a sandbox named `{0}` is running already; end it with `culvert sandbox down --name {0}` or choose another --name"
    )]
    Running(String),
    #[error("no sandbox named `{0}` is running; start one with `culvert sandbox up --name {0}`")]
    NotRunning(String),
    #[error("the sandbox's directory {}: {cause}", path.display())]
    Directory { path: PathBuf, cause: io::Error },
}

impl Place {
    /// The place of the sandbox of that name, for the calling user. Nothing is made yet.
    ///
    /// # Errors
    /// When the name is not one, or the user's runtime directory cannot be made.
    pub fn of(name: &str) -> Result<Self, PlaceError> {
        let valid = name.len() <= 40
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if !valid {
            return Err(PlaceError::Name(name.to_owned()));
        }
        let mut refused = None;
        for base in base_directories() {
            match private_directory(&base) {
                Ok(()) => return Ok(Self { base, name: name.to_owned() }),
                Err(cause) => refused = Some(PlaceError::Directory { path: base, cause }),
            }
        }
        Err(refused.unwrap_or_else(|| PlaceError::NotRunning(name.to_owned())))
    }

    /// As [`Place::of`], for the keeper.
    ///
    /// # Errors
    /// As [`Place::of`].
    pub fn existing(name: &str) -> io::Result<Self> {
        Self::of(name).map_err(io::Error::other)
    }

    /// Control socket, pid file and log are in here.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.base.join(&self.name)
    }

    /// What keeper and supervisor have to say.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory().join("supervisor.log")
    }

    fn socket(&self) -> PathBuf {
        self.directory().join("control.sock")
    }

    fn pid_file(&self) -> PathBuf {
        self.directory().join("pid")
    }

    /// Makes the directory and listens, after clearing what a killed sandbox of that name left.
    ///
    /// # Errors
    /// [`PlaceError::Running`] when there is one, else when the directory cannot be made.
    pub fn claim(&self) -> Result<UnixListener, PlaceError> {
        let fail = |cause| PlaceError::Directory { path: self.directory(), cause };
        let _lock = self.lock().map_err(fail)?;
        if self.is_answering() || self.keeper().is_some() {
            return Err(PlaceError::Running(self.name.clone()));
        }
        remove_directory(&self.directory()).map_err(fail)?;
        private_directory(&self.directory()).map_err(fail)?;
        UnixListener::bind(self.socket()).map_err(fail)
    }

    /// Notes who keeps the sandbox.
    ///
    /// # Errors
    /// As writing a file.
    pub fn write_pid(&self, keeper: u32) -> io::Result<()> {
        fs::write(self.pid_file(), format!("{keeper}\n"))
    }

    /// Reaches the supervisor.
    ///
    /// # Errors
    /// [`PlaceError::NotRunning`] when nobody answers.
    pub fn connect(&self) -> Result<UnixStream, PlaceError> {
        UnixStream::connect(self.socket()).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                PlaceError::NotRunning(self.name.clone())
            }
            _ => PlaceError::Directory { path: self.socket(), cause: error },
        })
    }

    /// The keeper's process, if it still runs.
    #[must_use]
    pub fn keeper(&self) -> Option<u32> {
        let pid: u32 = fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let arguments: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        let ours = arguments.contains(&super::super::namespaces::INIT_COMMAND.as_bytes())
            && arguments.contains(&self.name.as_bytes());
        ours.then_some(pid)
    }

    /// Removes what a sandbox that no longer runs left behind. False when there was nothing.
    ///
    /// # Errors
    /// As removing files.
    pub fn clear(&self) -> Result<bool, PlaceError> {
        let fail = |cause| PlaceError::Directory { path: self.directory(), cause };
        let _lock = self.lock().map_err(fail)?;
        if self.is_answering() {
            return Ok(false);
        }
        let existed = self.directory().exists();
        self.remove().map_err(fail)?;
        Ok(existed)
    }

    /// For the keeper at its end: removes the directory unless a new sandbox has taken it over.
    pub fn remove_if_kept_by(&self, keeper: u32) {
        let Ok(_lock) = self.lock() else { return };
        let ours = fs::read_to_string(self.pid_file()).is_ok_and(|pid| pid.trim() == keeper.to_string());
        if ours {
            let _ = self.remove();
        }
    }

    fn is_answering(&self) -> bool {
        UnixStream::connect(self.socket()).is_ok()
    }

    /// Held while a directory is judged, made or removed; released when dropped.
    fn lock(&self) -> io::Result<OwnedFd> {
        for _ in 0..LOCK_ATTEMPTS {
            private_directory(&self.base)?;
            let base = File::open(&self.base)?;
            flock(&base, FlockOperation::LockExclusive)?;
            // Whoever held it before may have been the last and removed it.
            let same = fs::metadata(&self.base).and_then(|now| Ok(now.ino() == base.metadata()?.ino()));
            if same.unwrap_or(false) {
                return Ok(OwnedFd::from(base));
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Removes the sandbox's directory, and the one around it when it was the last. Under [`Place::lock`].
    fn remove(&self) -> io::Result<()> {
        remove_directory(&self.directory())?;
        match fs::remove_dir(&self.base) {
            Err(error)
                if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

/// Where directories of sandboxes may be, best first: the machine's for root, the user's session's, one in the directory
/// for temporary files. Root of a container may have to do with the last.
fn base_directories() -> Vec<PathBuf> {
    let uid = nix::unistd::geteuid();
    let machine = uid.is_root().then(|| PathBuf::from("/run/culvert"));
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(|runtime| PathBuf::from(runtime).join("culvert"));
    let temporary = std::env::temp_dir().join(format!("culvert-{uid}"));
    machine.into_iter().chain(session).chain([temporary]).collect()
}

/// Makes the directory for its owner alone; one that belongs to somebody else is refused.
fn private_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(path)?;
    let owned = metadata.is_dir()
        && metadata.uid() == nix::unistd::geteuid().as_raw()
        && metadata.mode() & 0o022 == 0;
    if owned {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "is not this user's own directory"))
    }
}

fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(base: &Path) -> Place {
        Place { base: base.to_owned(), name: "t".to_owned() }
    }

    #[test]
    fn a_running_sandbox_keeps_its_place_and_a_dead_one_gives_it_up() {
        let base = tempfile::tempdir().unwrap();
        let place = place(base.path());
        assert!(matches!(place.connect(), Err(PlaceError::NotRunning(_))));
        let listener = place.claim().unwrap();
        assert!(matches!(place.claim(), Err(PlaceError::Running(_))));
        assert!(!place.clear().unwrap());
        drop(listener);
        assert!(matches!(place.connect(), Err(PlaceError::NotRunning(_))));
        drop(place.claim().unwrap());
        assert!(place.clear().unwrap());
        assert!(!base.path().exists(), "the last one takes the directory around it along");
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for name in ["", "../x", "a/b", "-a", &"x".repeat(41)] {
            assert!(matches!(Place::of(name), Err(PlaceError::Name(_))), "{name}");
        }
    }
}
