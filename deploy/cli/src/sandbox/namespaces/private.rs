//! The supervisor's own namespaces: what the sandbox sees instead of the machine's `/proc`, `/sys` and `/run`.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::entry::keep_mounts_private;
use super::missing;

/// Puts the calling process, still single-threaded and process 1 of its PID namespace, into mount, network, IPC and UTS
/// namespaces of its own and ties its life to the keeper's.
///
/// # Errors
/// A text for the user that says what was refused.
pub fn enter(hostname: &str) -> Result<(), String> {
    let step = |what: &str, result: io::Result<()>| result.map_err(|error| format!("{what}: {error}"));
    step("tie the supervisor to its keeper", set_pdeathsig(Signal::SIGKILL).map_err(Into::into))?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .map_err(|error| missing::explain(&error.into()))?;
    step("make mounts private", keep_mounts_private())?;
    nix::unistd::sethostname(hostname).map_err(|error| format!("set the host name: {error}"))?;
    let nosuid = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    step("mount /proc", mount_new("proc", "/proc", nosuid | MsFlags::MS_NOEXEC, None)).map_err(|error| {
        format!("{error}; a container that hides parts of /proc forbids this (with Docker: --privileged)")
    })?;
    // `/sys` shows network devices only; where the kernel refuses a new one (containers mount it read-only) the
    // machine's stays visible, and nothing in here depends on it.
    let _ = mount_new("sysfs", "/sys", nosuid | MsFlags::MS_NOEXEC, None);
    let behind_run = resolve_into_run(Path::new("/etc/resolv.conf"));
    step("mount /run", mount_new("tmpfs", "/run", nosuid, Some("mode=755")))?;
    if let Some(target) = behind_run {
        step("prepare /etc/resolv.conf", make_empty(&target))?;
    }
    step("make /run/netns", fs::create_dir_all("/run/netns"))
}

fn mount_new(kind: &str, at: &str, flags: MsFlags, options: Option<&str>) -> io::Result<()> {
    mount(Some(kind), at, Some(kind), flags, options)?;
    Ok(())
}

/// Where a symbolic link into `/run` ends (`/etc/resolv.conf` is one with systemd-resolved): that file must exist in
/// the new `/run` for the pods' own to be mounted over it.
fn resolve_into_run(link: &Path) -> Option<PathBuf> {
    let target = fs::read_link(link).ok()?;
    let target = if target.is_absolute() { target } else { normalized(&link.parent()?.join(target)) };
    (target.starts_with("/run") || target.starts_with("/var/run")).then_some(target)
}

fn normalized(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                result.pop();
            }
            other => result.push(other),
        }
    }
    result
}

fn make_empty(file: &Path) -> io::Result<()> {
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(file, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_link_into_run_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("resolv.conf");
        let up = "../".repeat(dir.path().components().count() - 1);
        std::os::unix::fs::symlink(format!("{up}run/systemd/resolve/stub-resolv.conf"), &link).unwrap();
        assert_eq!(resolve_into_run(&link), Some(PathBuf::from("/run/systemd/resolve/stub-resolv.conf")));
        assert_eq!(resolve_into_run(Path::new("/etc/passwd")), None);
    }
}
