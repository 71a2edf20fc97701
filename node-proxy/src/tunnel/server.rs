//! The server's end of tunnels to a pod: TLS, who is the client, HTTP/2, one task per CONNECT stream.
//!
//! Safe against clients that start and never go on: places for handshakes are limited, per address too; every step has
//! a deadline; a tunnel without streams is closed in the end.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use culvert_identity::Identity;
use culvert_identity::tls::peer;
use h2::server;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::driver::silence;
use super::paced::Paced;
use super::window::{START, Window};
use super::{
    CONNECTION_WINDOW, MAX_FRAME, PENDING_RESETS, SEND_BUFFER, SERVER_HEADERS, SERVER_STREAMS, SMALL_FRAMES,
    retire_at,
};
use crate::identity::{ActiveCertificate, CertificateError};
use crate::inbound;
use crate::reason::Reason;
use crate::state::model::Timeouts;
use crate::telemetry::{Direction, Outcome};
use crate::worker::Context;
use crate::worker::pod::PodHere;

/// A tunnel without streams is closed after this long: twice as long as clients keep theirs.
const IDLE: Duration = Duration::from_secs(600);
/// How often an open tunnel is looked after.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Why a tunnel was not accepted.
#[derive(Debug, Error)]
pub(crate) enum Refused {
    #[error("too many TLS handshakes are under way")]
    Busy,
    #[error(transparent)]
    NoCertificate(#[from] CertificateError),
    #[error("the pod has no identity")]
    NoIdentity,
    #[error("TLS handshake: {0}")]
    Tls(io::Error),
    #[error("no end of the TLS handshake within {0:?}")]
    TlsTimeout(Duration),
    #[error(transparent)]
    Peer(#[from] culvert_identity::PeerError),
    #[error("HTTP/2: {0}")]
    Http2(h2::Error),
    #[error("no HTTP/2 preface within {0:?}")]
    Http2Timeout(Duration),
}

impl Refused {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Busy => Reason::WorkloadLimit,
            Self::NoCertificate(_) | Self::NoIdentity => Reason::NoCertificate,
            Self::Tls(_) | Self::TlsTimeout(_) => Reason::TlsHandshake,
            Self::Peer(_) => Reason::PeerIdentity,
            Self::Http2(_) | Self::Http2Timeout(_) => Reason::Tunnel,
        }
    }
}

/// Who is at the other end of a tunnel, for its streams.
#[derive(Clone, Debug)]
pub struct Client {
    pub address: SocketAddr,
    pub identity: Identity,
    /// Where the tunnel arrived: an address of the pod.
    pub local: SocketAddr,
}

/// Serves a connection to 15008 until it ends.
pub async fn serve(context: Rc<Context>, pod: Rc<PodHere>, socket: TcpStream, from: SocketAddr) {
    let Ok(local) = socket.local_addr().map(crate::worker::socket::canonical) else { return };
    let accepted = Box::pin(accept(&context, &pod, socket, from)).await;
    let outcome = if accepted.is_ok() { Outcome::Success } else { Outcome::Failure };
    context.shared.telemetry.handshake(Direction::Inbound, outcome);
    match accepted {
        Ok(Accepted { connection, certificate, identity, until }) => {
            let client = Rc::new(Client { address: from, identity, local });
            let _open = (context.shared.telemetry.tunnel_opened(Direction::Inbound), pod.state.tunnel_in());
            let tunnel = Tunnel { context, pod, client, certificate, until };
            Box::pin(tunnel.run(connection)).await;
        }
        Err(refused) => inbound::refuse_tunnel(&context, &pod, from, local, &refused),
    }
}

struct Accepted<T> {
    connection: Box<server::Connection<T, Bytes>>,
    certificate: Arc<ActiveCertificate>,
    identity: Identity,
    /// No new streams from then on.
    until: Instant,
}

async fn accept(
    context: &Context,
    pod: &Rc<PodHere>,
    socket: TcpStream,
    from: SocketAddr,
) -> Result<Accepted<TlsStream<Paced<TcpStream>>>, Refused> {
    let _place = pod.handshake(from.ip()).ok_or(Refused::Busy)?;
    let workload = pod.pod.workload.load_full();
    let timeouts = inbound::timeouts(&workload);
    let own = workload.identity.as_ref().ok_or(Refused::NoIdentity)?;
    let certificate = match context.shared.certificates.current(own) {
        Some(certificate) => certificate,
        None => context.shared.certificates.acquire(own, Instant::now() + timeouts.tls_handshake).await?,
    };
    let streams = SERVER_STREAMS.min(pod.pod.limits.max_connections().max(1));
    let (connection, identity, peer_end) = accept_on(socket, &certificate, timeouts, streams).await?;
    let until = retire_at(SystemTime::now(), peer_end.min(certificate.not_after));
    Ok(Accepted { connection: Box::new(connection), certificate, identity, until })
}

