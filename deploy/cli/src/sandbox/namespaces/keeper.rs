//! The keeper: makes the user and PID namespaces, starts the supervisor as their process 1 and waits for it. It lives
//! outside of what it keeps, so it can tidy up after a supervisor that was killed.

use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use super::entry::own_executable;
use super::{INIT_COMMAND, missing};
use crate::sandbox::control::place::Place;

/// Runs the keeper: stdin is the listening control socket, stderr the sandbox's log, `arguments` the supervisor's. Returns when the supervisor has
/// ended and its directory is gone.
///
/// # Errors
/// When the kernel refuses the namespaces; the message names the setting at fault.
pub fn run(name: &str, arguments: &str) -> Result<u8, KeeperError> {
    // A Ctrl-C meant for `up` must not reach the sandbox before `up` has asked it to end.
    let _ = nix::unistd::setsid();
    let place = Place::existing(name).map_err(KeeperError::Place)?;
    let outcome = supervise(arguments);
    place.remove_if_kept_by(std::process::id());
    outcome
}

fn supervise(arguments: &str) -> Result<u8, KeeperError> {
    enter_namespaces().map_err(|error| KeeperError::Namespaces(missing::explain(&error)))?;
    let mut child = Command::new(own_executable().map_err(KeeperError::Spawn)?)
        .arg(INIT_COMMAND)
        .arg("supervise")
        .arg(arguments)
        .stdin(Stdio::inherit())
        .spawn()
        .map_err(KeeperError::Spawn)?;
    // The listening socket must close with the supervisor: that is how others see that it has ended.
    let null = fs::OpenOptions::new().read(true).open("/dev/null").map_err(KeeperError::Spawn)?;
    nix::unistd::dup2_stdin(null).map_err(|error| KeeperError::Spawn(error.into()))?;
    let status = child.wait().map_err(KeeperError::Spawn)?;
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        (None, Some(signal)) => 128 + u8::try_from(signal).unwrap_or(0),
        (None, None) => 1,
    })
}

/// Root takes a PID namespace as it is; everybody else (and root in a container without the capability) gets it inside
/// a user namespace in which their own user is root.
fn enter_namespaces() -> io::Result<()> {
    if nix::unistd::geteuid().is_root() && unshare(CloneFlags::CLONE_NEWPID).is_ok() {
        return Ok(());
    }
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Why a sandbox could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error("{0}")]
    Namespaces(String),
    #[error("the sandbox's directory: {0}")]
    Place(io::Error),
    #[error("cannot start the supervisor: {0}")]
    Spawn(io::Error),
}
