//! Tunnels within a test: a client's and a server's end on an in-memory transport, and certificates for them.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use culvert_identity::testing::TestAuthority;
use culvert_identity::tls;
use h2::RecvStream;
use h2::server::{self, SendResponse};
use http::{Request, Response};
use tokio::io::{DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::dial::{Opened, open_http2};
use super::window::Window;
use super::{TunnelError, server::builder};
use crate::copy::{Copy, Side, TunnelStream};
use crate::identity::ActiveCertificate;
use crate::limits::WorkloadLimits;
use crate::state::model::{Limits, Timeouts};
use crate::worker::socket::CarriedSocket;

pub const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(2),
    tls_handshake: Duration::from_secs(2),
    tunnel_handshake: Duration::from_secs(2),
    unknown_destination: Duration::from_secs(1),
    half_closed_idle: Duration::from_secs(60),
    drain: Duration::from_secs(2),
    request_head: Duration::from_secs(2),
    body_idle: Duration::from_secs(60),
    connection_idle: Duration::from_secs(60),
};

/// Connections and bytes; as many requests as connections.
pub fn at_most(connections: u32, memory_bytes: u64) -> Limits {
    Limits { connections, memory_bytes, requests: connections, request_head_bytes: 64 << 10, streams: 100 }
}

pub fn limits() -> Arc<WorkloadLimits> {
    WorkloadLimits::new(at_most(1000, 64 << 20))
}

pub fn address() -> SocketAddr {
    "10.1.0.9:15008".parse().unwrap()
}

/// A certificate signed by `authority` that trusts `trusted` and accepts `cluster.local`.
pub fn active(authority: &TestAuthority, trusted: &TestAuthority, uri: &str) -> ActiveCertificate {
    let certificate = authority.leaf(uri);
    let bundle = trusted.bundle();
    ActiveCertificate {
        identity: uri.parse().unwrap(),
        not_after: certificate.not_after(),
        generation: 1,
        server: tls::server_config(&certificate, &bundle, &["cluster.local".parse().unwrap()]).unwrap(),
        client: tls::client_config(&certificate, &bundle).unwrap(),
        roots_generation: 1,
    }
}

/// What a test's server does with a CONNECT stream.
pub trait Serve: Fn(Request<RecvStream>, SendResponse<Bytes>) + 'static {}
impl<F: Fn(Request<RecvStream>, SendResponse<Bytes>) + 'static> Serve for F {}

/// A server's end without TLS: hands streams to `serve` until the transport ends; `goodbye` makes it send GOAWAY.
pub fn serve_http2(
    transport: DuplexStream,
    streams: u32,
    goodbye: Rc<tokio::sync::Notify>,
    serve: impl Serve,
) {
    spawn_local(async move {
        let mut connection: server::Connection<_, Bytes> =
            builder(streams).handshake(transport).await.unwrap();
        loop {
            tokio::select! {
                request = connection.accept() => match request {
                    Some(Ok((request, respond))) => serve(request, respond),
                    Some(Err(_)) | None => return,
                },
                () = goodbye.notified() => connection.graceful_shutdown(),
            }
        }
    });
}

/// Answers 200 and holds the stream open for as long as the client does.
pub fn hold(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let send = respond.send_response(Response::new(()), false).unwrap();
    spawn_local(async move {
        let mut body = request.into_body();
        while let Some(Ok(_)) = body.data().await {}
        drop(send);
    });
}

/// Dials servers made by `hold`; counts the attempts.
#[derive(Clone, Default)]
pub struct Dialer {
    pub dials: Rc<Cell<usize>>,
    pub goodbye: Rc<tokio::sync::Notify>,
}

impl Dialer {
    pub fn dial(&self, streams: u32) -> impl Future<Output = Result<Opened, TunnelError>> + use<> {
        let Self { dials, goodbye } = self.clone();
        async move {
            dials.set(dials.get() + 1);
            tokio::task::yield_now().await;
            let (near, far) = duplex(1 << 20);
            serve_http2(far, streams, goodbye, hold);
            open(near).await
        }
    }
}

pub async fn open(transport: DuplexStream) -> Result<Opened, TunnelError> {
    let retire_at = Instant::now() + Duration::from_secs(86400);
    open_http2(transport, address(), limits(), TIMEOUTS.tunnel_handshake, retire_at).await
}

/// Carries every stream of a server's end to the application at `to`.
pub fn to_application(to: SocketAddr, limits: Arc<WorkloadLimits>) -> impl Serve {
    move |request, mut respond| {
        let limits = limits.clone();
        spawn_local(async move {
            let application = CarriedSocket::new(TcpStream::connect(to).await.unwrap());
            let send = respond.send_response(Response::new(()), false).unwrap();
            let window = Window::new(limits.clone());
            let stream = TunnelStream::new(send, request.into_body(), window);
            let count = |_, _| {};
            let copy = Copy::new(&limits, TIMEOUTS.half_closed_idle, &count);
            let _ = copy.tunnelled(application, Side::Server, stream).await;
        });
    }
}

/// In how far the certificate's end is in the future.
pub fn lifetime(certificate: &ActiveCertificate) -> Duration {
    certificate.not_after.duration_since(SystemTime::now()).unwrap()
}
