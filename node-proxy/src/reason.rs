//! Why Culvert refused or lost a connection or a request: one closed list, the same word in log, metric, `Proxy-Status`
//! and manual (`docs/reasons.md`).

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
    /// No rule of the routes that apply matches the request.
    RouteNotFound,
    /// The matching rule, or a route of this port, asks for what this version cannot do.
    RouteUnsupported,
    /// The matching rule has no backend, or all of them have weight 0.
    NoBackend,
    /// The backend chosen by weight is a reference that cannot be followed.
    InvalidBackend,
    /// A route applies to the port, and what the client sent is not HTTP.
    ProtocolMismatch,
    /// The request is malformed, ambiguous, or its path is refused by the path policy.
    BadRequest,
    /// The request head is larger than the limit.
    HeadersTooLarge,
    /// The request head did not arrive in time.
    RequestHeaderTimeout,
    /// The client stopped sending the body it had announced.
    RequestBodyTimeout,
    /// CONNECT was asked of a port that serves requests.
    ConnectRefused,
    /// The rule's `timeouts.request` has passed.
    RequestTimeout,
    /// The rule's `timeouts.backendRequest` has passed.
    BackendTimeout,
    /// The backend's connection was lost before the response was complete.
    BackendReset,
    /// The backend's response is not valid HTTP.
    BadResponse,
    /// The client gave the request up before its response was complete.
    ClientCancelled,
    /// The origin of a preflight is not among those that the rule allows.
    OriginNotAllowed,
    /// The copy of a request for a mirror was cut because the mirror did not take it in time.
    MirrorSlow,
    /// The request failed and was not sent again, for too many were of late.
    RetryBudget,
    /// The request was sent as often as its rule allows, and each time the connection was lost.
    RetriesExhausted,
    /// The rule, or the Service, keeps sessions, and this node has no key for them.
    NoSessionKey,
    /// An input or output error of this node.
    Local,
}

impl Reason {
    pub const ALL: [Reason; 37] = [
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
        Self::RouteNotFound,
        Self::RouteUnsupported,
        Self::NoBackend,
        Self::InvalidBackend,
        Self::ProtocolMismatch,
        Self::BadRequest,
        Self::HeadersTooLarge,
        Self::RequestHeaderTimeout,
        Self::RequestBodyTimeout,
        Self::ConnectRefused,
        Self::RequestTimeout,
        Self::BackendTimeout,
        Self::BackendReset,
        Self::BadResponse,
        Self::ClientCancelled,
        Self::OriginNotAllowed,
        Self::MirrorSlow,
        Self::RetryBudget,
        Self::RetriesExhausted,
        Self::NoSessionKey,
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
            Self::RouteNotFound => "RouteNotFound",
            Self::RouteUnsupported => "RouteUnsupported",
            Self::NoBackend => "NoBackend",
            Self::InvalidBackend => "InvalidBackend",
            Self::ProtocolMismatch => "ProtocolMismatch",
            Self::BadRequest => "BadRequest",
            Self::HeadersTooLarge => "HeadersTooLarge",
            Self::RequestHeaderTimeout => "RequestHeaderTimeout",
            Self::RequestBodyTimeout => "RequestBodyTimeout",
            Self::ConnectRefused => "ConnectRefused",
            Self::RequestTimeout => "RequestTimeout",
            Self::BackendTimeout => "BackendTimeout",
            Self::BackendReset => "BackendReset",
            Self::BadResponse => "BadResponse",
            Self::ClientCancelled => "ClientCancelled",
            Self::OriginNotAllowed => "OriginNotAllowed",
            Self::MirrorSlow => "MirrorSlow",
            Self::RetryBudget => "RetryBudget",
            Self::RetriesExhausted => "RetriesExhausted",
            Self::NoSessionKey => "NoSessionKey",
            Self::Local => "Local",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::answer::face;

    /// Every word has a section with its status, cause and remedy in `docs/reasons.md`, in the same order; and nothing else.
    #[test]
    fn every_reason_is_documented() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reasons.md");
        let page = std::fs::read_to_string(path).unwrap();
        let sections: Vec<&str> = page.split("\n## ").skip(1).collect();
        let words: Vec<&str> = sections.iter().map(|section| section.lines().next().unwrap()).collect();
        assert_eq!(words, Reason::ALL.map(Reason::as_str));
        for (reason, section) in Reason::ALL.into_iter().zip(sections) {
            let face = face(reason);
            let status = format!("\nStatus {} ({}).\n", face.status.as_u16(), face.grpc as u8);
            for part in [status.as_str(), "\n*Cause*: ", "\n*Remedy*: "] {
                assert!(section.contains(part), "{reason}: no {part:?}");
            }
        }
    }
}
