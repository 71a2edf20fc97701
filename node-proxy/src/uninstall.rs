//! Takes everything of Culvert off a node whose mesh is taken away: what a node proxy that ends leaves in place, so that
//! its pods stay closed until the next one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use culvert_cni::install::{self, Directories};
use culvert_identity::process;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;
use tracing::{info, warn};

use crate::handover;
use crate::pods::{RemovalError, remove_rules};

/// Between two looks at whether a node proxy still runs, or something has come back.
const LOOK: Duration = Duration::from_secs(2);

/// Flags of `culvert-node-proxy uninstall`.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    #[command(flatten)]
    pub cni: Directories,
    /// The node proxy's --state-dir; everything in it is removed
    #[arg(long)]
    pub state_dir: PathBuf,
    /// The node proxy's --enrolment-socket
    #[arg(long)]
    pub enrolment_socket: PathBuf,
    /// Go on until told to end, and remove what comes back
    #[arg(long)]
    pub stay: bool,
}

/// What could not be removed.
#[derive(Debug, Error)]
pub enum UninstallError {
    #[error("the CNI plugin: {0}")]
    Cni(io::Error),
    #[error(transparent)]
    Rules(#[from] RemovalError),
    #[error("{path}: {error}")]
    Kept { path: PathBuf, error: io::Error },
}

/// Waits until no node proxy serves this node, then removes; with `stay` again and again until told to end.
///
/// # Errors
/// When something cannot be removed. With `stay` that is logged and tried again.
pub async fn run(flags: &Flags) -> anyhow::Result<()> {
    let terminated = process::terminated()?;
    let work = async {
        loop {
            if is_served(&flags.enrolment_socket) {
                info!("waiting for the end of the node proxy");
            } else {
                match remove(flags).await {
                    Ok(()) if !flags.stay => return Ok(()),
                    Ok(()) => {}
                    Err(error) if !flags.stay => return Err(error.into()),
                    Err(error) => warn!(%error, "something of Culvert is left on this node; trying again"),
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        _ = terminated => Ok(()),
        done = work => done,
    }
}

/// The CNI plugin goes first: new pods must not wait for a mesh that does not come back.
async fn remove(flags: &Flags) -> Result<(), UninstallError> {
    install::uninstall(&flags.cni).map_err(UninstallError::Cni)?;
    if !flags.state_dir.exists() {
        return Ok(());
    }
    let pods = remove_rules(&flags.state_dir).await?;
    let kept = empty(&flags.state_dir)?;
    let sockets =
        remove_file(&flags.enrolment_socket)? + remove_file(&handover::socket_path(&flags.enrolment_socket))?;
    if pods + kept + sockets > 0 {
        info!(pods, "removed from this node");
    }
    Ok(())
}

/// Somebody listens on the socket.
fn is_served(socket: &Path) -> bool {
    let connect = || {
        let flags = SocketFlags::CLOEXEC;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(socket)?)
    };
    connect().is_ok()
}

/// The directory itself stays: it may be where a volume is mounted.
fn empty(directory: &Path) -> Result<usize, UninstallError> {
    let about = |error| UninstallError::Kept { path: directory.to_owned(), error };
    let mut removed = 0;
    for entry in fs::read_dir(directory).map_err(about)? {
        let path = entry.map_err(about)?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path).map_err(|error| UninstallError::Kept { path, error })?;
            removed += 1;
        } else {
            removed += remove_file(&path)?;
        }
    }
    Ok(removed)
}

fn remove_file(path: &Path) -> Result<usize, UninstallError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(1),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(UninstallError::Kept { path: path.to_owned(), error }),
    }
}
