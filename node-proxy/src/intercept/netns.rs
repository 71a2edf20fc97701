//! Entering a network namespace and coming back.

use std::cell::{Cell, OnceCell};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

thread_local! {
    /// The namespace this thread belongs to, opened before it first leaves.
    static HOME: OnceCell<OwnedFd> = const { OnceCell::new() };
    static AWAY: Cell<bool> = const { Cell::new(false) };
}

/// Which namespace it is, for as long as somebody holds it open. The kernel may give the numbers of a dead namespace to
/// a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsId {
    pub dev: u64,
    pub ino: u64,
}

/// A network namespace, held open (and so alive) by its descriptor.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    id: NetnsId,
}

impl Netns {
    /// # Errors
    /// `InvalidInput` when the descriptor is not a network namespace; else as `setns(2)`, which needs
    /// `CAP_SYS_ADMIN` over it.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&fd)?;
        let netns = Self { fd, id: NetnsId { dev: stat.st_dev, ino: stat.st_ino } };
        // The kernel checks the type as it enters.
        netns.run(|| ())?;
        Ok(netns)
    }

    /// Opens the namespace bound at a path, for example `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// As `open(2)` and [`Netns::from_fd`].
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_fd(File::open(path)?.into())
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn home() -> io::Result<Self> {
        let fd = own_namespace()?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self { fd, id: NetnsId { dev: stat.st_dev, ino: stat.st_ino } })
    }

    /// Which namespace a path leads to, without opening it. None when the path is gone.
    ///
    /// # Errors
    /// As `stat(2)`, the missing path apart.
    pub fn id_at(path: &Path) -> io::Result<Option<NetnsId>> {
        match rustix::fs::stat(path) {
            Ok(stat) => Ok(Some(NetnsId { dev: stat.st_dev, ino: stat.st_ino })),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The descriptor, for whoever opens it anew.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs a closure with the calling thread inside this namespace. Sockets made and programs started by it belong
    /// to the namespace. The thread is home again when this returns or unwinds; a thread that cannot return aborts the
    /// process, because it would serve one pod with the network of another.
    ///
    /// # Errors
    /// As `setns(2)`; `Unsupported` when called from within such a closure.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        if AWAY.get() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "already inside a pod's network namespace",
            ));
        }
        HOME.with(|home| {
            if home.get().is_none() {
                // Set just now in the same thread, so it cannot be there already.
                let _ = home.set(own_namespace()?);
            }
            enter(&self.fd)
        })?;
        AWAY.set(true);
        let _return = Return;
        Ok(f())
    }
}

/// Brings the thread home when it goes out of scope, by return or by panic.
struct Return;

impl Drop for Return {
    fn drop(&mut self) {
        AWAY.set(false);
        HOME.with(|home| match home.get().map(enter) {
            Some(Ok(())) => {}
            failed => {
                tracing::error!(?failed, "a thread cannot return to its own network namespace");
                std::process::abort();
            }
        });
    }
}

fn enter(fd: &OwnedFd) -> io::Result<()> {
    move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network)).map_err(io::Error::from)
}

fn own_namespace() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}
