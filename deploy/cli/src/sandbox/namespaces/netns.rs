//! Network namespaces with names. A namespace lives as long as its file under `/run/netns` is mounted or a process is
//! in it.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};

use crate::sandbox::cluster::netns_path;

/// An open network namespace. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    path: PathBuf,
}

impl Netns {
    /// Makes a namespace and mounts it at `/run/netns/NAME`.
    ///
    /// # Errors
    /// When the name is taken, or the kernel refuses a namespace or mount.
    pub fn create(name: &str) -> io::Result<Self> {
        let path = netns_path(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        File::create_new(&path)?;
        let mounted = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(())
        });
        if let Err(error) = mounted {
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        Self::open(&path)
    }

    /// Gives the caller's own namespace a name.
    ///
    /// # Errors
    /// As [`Netns::create`].
    pub fn name_current(name: &str) -> io::Result<Self> {
        let path = netns_path(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        File::create_new(&path)?;
        mount(Some("/proc/self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Self::open(&path)
    }

    /// Opens the namespace mounted at `path`.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: Arc::new(File::open(path)?), path: path.to_owned() })
    }

    /// Opens the namespace of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> io::Result<Self> {
        Self::open(&netns_path(name))
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the name away; the namespace itself goes when its last process and descriptor do.
    ///
    /// # Errors
    /// As `umount(2)` and `unlink(2)`; a name that is gone already is fine.
    pub fn remove(&self) -> io::Result<()> {
        match umount2(&self.path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Runs `f` on a thread of its own inside the namespace and waits for it. The thread ends afterwards, so nothing
    /// can go on in the wrong namespace. For short work: opening sockets, writing sysctls.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_own_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            Ok(f())
        })
    }

    /// A TCP connection from inside the namespace.
    ///
    /// # Errors
    /// As `connect(2)`; `TimedOut` after `timeout`.
    pub async fn connect(&self, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        let socket = self.run(|| match to.ip() {
            IpAddr::V4(_) => socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None),
            IpAddr::V6(_) => socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None),
        })??;
        socket.set_nonblocking(true)?;
        let socket = TcpSocket::from_std_stream(socket.into());
        tokio::time::timeout(timeout, socket.connect(to)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn on_own_thread<T: Send>(f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, f)?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread inside the network namespace panicked")))
    })
}
