//! One conversation between the two processes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net;
use std::path::Path;
use std::time::Duration;

use culvert_api::packet;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::wire::{self, WireError};

/// Why a conversation ended.
#[derive(Debug, Error)]
pub enum Broken {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("no word within {0:?}")]
    Silent(Duration),
    #[error("the other process closed the connection")]
    Closed,
    #[error("the other end is a process of user {theirs}, not of {ours}")]
    Stranger { ours: u32, theirs: u32 },
    #[error("refused: {0}")]
    Refused(String),
    #[error("an answer to another question")]
    OutOfTurn,
}

/// Packets keep their limits on this socket; only the descriptor is of the stream type.
#[derive(Debug)]
pub(super) struct Connection(UnixStream);

impl Connection {
    /// Whoever listens or has connected there must be of this process's user.
    pub fn new(stream: UnixStream) -> Result<Self, Broken> {
        let theirs = sockopt::socket_peercred(stream.as_fd()).map_err(io::Error::from)?.uid.as_raw();
        let ours = rustix::process::geteuid().as_raw();
        if theirs == ours { Ok(Self(stream)) } else { Err(Broken::Stranger { ours, theirs }) }
    }

    /// Connecting to a Unix socket does not wait.
    pub fn open(path: &Path) -> Result<Self, Broken> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(io::Error::from)?;
        let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
        rustix::net::connect(&socket, &address).map_err(io::Error::from)?;
        Self::new(UnixStream::from_std(net::UnixStream::from(socket))?)
    }

    pub async fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<(), Broken> {
        let bytes = serde_json::to_vec(message).map_err(io::Error::from)?;
        let send = self.0.async_io(Interest::WRITABLE, || packet::send(self.0.as_fd(), &bytes, descriptors));
        timeout(patience, send).await.map_err(|_| Broken::Silent(patience))?.map_err(Broken::Io)
    }

    pub async fn receive<T: DeserializeOwned>(
        &self,
        patience: Duration,
    ) -> Result<(T, Vec<OwnedFd>), Broken> {
        let receive = self.0.async_io(Interest::READABLE, || packet::recv(self.0.as_fd()));
        let (bytes, descriptors) =
            timeout(patience, receive).await.map_err(|_| Broken::Silent(patience))??;
        if bytes.is_empty() {
            return Err(Broken::Closed);
        }
        Ok((wire::parse(&bytes)?, descriptors))
    }

    /// Returns when the other process has ended. What it still says is not heard.
    pub async fn closed(&self) {
        loop {
            let receive = self.0.async_io(Interest::READABLE, || packet::recv(self.0.as_fd()));
            match receive.await {
                Ok((bytes, _)) if !bytes.is_empty() => {}
                _ => return,
            }
        }
    }
}
