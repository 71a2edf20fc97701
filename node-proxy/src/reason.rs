//! Why Culvert refused or lost a connection: one closed list, the same word in log, metric and manual.

/// A reason. [`Reason::as_str`] is the word that users see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The TCP connection to the endpoint or the application failed or timed out.
    Connect,
    /// The TLS handshake failed or timed out.
    TlsHandshake,
    /// The peer proved another identity than the one expected, or none of the trust domain.
    PeerIdentity,
    /// HTTP/2 of the tunnel failed, or the CONNECT reply was late or not 200.
    Tunnel,
    /// No certificate in force for the workload's identity.
    NoCertificate,
    /// The Service has no endpoint that may be used.
    NoEndpoint,
    /// The Service does not have the port.
    NoServicePort,
    /// An address of the cluster's ranges that no workload or Service has.
    UnknownDestination,
    /// The outbound policy refuses addresses outside the mesh.
    OutboundPolicy,
    /// The inbound mode refuses plaintext.
    PlaintextRefused,
    /// A CONNECT request that is malformed or names another destination than this pod.
    BadConnect,
    /// The workload's own limit on connections or memory is reached.
    WorkloadLimit,
    /// The peer reset the connection.
    PeerReset,
    /// Nothing was sent in either direction for too long after one side had closed.
    IdleTimeout,
    /// Cut at the end of a drain.
    Drained,
    /// The destination is a port of the proxy itself.
    ProxyPort,
    /// An input or output error of this node.
    Local,
}

impl Reason {
    pub const ALL: [Reason; 17] = [
        Self::Connect,
        Self::TlsHandshake,
        Self::PeerIdentity,
        Self::Tunnel,
        Self::NoCertificate,
        Self::NoEndpoint,
        Self::NoServicePort,
        Self::UnknownDestination,
        Self::OutboundPolicy,
        Self::PlaintextRefused,
        Self::BadConnect,
        Self::WorkloadLimit,
        Self::PeerReset,
        Self::IdleTimeout,
        Self::Drained,
        Self::ProxyPort,
        Self::Local,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "Connect",
            Self::TlsHandshake => "TlsHandshake",
            Self::PeerIdentity => "PeerIdentity",
            Self::Tunnel => "Tunnel",
            Self::NoCertificate => "NoCertificate",
            Self::NoEndpoint => "NoEndpoint",
            Self::NoServicePort => "NoServicePort",
            Self::UnknownDestination => "UnknownDestination",
            Self::OutboundPolicy => "OutboundPolicy",
            Self::PlaintextRefused => "PlaintextRefused",
            Self::BadConnect => "BadConnect",
            Self::WorkloadLimit => "WorkloadLimit",
            Self::PeerReset => "PeerReset",
            Self::IdleTimeout => "IdleTimeout",
            Self::Drained => "Drained",
            Self::ProxyPort => "ProxyPort",
            Self::Local => "Local",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
