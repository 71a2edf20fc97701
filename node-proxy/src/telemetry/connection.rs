//! One connection's account: who, where to, how protected, how many bytes, how it ended.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use culvert_identity::Identity;
use culvert_routing::CompiledRule;

use super::registry::{Direction, Telemetry};
use super::series::TcpSeries;
use crate::reason::Reason;
use crate::state::model::{Service, ServiceKey, Workload};

/// Which end of the connection this proxy stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reporter {
    /// At the client's node.
    Source,
    /// At the server's node.
    Destination,
}

/// How the bytes travel between the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Security {
    MutualTls,
    Plaintext(WhyPlaintext),
}

/// Why a connection is not protected: a closed list, the same words in log and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WhyPlaintext {
    /// The destination workload is not enrolled.
    DestinationNotEnrolled,
    /// The destination address belongs to no workload.
    DestinationOutsideMesh,
    /// Plaintext came from a client that is not enrolled.
    SourceOutsideMesh,
    /// One end is a host-network pod.
    HostNetwork,
    /// A declared kubelet probe.
    Probe,
    /// The workload is leaving the mesh.
    Leaving,
    /// Refused before it was known how to reach the destination: nothing was sent.
    NothingSent,
}

impl WhyPlaintext {
    pub const ALL: [Self; 7] = [
        Self::DestinationNotEnrolled,
        Self::DestinationOutsideMesh,
        Self::SourceOutsideMesh,
        Self::HostNetwork,
        Self::Probe,
        Self::Leaving,
        Self::NothingSent,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::DestinationNotEnrolled => "DestinationNotEnrolled",
            Self::DestinationOutsideMesh => "DestinationOutsideMesh",
            Self::SourceOutsideMesh => "SourceOutsideMesh",
            Self::HostNetwork => "HostNetwork",
            Self::Probe => "Probe",
            Self::Leaving => "Leaving",
            Self::NothingSent => "NothingSent",
        }
    }
}

impl Security {
    /// The value of `connection_security_policy`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Plaintext(_) => "none",
        }
    }

    /// Why it is not mutual TLS.
    pub fn why(self) -> Option<&'static str> {
        match self {
            Self::MutualTls => None,
            Self::Plaintext(why) => Some(why.as_str()),
        }
    }
}

/// What is known of a connection when it is decided.
#[derive(Clone, Debug)]
pub struct ConnectionMeta {
    pub reporter: Reporter,
    pub source: Option<Arc<Workload>>,
    pub source_addr: SocketAddr,
    /// Proven by the handshake, or the pod's own.
    pub source_identity: Option<Identity>,
    pub destination: Option<Arc<Workload>>,
    /// Where the application listens (after Service translation).
    pub destination_addr: SocketAddr,
    /// The peer's port 15008, when the connection is carried by a tunnel.
    pub hbone_addr: Option<SocketAddr>,
    pub destination_identity: Option<Identity>,
    /// The Service that the client dialled; of a connection that a route has taken, its backend.
    pub service: Option<Arc<Service>>,
    /// What a TCPRoute or TLSRoute made of the connection.
    pub routed: Option<Arc<RoutedConnection>>,
    pub security: Security,
}

/// Where a route about connections has sent one.
#[derive(Clone, Debug)]
pub struct RoutedConnection {
    /// The Service that the client dialled.
    pub service: ServiceKey,
    /// What its TLS asked for.
    pub server_name: Option<Arc<str>>,
    /// `None`: no rule takes it.
    pub rule: Option<Arc<CompiledRule>>,
    pub backend: Option<(ServiceKey, u16)>,
}

impl ConnectionMeta {
    pub(super) fn direction(&self) -> Direction {
        match self.reporter {
            Reporter::Source => Direction::Outbound,
            Reporter::Destination => Direction::Inbound,
        }
    }
}

/// How a connection failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: Reason,
    pub message: String,
}

impl Failure {
    pub fn new(reason: Reason, message: impl fmt::Display) -> Self {
        Self { reason, message: message.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

/// An open connection. Its series are looked up once; counting bytes is two relaxed additions. Dropped without
/// [`ConnectionRecord::close`], it counts as cancelled by this process (reason `Drained`).
///
/// One pointer: it is moved through futures, which grow with everything that is held across a wait.
#[derive(Debug)]
pub struct ConnectionRecord(Box<Open>);

#[derive(Debug)]
struct Open {
    telemetry: Telemetry,
    meta: ConnectionMeta,
    series: Arc<TcpSeries>,
    started: Instant,
    sent: AtomicU64,
    received: AtomicU64,
    closed: AtomicBool,
}

impl ConnectionRecord {
    pub(super) fn open(telemetry: Telemetry, meta: ConnectionMeta, series: Arc<TcpSeries>) -> Self {
        Self(Box::new(Open {
            telemetry,
            meta,
            series,
            started: Instant::now(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }))
    }

    pub fn meta(&self) -> &ConnectionMeta {
        &self.0.meta
    }

    /// Bytes from the destination to the source: what Istio calls sent ("during response").
    pub fn sent(&self, bytes: u64) {
        self.0.sent.fetch_add(bytes, Ordering::Relaxed);
        self.0.series.sent.inc_by(bytes);
    }

    /// Bytes from the source to the destination: what Istio calls received ("during request").
    pub fn received(&self, bytes: u64) {
        self.0.received.fetch_add(bytes, Ordering::Relaxed);
        self.0.series.received.inc_by(bytes);
    }

    pub fn close(self, result: Result<(), Failure>) {
        self.finish(result);
    }

    /// The same where the record is shared. The first call counts.
    pub fn finish(&self, result: Result<(), Failure>) {
        self.0.finish(result.as_ref().err());
    }
}

impl Open {
    fn finish(&self, failure: Option<&Failure>) {
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        let ended = super::access_log::Ended {
            meta: &self.meta,
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            duration: self.started.elapsed(),
            failure,
        };
        self.telemetry.ended(&self.series, &ended);
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        if !self.0.closed.load(Ordering::Relaxed) {
            let cancelled = Failure::new(Reason::Drained, "cancelled by the node proxy");
            self.0.finish(Some(&cancelled));
        }
    }
}
