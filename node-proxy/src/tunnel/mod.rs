//! HBONE: HTTP/2 CONNECT streams over mutually authenticated TLS, one per carried connection, as ztunnel speaks it.

pub mod dial;
pub(crate) mod driver;
pub mod early;
pub mod headers;
mod paced;
pub mod pool;
pub mod server;
pub mod window;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_identity::{Identity, PeerError};
use http::StatusCode;
use thiserror::Error;
use tokio::time::Instant;

use crate::identity::CertificateError;
use crate::reason::Reason;

/// The flow-control window of a whole tunnel: at its maximum, so that one stalled stream never stops the others.
/// Memory is bounded by the streams' windows.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Payload of the largest frame accepted, in bytes. Large enough that framing costs little, small enough that a bulk stream
/// does not hold up its neighbours. With its header and those of its TLS records it fits what one call gives to rustls
/// (64 KiB) and what the kernel sends as one packet to be segmented later (64 KiB less a part of a segment): with 64 KiB
/// of payload each frame left a few bytes for a record and a packet of their own.
pub const MAX_FRAME: u32 = 62 << 10;
/// Bytes of one stream that may wait to be written to the tunnel's socket: two of the largest reads.
const SEND_BUFFER: usize = 8 * MAX_FRAME as usize;
/// Header lists that a server accepts.
const SERVER_HEADERS: u32 = 64 << 10;
/// Header lists that a client accepts.
const CLIENT_HEADERS: u32 = 16 << 10;
/// Bookkeeping for small frames waiting to be read, per tunnel: a peer that sends single bytes to stalled readers
/// must not take more.
const SMALL_FRAMES: usize = 128 << 20;
/// Resets that may be outstanding in a tunnel. The default of 20 closes a tunnel shared by all connections of a pair
/// of pods when clients cancel a few dozen of them at once.
const PENDING_RESETS: usize = 4096;
/// Streams that a server accepts at once in one tunnel, if the workload's limits allow them.
const SERVER_STREAMS: u32 = 4096;
/// A tunnel whose peer does not answer a PING is dead.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A tunnel takes no new streams this long before a certificate ends, or a tenth of the certificate's remaining life
/// if that is shorter.
const END_MARGIN: Duration = Duration::from_secs(600);

/// Why a tunnel or a stream of it could not be had. Cheap to clone: everyone who waited for the same attempt gets it.
#[derive(Clone, Debug, Error)]
pub enum TunnelError {
    #[error("no socket in the pod's namespace: {0}")]
    Socket(Arc<io::Error>),
    #[error("connecting to {to}: {error}")]
    Connect { to: SocketAddr, error: Arc<io::Error> },
    #[error("TLS with {to}: {error}")]
    Tls { to: SocketAddr, error: Arc<io::Error> },
    #[error("TLS with {to}: no end of the handshake within {after:?}")]
    TlsTimeout { to: SocketAddr, after: Duration },
    #[error("{to} proved no identity: {error}")]
    NoPeer { to: SocketAddr, error: PeerError },
    #[error("{to} is {actual}, expected {expected}")]
    PeerIdentity { to: SocketAddr, expected: Identity, actual: Identity },
    #[error("{0} has no identity to expect")]
    NoIdentity(SocketAddr),
    #[error(transparent)]
    NoCertificate(#[from] CertificateError),
    #[error("HTTP/2 with {to}: {error}")]
    Http2 { to: SocketAddr, error: Arc<h2::Error> },
    #[error("HTTP/2 with {to}: no answer within {after:?}")]
    Http2Timeout { to: SocketAddr, after: Duration },
    #[error("{to} answered CONNECT {status}")]
    Refused { to: SocketAddr, status: StatusCode },
    #[error("{to} has not answered, and may have delivered what the client said: {error}")]
    Unanswered { to: SocketAddr, error: Box<TunnelError> },
    #[error("no room in {tunnels} tunnels to {to} within the deadline")]
    Full { to: SocketAddr, tunnels: usize },
    #[error("the attempt to open the tunnel was given up")]
    GivenUp,
}

impl TunnelError {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Socket(_) | Self::GivenUp => Reason::Local,
            Self::Connect { .. } => Reason::Connect,
            Self::Tls { .. } | Self::TlsTimeout { .. } => Reason::TlsHandshake,
            Self::NoPeer { .. } | Self::PeerIdentity { .. } | Self::NoIdentity(_) => Reason::PeerIdentity,
            Self::NoCertificate(_) => Reason::NoCertificate,
            Self::Http2 { .. } | Self::Http2Timeout { .. } | Self::Refused { .. } => Reason::Tunnel,
            Self::Full { .. } => Reason::WorkloadLimit,
            Self::Unanswered { error, .. } => error.reason(),
        }
    }

    /// Whether another endpoint may do better, and be asked: the fault is not this workload's own, and nothing can have been
    /// delivered.
    pub fn may_try_another(&self) -> bool {
        !matches!(self, Self::Unanswered { .. }) && self.is_endpoints_fault()
    }

    /// Whether the endpoint should be avoided for a while.
    pub fn is_endpoints_fault(&self) -> bool {
        match self {
            Self::Socket(_) | Self::NoCertificate(_) | Self::Full { .. } | Self::GivenUp => false,
            Self::Refused { status, .. } => status.is_server_error(),
            Self::Unanswered { error, .. } => error.is_endpoints_fault(),
            Self::Connect { .. }
            | Self::Tls { .. }
            | Self::TlsTimeout { .. }
            | Self::NoPeer { .. }
            | Self::PeerIdentity { .. }
            | Self::NoIdentity(_)
            | Self::Http2 { .. }
            | Self::Http2Timeout { .. } => true,
        }
    }
}

/// When a tunnel must take no new streams: before either certificate ends.
fn retire_at(now: SystemTime, first_end: SystemTime) -> Instant {
    let left = first_end.duration_since(now).unwrap_or_default();
    Instant::now() + left.saturating_sub(END_MARGIN.min(left / 10))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
