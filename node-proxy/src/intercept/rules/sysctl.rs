//! Kernel settings of a pod's namespace that capture depends on. `/proc/sys/net` shows the namespace of the thread that
//! looks, wherever it is mounted.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::intercept::Netns;

const SETTINGS: &str = "/proc/sys/net";
/// The same where containers may write it: in those without all privileges `/proc/sys` is read-only.
const MOUNTED: &str = "/host/proc/sys/net";

/// Capture cannot work with this setting, and it could not be changed.
#[derive(Debug, Error)]
#[error("{path} is {found} in the pod's namespace, capture needs {wanted}, and it cannot be set: {error}")]
pub struct SysctlError {
    path: PathBuf,
    found: String,
    wanted: &'static str,
    error: io::Error,
}

struct Setting {
    path: PathBuf,
    wanted: &'static str,
    need: Need,
}

enum Need {
    Must,
    /// Better so; where `/proc/sys` is read-only it stays as it is.
    Should,
}

/// Puts right what is wrong, and leaves alone what is right or missing.
///
/// # Errors
/// When a setting that matters is wrong and cannot be changed.
pub(super) fn ensure(netns: &Netns) -> io::Result<Result<(), SysctlError>> {
    netns.run(|| settings(directory()).iter().try_for_each(put_right))
}

fn directory() -> &'static Path {
    let mounted = Path::new(MOUNTED);
    if mounted.exists() { mounted } else { Path::new(SETTINGS) }
}

fn settings(directory: &Path) -> Vec<Setting> {
    let must = |path: &str| Setting { path: directory.join(path), wanted: "0", need: Need::Must };
    let should = |path: &str, wanted| Setting { path: directory.join(path), wanted, need: Need::Should };
    let mut settings = vec![
        // Accepted connections would take the mark of the captured SYN in place of the proxy's.
        must("ipv4/tcp_fwmark_accept"),
        // Answers of the kernel to captured packets would go to lo instead of the client.
        should("ipv4/fwmark_reflect", "0"),
        should("ipv6/fwmark_reflect", "0"),
        // A packet outside of the window has no connection mark: it would go around the proxy and reset the connection.
        should("netfilter/nf_conntrack_tcp_be_liberal", "1"),
        // The source ports of connections to the application (`sockets::source_ports`) are few: those of one client
        // would run out at some 450 connections per second if each were kept in TIME_WAIT for a minute (RFC 6191).
        should("ipv4/tcp_tw_reuse", "1"),
    ];
    // With it the check of a captured packet's source address looks at the mark and finds lo: dropped as martian.
    // Reverse path filtering itself may be on, also strict.
    let devices = std::fs::read_dir(directory.join("ipv4/conf")).into_iter().flatten().flatten();
    settings.extend(devices.map(|device| Setting {
        path: device.path().join("src_valid_mark"),
        wanted: "0",
        need: Need::Must,
    }));
    settings
}

fn put_right(setting: &Setting) -> Result<(), SysctlError> {
    let Ok(found) = std::fs::read_to_string(&setting.path) else { return Ok(()) };
    let found = found.trim();
    if found == setting.wanted {
        return Ok(());
    }
    match (write(&setting.path, setting.wanted), &setting.need) {
        (Ok(()), _) => Ok(()),
        (Err(error), Need::Should) => {
            tracing::debug!(path = %setting.path.display(), found, wanted = setting.wanted, %error, "setting left as it is");
            Ok(())
        }
        (Err(error), Need::Must) => Err(SysctlError {
            path: setting.path.clone(),
            found: found.to_owned(),
            wanted: setting.wanted,
            error,
        }),
    }
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    std::fs::write(path, value)
}
