//! One connection that carries requests.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::interim::Interim;
use super::reader::{Checked, ReadLimits, Reading};
use super::switch::Agreed;
use super::{LocalTasks, Parent};
use crate::outbound::Outbound;
use crate::outbound::protocol::Version;
use crate::telemetry::{ConnectionMeta, SeriesCache};
use crate::worker::socket::CarriedSocket;

/// HTTP/2: flow-control windows of one stream and of all together, bytes of one stream that wait to be written.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;
const SEND_BUFFER: usize = 256 << 10;
/// HTTP/1: bytes buffered in each direction.
const BUFFER: usize = 128 << 10;
/// A client that does not answer a PING is gone.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// What a client still sends after the last answer is read for so long, so that the answer is not lost to a reset.
const LINGER: Duration = Duration::from_secs(1);

/// What the requests of one connection share.
pub struct ClientConnection {
    pub outbound: Outbound,
    pub parent: Parent,
    /// The Service's or the listener's.
    pub port: u16,
    /// Of requests that reach no endpoint.
    pub meta: Rc<ConnectionMeta>,
    pub series: Rc<SeriesCache>,
    /// HTTP/1 only.
    pub reading: Rc<Reading>,
    pub interim: Arc<Interim>,
    pub requests: Cell<u64>,
    pub in_flight: Cell<usize>,
    /// Set when a request was answered 101.
    pub agreed: RefCell<Option<Agreed>>,
}

/// Serves the connection until it ends.
pub(crate) async fn serve(outbound: Outbound, parent: Parent, version: Version, socket: CarriedSocket) {
    let meta = Rc::new(parent.meta(&outbound));
    let connection = Rc::new(ClientConnection {
        parent,
        port: outbound.destination.port(),
        series: Rc::default(),
        outbound,
        meta,
        reading: Rc::default(),
        interim: Arc::default(),
        requests: Cell::new(0),
        in_flight: Cell::new(0),
        agreed: RefCell::default(),
    });
    match version {
        Version::Http1 => serve_http1(connection, socket).await,
        Version::Http2 => serve_http2(connection, socket).await,
    }
}

async fn serve_http1(connection: Rc<ClientConnection>, socket: CarriedSocket) {
    let limits = connection.outbound.context.shared.http;
    let limits = ReadLimits { head_bytes: limits.head_bytes, head: limits.head, body_idle: limits.body_idle };
    let socket = Captured { socket, interim: connection.interim.clone(), rest: Vec::new() };
    let io = Checked::new(socket, connection.reading.clone(), limits);
    let requests = connection.clone();
    let service = service_fn(move |request| {
        let connection = requests.clone();
        async move { Ok::<_, Infallible>(connection.respond(request).await) }
    });
    let mut http = http1::Builder::new()
        .header_read_timeout(None)
        .max_header_size(limits.head_bytes)
        // Without `pipeline_flush`: with it, hyper buffers without bound for a client that does not read.
        .max_buf_size(BUFFER.max(2 * limits.head_bytes))
        .serve_connection(TokioIo::new(io), service);
    let served = drive(&connection, &mut http, |http| Pin::new(http).graceful_shutdown()).await;
    if !served {
        return;
    }
    let parts = http.into_parts();
    let (Captured { socket, .. }, unread) = parts.io.into_inner().into_parts();
    let agreed = connection.agreed.borrow_mut().take();
    match agreed {
        Some(agreed) => {
            let mut sent = BytesMut::from(&parts.read_buf[..]);
            sent.unsplit(unread);
            agreed.carry(&connection, socket, sent.freeze()).await;
        }
        None => linger(socket).await,
    }
}

async fn serve_http2(connection: Rc<ClientConnection>, socket: CarriedSocket) {
    let limits = connection.outbound.context.shared.http;
    let requests = connection.clone();
    let service = service_fn(move |request| {
        let connection = requests.clone();
        async move { Ok::<_, Infallible>(connection.respond(request).await) }
    });
    let socket = Captured { socket, interim: connection.interim.clone(), rest: Vec::new() };
    let tasks = LocalTasks(connection.outbound.pod.cancel.clone());
    let http = http2::Builder::new(tasks)
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(socket), service);
    let mut http = pin!(http);
    drive(&connection, &mut http, |http| http.as_mut().graceful_shutdown()).await;
}

/// Runs a connection to its end; says whether that was in order. It takes no new requests when the worker drains, or when
/// there was none for too long.
async fn drive<C>(connection: &ClientConnection, http: &mut C, stop: impl Fn(&mut C)) -> bool
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    let drain = &connection.outbound.drain;
    let mut is_stopped = false;
    loop {
        tokio::select! {
            biased;
            ended = &mut *http => return ended.is_ok(),
            () = drain.cancelled(), if !is_stopped => {}
            () = connection.idle(), if !is_stopped => {}
        }
        is_stopped = true;
        stop(http);
    }
}

impl ClientConnection {
    /// Resolves when there was no request for the whole of the idle deadline.
    async fn idle(&self) {
        let idle = self.outbound.context.shared.http.idle;
        loop {
            let before = (self.requests.get(), self.in_flight.get());
            tokio::time::sleep(idle).await;
            if before == (self.requests.get(), 0) {
                return;
            }
        }
    }
}

/// Takes what the client still sends, and forgets it.
async fn linger(mut socket: CarriedSocket) {
    let mut bytes = [0; 4096];
    let reading = async { while matches!(socket.read(&mut bytes).await, Ok(length) if length > 0) {} };
    let _ = tokio::time::timeout(LINGER, reading).await;
}

/// The client's socket: closed in order when HTTP says so, reset otherwise.
#[derive(Debug)]
struct Captured {
    socket: CarriedSocket,
    interim: Arc<Interim>,
    /// Of interim responses that are written in part.
    rest: Vec<u8>,
}

impl AsyncRead for Captured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Captured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        // What was begun is ended first.
        while !this.rest.is_empty() {
            let written = ready!(Pin::new(&mut this.socket).poll_write(cx, &this.rest))?;
            this.rest.drain(..written);
        }
        Pin::new(&mut this.socket).poll_write(cx, buf)
    }

    /// hyper's buffer is empty then.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.interim.poll_write(cx, &mut this.rest, Pin::new(&mut this.socket)))?;
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.finish();
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
