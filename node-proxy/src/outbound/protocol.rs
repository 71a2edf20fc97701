//! How a captured connection to a Service's port is treated: what is declared of the port, then what is seen first on the
//! connection. One pure table; `docs/routing.md` is written from it.

use std::time::Duration;

use culvert_routing::model::Carries;

use crate::reason::Reason;
use crate::state::model::{AppProtocol, Service, WorkloadSettings};
use crate::state::{RouteGroup, Snapshot};

/// Until the server is dialled on a port that is declared HTTP, when the client says nothing: servers of such ports may
/// speak first all the same.
pub const CLIENT_FIRST: Duration = Duration::from_millis(150);
/// How long first bytes that fit several protocols are waited for to become more.
pub const UNDECIDED: Duration = Duration::from_secs(3);

/// What is known of the port before a byte is seen. The first that applies, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declared {
    /// An HTTPRoute or GRPCRoute applies to this client: it must be HTTP.
    Route,
    /// A TLSRoute does: it must be TLS.
    TlsRoute,
    /// A TCPRoute does: it may be anything.
    TcpRoute,
    /// `opaque-ports`, or `appProtocol` or the port's name say that it is not HTTP.
    Opaque,
    /// `appProtocol` or the port's name say HTTP, HTTP/2 or gRPC.
    Http,
    Nothing,
}

impl Declared {
    /// Of a Service's port, for clients of a namespace with these settings.
    pub fn of_port(
        snapshot: &Snapshot,
        service: &Service,
        port: u16,
        client_namespace: &str,
        settings: &WorkloadSettings,
    ) -> Self {
        let routes = snapshot.routes(&service.key, port);
        let group = routes.and_then(|routes| routes.for_clients_in(client_namespace));
        let routed = group.map(RouteGroup::carries);
        let opaque = settings.opaque_ports.iter().any(|range| (range.first..=range.last).contains(&port));
        let known = service.ports.iter().find(|known| known.port == port);
        Self::of(routed, opaque, known.map_or(AppProtocol::Undeclared, |known| known.app_protocol))
    }

    /// `routed`: what the routes that apply to the client decide about.
    pub fn of(routed: Option<Carries>, opaque: bool, protocol: AppProtocol) -> Self {
        match (routed, protocol) {
            (Some(Carries::Requests), _) => Self::Route,
            (Some(Carries::Tls), _) => Self::TlsRoute,
            (Some(Carries::Bytes), _) => Self::TcpRoute,
            (None, _) if opaque => Self::Opaque,
            (None, AppProtocol::Tcp | AppProtocol::Tls) => Self::Opaque,
            (None, AppProtocol::Http1 | AppProtocol::Http2 | AppProtocol::Grpc) => Self::Http,
            (None, AppProtocol::Undeclared) => Self::Nothing,
        }
    }

    /// What alone passes where it must be something.
    pub fn what(self) -> &'static str {
        match self {
            Self::Route | Self::Http => "HTTP",
            Self::TlsRoute => "TLS",
            Self::TcpRoute | Self::Opaque | Self::Nothing => "bytes",
        }
    }

    /// When the server is dialled.
    pub fn dial(self) -> Dial {
        match self {
            Self::Route | Self::TlsRoute => Dial::WhenAsked,
            Self::Http => Dial::After(CLIENT_FIRST),
            Self::TcpRoute | Self::Opaque | Self::Nothing => Dial::AtOnce,
        }
    }
}

/// When the server is dialled, as far as the connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dial {
    /// Not before the client has said what the route decides by: a request, or the server name of its TLS.
    WhenAsked,
    /// When the client has said nothing for so long.
    After(Duration),
    AtOnce,
}

/// What is seen first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// A request line of HTTP/1.
    Http1,
    /// The HTTP/2 preface (RFC 9113, 3.4).
    Http2,
    /// A TLS handshake record.
    Tls,
    /// Bytes of the client that are none of these.
    Other,
    /// The server speaks before the client; only where it is dialled before the client has spoken.
    Server,
    /// Nothing, for as long as is waited.
    Silence,
}

/// What is done with the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Requests, each to an endpoint of its own.
    Requests(Version),
    /// Bytes, to one endpoint.
    Bytes,
    /// Reset.
    Refuse(Reason),
    /// No decision: goes on waiting for either side.
    Wait,
}

/// What the client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    Http1,
    Http2,
}

