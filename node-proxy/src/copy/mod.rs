//! Carries bytes both ways between two sockets, or a socket and a stream of a tunnel, until both directions have
//! ended or one side is lost.
//!
//! A direction that waits for bytes holds no buffer: it waits for readability and reads then. A side that closes its
//! direction closes that direction on the other side; a side that resets gets the other side reset.

mod buffer;
mod stream;
mod tcp;

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::limits::WorkloadLimits;
use crate::reason::Reason;

pub use stream::TunnelStream;
pub(crate) use tcp::{read_scratch, write_some};

/// A connection or tunnel that moves more than this in one go, in bytes, lets the others of its worker run.
pub const QUANTUM: usize = 64 << 10;
/// After the way towards a side has failed: how long what that side had sent before may still be delivered.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Which way bytes go: the client is the side that opened the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// One end of a carried connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

impl Side {
    fn towards(self) -> Direction {
        match self {
            Self::Client => Direction::ToClient,
            Self::Server => Direction::ToServer,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

/// Why a carried connection ended before both directions were closed.
#[derive(Debug, Error)]
pub enum CopyError {
    #[error("reading from the {side}: {error}")]
    Read { side: Side, error: io::Error },
    #[error("writing to the {side}: {error}")]
    Write { side: Side, error: io::Error },
    #[error("the {side} reset its stream of the tunnel: {error}")]
    StreamReset { side: Side, error: h2::Error },
    #[error("the tunnel to the {side} was lost: {error}")]
    TunnelLost { side: Side, error: h2::Error },
    #[error("nothing was sent for {0:?} after one side had closed")]
    Idle(Duration),
}

impl CopyError {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Read { .. } | Self::Write { .. } | Self::StreamReset { .. } => Reason::PeerReset,
            Self::TunnelLost { .. } => Reason::Tunnel,
            Self::Idle(_) => Reason::IdleTimeout,
        }
    }

    /// Whether the server has ended it, or the way to it.
    pub fn is_servers(&self) -> bool {
        match self {
            Self::Read { side, .. }
            | Self::Write { side, .. }
            | Self::StreamReset { side, .. }
            | Self::TunnelLost { side, .. } => *side == Side::Server,
            Self::Idle(_) => false,
        }
    }

    /// Whether only the way towards that side is known to be gone: what it sent before can still be delivered.
    fn leaves_last_words(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::StreamReset { .. })
    }
}

/// One direction, pinned by its caller: a future that is passed on by value is stored twice.
type OneWay<'a> = Pin<&'a mut dyn Future<Output = Result<(), CopyError>>>;

/// What both directions of one connection share.
pub struct Copy<'a> {
    limits: &'a Arc<WorkloadLimits>,
    half_closed_idle: Duration,
    count: &'a dyn Fn(Direction, u64),
    activity: Cell<u64>,
}

impl<'a> Copy<'a> {
    /// `count` is told of every delivery in bytes; `half_closed_idle` bounds silence after one side has closed.
    pub fn new(
        limits: &'a Arc<WorkloadLimits>,
        half_closed_idle: Duration,
        count: &'a dyn Fn(Direction, u64),
    ) -> Self {
        Self { limits, half_closed_idle, count, activity: Cell::new(0) }
    }

    fn delivered(&self, direction: Direction, bytes: usize) {
        self.activity.set(self.activity.get().wrapping_add(1));
        (self.count)(direction, bytes as u64);
    }

    /// Runs both directions. `to_client` is looked at first: answers that are there are delivered before a failure of
    /// the other direction counts. `lost` resolves when a side that has closed its direction goes away for good.
    async fn both<'b>(
        &self,
        mut to_server: OneWay<'b>,
        mut to_client: OneWay<'b>,
        lost: impl AsyncFn(Side) -> CopyError,
    ) -> Result<(), CopyError> {
        let (first, closed, mut rest) = tokio::select! {
            biased;
            first = &mut to_client => (first, Side::Server, to_server),
            first = &mut to_server => (first, Side::Client, to_client),
        };
        match first {
            Err(error) if error.leaves_last_words() => {
                let _ = tokio::time::timeout(LAST_WORDS, rest).await;
                Err(error)
            }
            Err(error) => Err(error),
            // Boxed, so that connections of which neither side has closed are small.
            Ok(()) => {
                let half_closed = Box::pin(async {
                    tokio::select! {
                        biased;
                        last = self.unless_idle(&mut rest) => last,
                        error = lost(closed) => Err(error),
                    }
                });
                half_closed.await
            }
        }
    }

    async fn unless_idle(&self, rest: &mut OneWay<'_>) -> Result<(), CopyError> {
        loop {
            let seen = self.activity.get();
            match tokio::time::timeout(self.half_closed_idle, &mut *rest).await {
                Ok(last) => return last,
                Err(_) if self.activity.get() != seen => {}
                Err(_) => return Err(CopyError::Idle(self.half_closed_idle)),
            }
        }
    }
}

/// Resolves when the socket has an error, such as a reset by the peer, without reading from it.
pub async fn socket_error(socket: &TcpStream) -> io::Error {
    loop {
        if let Err(error) = socket.ready(Interest::ERROR).await {
            return error;
        }
        match socket.take_error() {
            Ok(Some(error)) | Err(error) => return error,
            Ok(None) => {
                let blocked = || -> io::Result<()> { Err(io::ErrorKind::WouldBlock.into()) };
                let _ = socket.try_io(Interest::ERROR, blocked);
            }
        }
    }
}

/// Lets other threads of the node and other tasks of the worker run once per [`QUANTUM`].
struct Pace(usize);

impl Pace {
    async fn moved(&mut self, bytes: usize) {
        self.0 += bytes;
        if self.0 >= QUANTUM {
            self.0 = 0;
            give_way();
            tokio::task::yield_now().await;
        }
    }
}

/// Lets another thread have the core, if one waits for it. The scheduler would let it wait until the next tick, 4 ms and
/// more on most kernels, which is what the neighbours of a pod that sends in bulk would see on a node whose cores are
/// all busy.
pub fn give_way() {
    std::thread::yield_now();
}

fn shutdown_write(socket: &TcpStream, side: Side) -> Result<(), CopyError> {
    match socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Write) {
        // The peer is gone already; whether it had reset is told by reading.
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(CopyError::Write { side, error }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