type ServerConnection<T> = server::Connection<TlsStream<Paced<T>>, Bytes>;

/// TLS and HTTP/2 on any transport.
pub(super) async fn accept_on<T: AsyncRead + AsyncWrite + Unpin>(
    transport: T,
    certificate: &ActiveCertificate,
    timeouts: Timeouts,
    streams: u32,
) -> Result<(ServerConnection<T>, Identity, SystemTime), Refused> {
    let acceptor = TlsAcceptor::from(certificate.server.clone());
    let after = timeouts.tls_handshake;
    let stream = match timeout(after, acceptor.accept(Paced::new(transport))).await {
        Ok(result) => result.map_err(Refused::Tls)?,
        Err(_) => return Err(Refused::TlsTimeout(after)),
    };
    let proven = peer(stream.get_ref().1)?;
    let after = timeouts.tunnel_handshake;
    let connection = match timeout(after, builder(streams).handshake(stream)).await {
        Ok(result) => result.map_err(Refused::Http2)?,
        Err(_) => return Err(Refused::Http2Timeout(after)),
    };
    Ok((connection, proven.identity, proven.not_after))
}

pub(super) fn builder(streams: u32) -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(START)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(SERVER_HEADERS)
        .max_concurrent_streams(streams)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES)
        .max_concurrent_reset_streams(PENDING_RESETS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        // Counted over the life of a tunnel, so any number would end a long-lived one in the end. What a client could
        // gain by provoking resets is bounded: each stream's work counts against the workload's connections.
        .max_local_error_reset_streams(None);
    builder
}

struct Tunnel {
    context: Rc<Context>,
    pod: Rc<PodHere>,
    client: Rc<Client>,
    certificate: Arc<ActiveCertificate>,
    until: Instant,
}

impl Tunnel {
    async fn run<T: AsyncRead + AsyncWrite + Unpin>(self, mut connection: Box<server::Connection<T, Bytes>>) {
        let window = Window::new(self.pod.pod.limits.clone());
        let Some(ping) = connection.ping_pong() else { return };
        let first_answer = inbound::timeouts(&self.pod.pod.workload.load()).tunnel_handshake;
        let mut silence = pin!(silence(ping, first_answer));
        let mut until = pin!(sleep_until(self.until));
        let mut looks = tokio::time::interval(LOOK_EVERY);
        let (mut is_ending, mut last_used) = (false, Instant::now());
        loop {
            let end = tokio::select! {
                biased;
                request = connection.accept() => match request {
                    Some(Ok((request, respond))) => {
                        last_used = Instant::now();
                        self.spawn(request, respond, window.clone());
                        false
                    }
                    Some(Err(error)) => {
                        tracing::debug!(client = %self.client.address, %error, "tunnel ended");
                        return;
                    }
                    None => return,
                },
                size = window.due() => {
                    // Fails while the last change is not acknowledged; a stream that still wants one asks again.
                    if connection.set_initial_window_size(size).is_ok() {
                        window.applied(size);
                    }
                    false
                }
                end = &mut silence => {
                    tracing::debug!(client = %self.client.address, %end, "tunnel ended");
                    return;
                }
                () = &mut until, if !is_ending => true,
                () = self.pod.drain.cancelled(), if !is_ending => true,
                _ = looks.tick() => {
                    if connection.has_streams() {
                        last_used = Instant::now();
                    }
                    !is_ending && (last_used.elapsed() >= IDLE || self.roots_have_changed())
                }
            };
            if end {
                is_ending = true;
                // GOAWAY: the client opens another tunnel for new streams; those open here go on to their end.
                connection.graceful_shutdown();
            }
        }
    }

    /// The client has to prove itself again under the roots now in force.
    fn roots_have_changed(&self) -> bool {
        let current = self.context.shared.certificates.current(&self.certificate.identity);
        current.is_some_and(|current| current.roots_generation != self.certificate.roots_generation)
    }

    fn spawn(
        &self,
        request: http::Request<h2::RecvStream>,
        respond: server::SendResponse<Bytes>,
        window: Rc<Window>,
    ) {
        let (context, pod, client) = (self.context.clone(), self.pod.clone(), self.client.clone());
        let stream = inbound::hbone::Stream { request, respond, window };
        inbound::hbone::spawn(context, pod, client, stream);
    }
}