/// The table.
pub fn treat(declared: Declared, first: First) -> Treatment {
    use Treatment::{Bytes, Refuse, Requests, Wait};
    match (declared, first) {
        (Declared::Opaque | Declared::TcpRoute, _) | (Declared::TlsRoute, First::Tls) => Bytes,
        (Declared::Route | Declared::Http, First::Http1) => Requests(Version::Http1),
        (Declared::Route | Declared::Http | Declared::Nothing, First::Http2) => Requests(Version::Http2),
        (Declared::Route, First::Tls | First::Other | First::Server) => Refuse(Reason::ProtocolMismatch),
        (Declared::TlsRoute, First::Http1 | First::Http2 | First::Other | First::Server) => {
            Refuse(Reason::ProtocolMismatch)
        }
        (Declared::Route | Declared::TlsRoute, First::Silence) => Refuse(Reason::RequestHeaderTimeout),
        (Declared::Http, First::Tls | First::Other | First::Server) => Bytes,
        (Declared::Nothing, First::Http1 | First::Tls | First::Other | First::Server) => Bytes,
        (Declared::Http | Declared::Nothing, First::Silence) => Wait,
    }
}

/// What the client's first bytes are; `None` while they may become several things.
pub fn first(bytes: &[u8]) -> Option<First> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    /// Handshake record of TLS 1.0 to 1.3.
    const TLS: &[u8] = &[0x16, 0x03];
    if is_start(bytes, PREFACE) {
        return (bytes.len() >= PREFACE.len()).then_some(First::Http2);
    }
    if is_start(bytes, TLS) {
        return (bytes.len() >= TLS.len()).then_some(First::Tls);
    }
    request_line(bytes)
}

/// Whether one of the two begins with the other.
fn is_start(bytes: &[u8], known: &[u8]) -> bool {
    let length = bytes.len().min(known.len());
    bytes[..length] == known[..length]
}

/// A method is a token, most often in capitals; longer ones than this nobody uses.
const LONGEST_METHOD: usize = 24;

/// A line that begins as a request does is HTTP/1, also a malformed one: it is answered as such. Empty lines before it are
/// skipped, as servers do (RFC 9112, 2.2).
fn request_line(bytes: &[u8]) -> Option<First> {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let line = &bytes[start..];
    let method = line.iter().position(|byte| !is_token(*byte));
    match method {
        None if line.len() <= LONGEST_METHOD => None,
        Some(length @ 1..=LONGEST_METHOD) if line[length] == b' ' => target(&line[length + 1..]),
        _ => Some(First::Other),
    }
}

/// A target that does not begin with a slash or asterisk is longer than this only in nobody's requests.
const LONGEST_LINE: usize = 1024;

