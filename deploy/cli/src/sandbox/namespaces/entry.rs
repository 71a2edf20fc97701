//! Starting a program inside namespaces: the caller describes the place, the hidden subcommand goes there.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::INIT_COMMAND;

/// One bind mount of the new mount namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    /// Must exist, as a directory or a file like `source`.
    pub target: PathBuf,
    pub access: Access,
}

/// What a mounted file or directory may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// A place and what to run there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Network namespace to enter.
    pub netns: Option<PathBuf>,
    /// With a name: a UTS and a mount namespace of its own, with `mounts` and a `/sys` of the network namespace.
    pub hostname: Option<String>,
    pub mounts: Vec<Mount>,
    pub directory: Option<PathBuf>,
    /// All of the environment.
    pub environment: BTreeMap<String, String>,
    /// Program (looked up in the `PATH` of `environment`) and arguments.
    pub command: Vec<String>,
}

impl Entry {
    /// A command that goes there and then becomes `self.command`, as leader of a process group of its own.
    ///
    /// # Errors
    /// When this program's own file cannot be named.
    pub fn command(&self) -> io::Result<Command> {
        let mut command = Command::new(own_executable()?);
        command.arg(INIT_COMMAND).arg("enter").arg(serde_json::to_string(self)?).process_group(0);
        Ok(command)
    }

    /// The other end of [`Entry::command`]: goes to the place and becomes the program. Returns only on failure.
    #[must_use]
    pub fn become_it(&self) -> EntryError {
        if let Err(error) = self.go() {
            return error;
        }
        let Some((program, arguments)) = self.command.split_first() else {
            return EntryError::Exec { program: String::new(), cause: io::ErrorKind::InvalidInput.into() };
        };
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(&self.environment);
        EntryError::Exec { program: program.clone(), cause: command.exec() }
    }

    fn go(&self) -> Result<(), EntryError> {
        if let Some(path) = &self.netns {
            let file = File::open(path).map_err(|cause| EntryError::Netns { path: path.clone(), cause })?;
            setns(file, CloneFlags::CLONE_NEWNET)
                .map_err(|cause| EntryError::Netns { path: path.clone(), cause: cause.into() })?;
        }
        if let Some(hostname) = &self.hostname {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
                .map_err(|cause| EntryError::Unshare { cause: cause.into() })?;
            nix::unistd::sethostname(hostname)
                .map_err(|cause| EntryError::Unshare { cause: cause.into() })?;
            keep_mounts_private().map_err(|cause| EntryError::Unshare { cause })?;
            // A `/sys` that cannot be mounted shows the supervisor's network devices: wrong, but nothing depends on it.
            let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>);
        }
        for mount in &self.mounts {
            mount.bind().map_err(|cause| EntryError::Mount { target: mount.target.clone(), cause })?;
        }
        if let Some(directory) = &self.directory {
            std::env::set_current_dir(directory)
                .map_err(|cause| EntryError::Directory { path: directory.clone(), cause })?;
        }
        Ok(())
    }
}

/// Why a program could not be started in its place.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    #[error("cannot enter the network namespace {}: {cause}", path.display())]
    Netns { path: PathBuf, cause: io::Error },
    #[error("cannot make the mount and UTS namespace of the pod: {cause}")]
    Unshare { cause: io::Error },
    #[error("cannot mount {}: {cause}", target.display())]
    Mount { target: PathBuf, cause: io::Error },
    #[error("cannot change to the directory {}: {cause}", path.display())]
    Directory { path: PathBuf, cause: io::Error },
    #[error("cannot execute `{program}`: {cause}")]
    Exec { program: String, cause: io::Error },
}

impl EntryError {
    /// The exit code a shell would give: 127 not found, 126 not executable, 125 when the place is at fault.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Exec { cause, .. } if cause.kind() == io::ErrorKind::NotFound => 127,
            Self::Exec { .. } => 126,
            _ => 125,
        }
    }
}

impl Mount {
    fn bind(&self) -> io::Result<()> {
        mount(
            Some(&self.source),
            &self.target,
            None::<&str>,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            None::<&str>,
        )?;
        if self.access == Access::ReadOnly {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, &self.target, None::<&str>, flags, None::<&str>)?;
        }
        Ok(())
    }
}

/// Keeps mounts made from here on out of the namespace this one was copied from.
pub(super) fn keep_mounts_private() -> io::Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    Ok(())
}

/// This program, by a name that still works after its file was replaced by a newer build.
pub(super) fn own_executable() -> io::Result<PathBuf> {
    let link = Path::new("/proc/self/exe");
    if link.exists() { Ok(link.to_owned()) } else { std::env::current_exe() }
}
