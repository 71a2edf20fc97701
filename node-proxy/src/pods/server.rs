//! The enrolment socket: `culvert_api::enrolment` served to many clients at once.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert_api::enrolment::{Reply, Request, recv_packet, send_packet};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Clients served at once; more wait to be accepted.
const CLIENTS: usize = 512;
const BACKLOG: i32 = 1024;
/// A client that says nothing, or does not take its reply, is cut off.
const IDLE: Duration = Duration::from_secs(60);
/// A request is answered by then, whatever the state of the pod: clients wait 10 s.
const ANSWER: Duration = Duration::from_millis(9_700);
/// After a failed accept: descriptors may be exhausted.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A request for the manager, with its descriptor if one came.
pub(super) struct Asked {
    pub request: Request,
    pub netns: Option<OwnedFd>,
    pub reply: oneshot::Sender<Reply>,
}

/// Makes a local socket, in place of one that an earlier process left, for its owner only.
///
/// # Errors
/// When the path cannot be used.
pub(crate) fn bind(path: &Path) -> io::Result<OwnedFd> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&new)?)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    fs::rename(&new, path)?;
    Ok(socket)
}

/// Serves until cancelled. When `retired`, takes no more clients and sees to it that those there are have their answer.
///
/// # Errors
/// When the runtime does not take the socket.
pub(super) async fn serve(
    socket: OwnedFd,
    manager: mpsc::Sender<Asked>,
    cancel: CancellationToken,
    retired: CancellationToken,
) -> io::Result<()> {
    // Packets keep their limits on this socket; only the descriptor is of the stream type.
    let listener = UnixListener::from_std(net::UnixListener::from(socket))?;
    let slots = Arc::new(Semaphore::new(CLIENTS));
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let accept = async {
            let slot = slots.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, slot))
        };
        let accepted = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = retired.cancelled() => break,
            accepted = accept => accepted,
        };
        match accepted {
            Some((Ok((stream, _)), slot)) => {
                let manager = manager.clone();
                clients.spawn(async move {
                    if let Err(error) = converse(&stream, &manager).await {
                        tracing::debug!(%error, "an enrolment client went away");
                    }
                    drop(slot);
                });
            }
            Some((Err(error), _)) => {
                tracing::warn!(%error, "cannot accept on the enrolment socket");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
            None => return Ok(()),
        }
    }
    drop(listener);
    let all = async { while clients.join_next().await.is_some() {} };
    cancel.run_until_cancelled(all).await;
    Ok(())
}

/// One reply per request, in order, until the client goes.
async fn converse(stream: &UnixStream, manager: &mpsc::Sender<Asked>) -> io::Result<()> {
    loop {
        let packet = within(IDLE, stream.async_io(Interest::READABLE, || recv_packet(stream.as_fd()))).await;
        let reply = match packet {
            Ok((bytes, _)) if bytes.is_empty() => return Ok(()),
            Ok((bytes, netns)) => match serde_json::from_slice::<Request>(&bytes) {
                Ok(request) => answer(request, netns, manager).await,
                Err(error) => Reply::Invalid { message: format!("the request does not parse: {error}") },
            },
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Reply::Invalid { message: error.to_string() }
            }
            Err(error) => return Err(error),
        };
        let bytes = serde_json::to_vec(&reply)?;
        let send = stream.async_io(Interest::WRITABLE, || send_packet(stream.as_fd(), &bytes, None));
        within(IDLE, send).await?;
    }
}

async fn answer(request: Request, netns: Option<OwnedFd>, manager: &mpsc::Sender<Asked>) -> Reply {
    let (reply, answered) = oneshot::channel();
    let ask = async {
        manager.send(Asked { request, netns, reply }).await.ok()?;
        answered.await.ok()
    };
    tokio::time::timeout(ANSWER, ask).await.ok().flatten().unwrap_or_else(|| Reply::Wait {
        component: "culvert-node-proxy".into(),
        message: "the node proxy is busy or ending".into(),
        remedy: "it is asked again; if this stays, look at the node proxy's log".into(),
    })
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