/// Targets begin with a slash, an asterisk, a scheme or an authority. Text protocols send commands with a space too, so of
/// those the rest of the line decides. What is told of some bytes is told of more.
fn target(rest: &[u8]) -> Option<First> {
    if matches!(rest.first()?, b'/' | b'*') {
        return Some(First::Http1);
    }
    let line = &rest[..rest.len().min(LONGEST_LINE)];
    let end = line.iter().position(|byte| !byte.is_ascii_graphic() && *byte != b' ');
    match end.map(|end| (&line[..end], line[end])) {
        Some((line, b'\r' | b'\n')) if line.windows(6).any(|word| word == b" HTTP/") => Some(First::Http1),
        Some(_) => Some(First::Other),
        None if line.len() == LONGEST_LINE => Some(First::Other),
        None => None,
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row of the table.
    #[test]
    fn what_is_declared_and_what_is_seen_decide() {
        use First::{Http1, Http2, Other, Server, Silence, Tls};
        let requests = |version| Treatment::Requests(version);
        let mismatch = Treatment::Refuse(Reason::ProtocolMismatch);
        for (declared, dial, rows) in [
            (
                Declared::Route,
                Dial::WhenAsked,
                [
                    (Http1, requests(Version::Http1)),
                    (Http2, requests(Version::Http2)),
                    (Tls, mismatch),
                    (Other, mismatch),
                    (Server, mismatch),
                    (Silence, Treatment::Refuse(Reason::RequestHeaderTimeout)),
                ],
            ),
            (
                Declared::TlsRoute,
                Dial::WhenAsked,
                [
                    (Http1, mismatch),
                    (Http2, mismatch),
                    (Tls, Treatment::Bytes),
                    (Other, mismatch),
                    (Server, mismatch),
                    (Silence, Treatment::Refuse(Reason::RequestHeaderTimeout)),
                ],
            ),
            (
                Declared::TcpRoute,
                Dial::AtOnce,
                [Http1, Http2, Tls, Other, Server, Silence].map(|first| (first, Treatment::Bytes)),
            ),
            (
                Declared::Http,
                Dial::After(CLIENT_FIRST),
                [
                    (Http1, requests(Version::Http1)),
                    (Http2, requests(Version::Http2)),
                    (Tls, Treatment::Bytes),
                    (Other, Treatment::Bytes),
                    (Server, Treatment::Bytes),
                    (Silence, Treatment::Wait),
                ],
            ),
            (
                Declared::Nothing,
                Dial::AtOnce,
                [
                    (Http1, Treatment::Bytes),
                    (Http2, requests(Version::Http2)),
                    (Tls, Treatment::Bytes),
                    (Other, Treatment::Bytes),
                    (Server, Treatment::Bytes),
                    (Silence, Treatment::Wait),
                ],
            ),
            (
                Declared::Opaque,
                Dial::AtOnce,
                [
                    (Http1, Treatment::Bytes),
                    (Http2, Treatment::Bytes),
                    (Tls, Treatment::Bytes),
                    (Other, Treatment::Bytes),
                    (Server, Treatment::Bytes),
                    (Silence, Treatment::Bytes),
                ],
            ),
        ] {
            assert_eq!(declared.dial(), dial, "{declared:?}");
            for (first, expected) in rows {
                assert_eq!(treat(declared, first), expected, "{declared:?} {first:?}");
            }
        }
    }

    #[test]
    fn a_route_is_asked_before_settings_and_those_before_the_service() {
        use AppProtocol::{Grpc, Http1, Http2, Tcp, Tls, Undeclared};
        for (routed, opaque, protocols, expected) in [
            (Some(Carries::Requests), true, &[Undeclared, Http1, Http2, Grpc, Tcp, Tls][..], Declared::Route),
            (Some(Carries::Tls), true, &[Undeclared, Http1, Http2, Grpc, Tcp, Tls], Declared::TlsRoute),
            (Some(Carries::Bytes), true, &[Undeclared, Http1, Http2, Grpc, Tcp, Tls], Declared::TcpRoute),
            (None, true, &[Undeclared, Http1, Http2, Grpc, Tcp, Tls], Declared::Opaque),
            (None, false, &[Http1, Http2, Grpc], Declared::Http),
            (None, false, &[Tcp, Tls], Declared::Opaque),
            (None, false, &[Undeclared], Declared::Nothing),
        ] {
            for protocol in protocols {
                assert_eq!(
                    Declared::of(routed, opaque, *protocol),
                    expected,
                    "{routed:?} {opaque} {protocol:?}"
                );
            }
        }
    }

    #[test]
    fn first_bytes_are_told_apart_and_short_ones_waited_for() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(First::Http1)),
            (b"GET /", Some(First::Http1)),
            (b"\r\nGET /x HTTP/1.1\r\n", Some(First::Http1)),
            (b"OPTIONS * HTTP/1.1\r\n", Some(First::Http1)),
            (b"GET http://a/ HTTP/1.1\r\n", Some(First::Http1)),
            (b"CONNECT a:443 HTTP/1.1\r\n", Some(First::Http1)),
            (b"PROPFIND /dav HTTP/1.1\r\n", Some(First::Http1)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(First::Http2)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Some(First::Http2)),
            (b"PRI * HTTP/2.0", None),
            (b"P", None),
            (b"PR", None),
            (b"GE", None),
            (b"\r\n", None),
            (b"GET ", None),
            (b"GET http://a", None),
            (b"", None),
            (b"\x16", None),
            (b"\x16\x03\x01\x02\x00", Some(First::Tls)),
            (b"\x16\x07", Some(First::Other)),
            (b"\x00\x00\x00\x01", Some(First::Other)),
            (b"SSH-2.0-x\r\n", Some(First::Other)),
            (b"SELECT 1\r\n", Some(First::Other)),
            (b"*1\r\n$4\r\nPING\r\n", Some(First::Other)),
            (b"EHLO a.example\r\n", Some(First::Other)),
            (b"GET http://a\xff/ HTTP/1.1\r\n", Some(First::Other)),
            (b" GET / HTTP/1.1", Some(First::Other)),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Some(First::Other)),
        ] {
            assert_eq!(first(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
