//! The local socket between whoever creates a pod's network namespace (the CNI plugin, the sandbox) and the node
//! proxy: a `SOCK_SEQPACKET` Unix socket. One packet per message, JSON, at most [`MAX_PACKET`] bytes; `add` carries
//! exactly one descriptor (the network namespace) by `SCM_RIGHTS`. One reply per request, in order.

use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};

/// Largest packet in bytes, in both directions.
pub const MAX_PACKET: usize = 16 * 1024;

/// Who a pod is, in the Kubernetes API's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// `metadata.uid`.
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

/// What is asked of the node proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// A pod's namespace exists, with its addresses, and nothing runs in it yet. The descriptor of the namespace comes
    /// along; `netns_path` is where it can be opened again after a restart of the node proxy. Answered when the pod
    /// may start: at once if it is not enrolled, else when rules, listeners and certificate are in force.
    Add { pod: PodRef, netns_path: PathBuf, addresses: Vec<IpAddr> },
    /// The pod is gone, or about to go. Unknown pods are not an error.
    Remove { pod: PodRef },
}

/// The node proxy's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Reply {
    /// The pod is captured and may start.
    Enrolled,
    /// The pod is not part of the mesh and may start.
    NotEnrolled,
    /// Done with a pod that was removed.
    Removed,
    /// The pod must not start yet; ask again. `component` is who is missing, `remedy` what to do about it.
    Wait { component: String, message: String, remedy: String },
    /// The request makes no sense; asking again will not help.
    Invalid { message: String },
}

/// Sends a request and waits for its reply, each step bounded by `timeout`. Blocking: call it off the async threads.
///
/// # Errors
/// When nobody listens, the deadline passes, or the reply is not one.
pub fn call(
    socket: &Path,
    request: &Request,
    netns: Option<BorrowedFd<'_>>,
    timeout: Duration,
) -> io::Result<Reply> {
    let fd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(timeout))?;
    sockopt::set_socket_timeout(&fd, sockopt::Timeout::Send, Some(timeout))?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(socket)?)?;
    send_packet(fd.as_fd(), &serde_json::to_vec(request)?, netns)?;
    let (bytes, _) = recv_packet(fd.as_fd())?;
    serde_json::from_slice(&bytes).map_err(io::Error::from)
}

/// Sends one packet, with at most one descriptor.
///
/// # Errors
/// As `sendmsg(2)`.
pub fn send_packet(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives one packet and the descriptor that came with it, if any. An empty packet means the peer is gone.
///
/// # Errors
/// As `recvmsg(2)`; `InvalidData` when the packet or its ancillary data was cut, or more than one descriptor came.
pub fn recv_packet(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; MAX_PACKET];
    // On a socket with a timeout any signal of the process ends the wait, SIGCHLD most often.
    let got = rustix::io::retry_on_intr(|| {
        let into = &mut [IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(socket, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptors: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if got.flags.contains(rustix::net::ReturnFlags::TRUNC)
        || got.flags.contains(rustix::net::ReturnFlags::CTRUNC)
        || descriptors.len() > 1
    {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet too long or too many descriptors"));
    }
    bytes.truncate(got.bytes);
    Ok((bytes, descriptors.pop()))
}

/// File in the node proxy's state directory that holds [`KeptNamespaces`] as JSON.
pub const KEPT_NAMESPACES: &str = "namespaces.json";

/// Who is wanted in the mesh, as the node proxy last knew it: for whoever must decide while nobody can be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptNamespaces {
    /// By name, whether the namespace's label enrols its pods. One that is missing is not known.
    pub enrols: std::collections::BTreeMap<String, bool>,
    /// Of pods that the node already had, by uid, whether they are wanted: a pod's own label wins over its namespace's.
    #[serde(default)]
    pub pods: std::collections::BTreeMap<String, bool>,
}
