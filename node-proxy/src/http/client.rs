//! Makes inner connections to endpoints and runs them.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::LocalTasks;
use super::flow::Flow;
use super::pool::{Held, Peer};
use super::request_body::RequestBody;
use super::upstream::UpstreamIo;
use crate::limits::WorkloadLimits;
use crate::outbound::Connected;
use crate::reason::Reason;
use crate::state::model::TunnelProtocol;
use crate::telemetry::{ConnectionMeta, ConnectionRecord, Failure, Security, Telemetry};
use crate::tunnel::pool::Lease;

/// Largest head of a response, and number of its fields.
const RESPONSE_HEAD: usize = 128 << 10;
/// HTTP/1: bytes buffered in each direction.
const BUFFER: usize = 2 * RESPONSE_HEAD;
/// Flow-control windows of an HTTP/2 inner connection: of a stream, and of all together.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// An HTTP/2 server that does not answer a PING is dead.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How an inner connection reaches its endpoint.
pub struct Link {
    pub meta: Rc<ConnectionMeta>,
    lease: Option<Rc<Lease>>,
    /// Where the transport goes when the server agrees to switch protocols.
    switch: RefCell<Option<oneshot::Sender<Switched>>>,
    /// Of request bodies over HTTP/1 that hyper has taken and not written.
    pub unsent: Flow,
}

/// A transport after HTTP, and what was read of it too much.
pub struct Switched {
    pub io: UpstreamIo,
    pub received: Bytes,
    pub record: Rc<ConnectionRecord>,
}

impl Link {
    fn new(meta: Rc<ConnectionMeta>, io: &UpstreamIo) -> Self {
        Self { meta, lease: io.lease(), switch: RefCell::default(), unsent: io.unsent().clone() }
    }

    /// Whether a request may go this way: as the endpoint is to be reached now, in a tunnel that takes streams.
    pub fn is_good(&self, tunnel: TunnelProtocol, now: Instant) -> bool {
        match (&self.lease, tunnel) {
            (Some(lease), TunnelProtocol::Hbone) => lease.is_in_use(now),
            (None, TunnelProtocol::Plaintext) => self.meta.security != Security::MutualTls,
            _ => false,
        }
    }

    /// To be asked for before a request that may switch protocols: gets the transport when the server agrees.
    pub fn expect_switch(&self) -> oneshot::Receiver<Switched> {
        let (switch, switched) = oneshot::channel();
        *self.switch.borrow_mut() = Some(switch);
        switched
    }
}

#[cfg(test)]
impl Link {
    /// Of a connection without a tunnel.
    pub fn plain(meta: ConnectionMeta) -> Rc<Self> {
        let unsent = Flow::new(crate::tunnel::testing::limits());
        Rc::new(Self { meta: Rc::new(meta), lease: None, switch: RefCell::default(), unsent })
    }
}

/// HTTP/1 on a connection to an endpoint.
///
/// # Errors
/// When the connection is lost already.
pub async fn http1(
    connected: Connected,
    peer: &Rc<Peer>,
    telemetry: &Telemetry,
    limits: &Arc<WorkloadLimits>,
    cancel: &CancellationToken,
) -> Result<Held, Failure> {
    let (io, record, meta) = open(connected, telemetry, limits);
    let link = Rc::new(Link::new(meta, &io));
    let (sender, connection) = http1::Builder::new()
        .max_header_size(RESPONSE_HEAD)
        .max_buf_size(BUFFER)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| Failure::new(Reason::Connect, format!("HTTP/1 with the endpoint: {error}")))?;
    spawn_local(drive_http1(connection, link.clone(), record, cancel.clone()));
    Ok(Held::Http1 { sender, link, peer: peer.clone() })
}

/// The ends of an inner connection are no failures of their own: the requests that it carried say what they lost.
async fn drive_http1(
    mut connection: http1::Connection<TokioIo<UpstreamIo>, RequestBody>,
    link: Rc<Link>,
    record: Rc<ConnectionRecord>,
    cancel: CancellationToken,
) {
    let ended = cancel.run_until_cancelled(poll_fn(|cx| connection.poll_without_shutdown(cx))).await;
    let parts = connection.into_parts();
    let mut io = parts.io.into_inner();
    if let Some(Ok(())) = ended {
        if let Some(switch) = link.switch.borrow_mut().take() {
            match switch.send(Switched { io, received: parts.read_buf, record: record.clone() }) {
                Ok(()) => return,
                Err(unwanted) => io = unwanted.io,
            }
        }
        // Fails only for a connection that is gone already.
        let _ = poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx)).await;
    }
    record.finish(Ok(()));
}

/// HTTP/2 with prior knowledge on a connection to an endpoint.
///
/// # Errors
/// When the connection is lost already.
pub async fn http2(
    connected: Connected,
    telemetry: &Telemetry,
    limits: &Arc<WorkloadLimits>,
    cancel: &CancellationToken,
) -> Result<(http2::SendRequest<RequestBody>, Rc<Link>), Failure> {
    let (io, record, meta) = open(connected, telemetry, limits);
    let link = Rc::new(Link::new(meta, &io));
    let (sender, connection) = http2::Builder::new(LocalTasks(cancel.clone()))
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(RESPONSE_HEAD).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| Failure::new(Reason::Connect, format!("HTTP/2 with the endpoint: {error}")))?;
    let cancel = cancel.clone();
    spawn_local(async move {
        let _ = cancel.run_until_cancelled(connection).await;
        record.finish(Ok(()));
    });
    Ok((sender, link))
}

fn open(
    connected: Connected,
    telemetry: &Telemetry,
    limits: &Arc<WorkloadLimits>,
) -> (UpstreamIo, Rc<ConnectionRecord>, Rc<ConnectionMeta>) {
    let record = Rc::new(telemetry.open(connected.meta.clone()));
    let io = UpstreamIo::new(connected.upstream, record.clone(), limits);
    (io, record, Rc::new(connected.meta))
}
