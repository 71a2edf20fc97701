//! One connection that carries requests.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use futures::FutureExt;
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::Parent;
use super::answer::close_after;
use super::flow::Flow;
use super::forward::with_sources;
use super::frames::Frames;
use super::heads::{FrameReading, HeadLimits};
use super::interim::Interim;
use super::names::{REQUEST_ID, TRACEPARENT};
use super::reader::{Checked, ReadLimits, Reading};
use super::stream::{StreamTasks, stalled};
use super::switch::Agreed;
use super::timer::Patience;
use crate::outbound::Outbound;
use crate::outbound::protocol::Version;
use crate::reason::Reason;
use crate::telemetry::{ConnectionMeta, Ending, Failure, SeriesCache};
use crate::worker::socket::CarriedSocket;

/// HTTP/2: flow-control windows of one stream and of all together, bytes of one stream that wait to be written.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;
const SMALLEST_WINDOW: u32 = 64 << 10;
const SEND_BUFFER: usize = 256 << 10;
/// HTTP/1: bytes buffered in each direction.
const BUFFER: usize = 128 << 10;
/// A client that does not answer a PING is gone.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// What a client still sends after the last answer is read for so long, so that the answer is not lost to a reset.
const LINGER: Duration = Duration::from_secs(1);
/// A client that has asked nothing for so long, while another process is in charge, is not about to.
const QUIET: Duration = Duration::from_secs(10);

/// Longest value of a field that is kept of a head refused for its size.
const LONGEST_NAME: usize = 256;

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
    pub ending: Rc<Ending>,
    /// Of responses that hyper has taken and not written.
    pub unsent: Flow,
    /// HTTP/2 only.
    pub frames: Rc<FrameReading>,
    /// The last request was a call of gRPC.
    pub calls: Cell<bool>,
    pub requests: Cell<u64>,
    pub in_flight: Cell<usize>,
    /// Set when a request was answered 101.
    pub agreed: RefCell<Option<Agreed>>,
}

/// Serves the connection until it ends.
pub(crate) async fn serve(outbound: Outbound, parent: Parent, version: Version, socket: CarriedSocket) {
    let meta = Rc::new(parent.meta(&outbound));
    let workload = &outbound.pod.pod.limits;
    let (unsent, frames) = (Flow::new(workload.clone()), FrameReading::new(workload.clone()));
    let ending = Rc::new(Ending::new(outbound.cut.clone()));
    let connection = Rc::new(ClientConnection {
        parent,
        port: outbound.destination.port(),
        series: Rc::default(),
        outbound,
        meta,
        reading: Rc::default(),
        interim: Arc::default(),
        ending,
        unsent,
        frames,
        calls: Cell::new(false),
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
    let limits = connection.outbound.read_limits();
    let socket = Captured::new(socket, &connection, Some(limits.body_idle));
    let workload = connection.outbound.pod.pod.limits.clone();
    let io = Checked::new(socket, connection.reading.clone(), limits, &workload);
    let requests = connection.clone();
    let service = service_fn(move |request| {
        let connection = requests.clone();
        // Not in a block of its own, which would keep the future twice.
        requests.clone().respond(request, None).map(move |mut response| {
            if connection.is_another_in_charge() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                close_after(&mut response);
            }
            Ok::<_, Infallible>(response)
        })
    });
    let mut http = http1::Builder::new()
        .header_read_timeout(None)
        // The reader judges: hyper must not be stricter, or it would answer itself.
        .max_header_size(2 * limits.head_bytes)
        // Without `pipeline_flush`: with it, hyper buffers without bound for a client that does not read.
        .max_buf_size(BUFFER.max(2 * limits.head_bytes))
        .serve_connection(TokioIo::new(io), service);
    let drained = connection.drained();
    let served = drive(&connection, &mut http, drained, |http| Pin::new(http).graceful_shutdown()).await;
    if served.is_err() {
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
    let outbound = &connection.outbound;
    let (limits, frames) = (outbound.limits(), connection.frames.clone());
    let heads = HeadLimits {
        bytes: usize::try_from(limits.request_head_bytes).unwrap_or(usize::MAX),
        time: outbound.timeouts().request_head,
    };
    let requests = connection.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let connection = requests.clone();
        // At once, and so before another head is read.
        let refused = connection.frames.refused(&mut request, heads);
        if refused.is_some() {
            keep_names(request.headers_mut());
        }
        connection.respond(request, refused).map(Ok::<_, Infallible>)
    });
    let socket = Captured::new(socket, &connection, None);
    let io = Frames::new(socket, frames.clone(), heads, outbound.pod.pod.limits.clone());
    let http = http2::Builder::new(StreamTasks(outbound.cut.clone()))
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(heads.for_h2())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(limits.memory_bytes))
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(io), service);
    let mut http = pin!(http);
    let drained = connection.outbound.drain.cancelled();
    let served = drive(&connection, &mut http, drained, |http| http.as_mut().graceful_shutdown()).await;
    let failure = match (frames.broken(), served) {
        (Some(why), _) => Failure::new(Reason::RequestHeaderTimeout, why),
        (None, Err(error)) if is_ours(&error) => {
            Failure::new(Reason::BadRequest, format!("HTTP/2 of the client: {}", with_sources(&error)))
        }
        _ => return,
    };
    let meta = ConnectionMeta::clone(&connection.meta);
    outbound.context.shared.telemetry.refused(meta, failure.reason, &failure.message);
}

/// Request bodies that may come before they are taken: not all of a small budget.
fn connection_window(memory_bytes: u64) -> u32 {
    let share = u32::try_from(memory_bytes / 16).unwrap_or(u32::MAX);
    share.clamp(SMALLEST_WINDOW, CONNECTION_WINDOW)
}

/// Of a head that is refused for its size, what the answer and the log need.
fn keep_names(headers: &mut HeaderMap) {
    let named = [CONTENT_TYPE, REQUEST_ID, TRACEPARENT];
    let kept = named.map(|name| {
        let value = headers.get(&name).filter(|value| value.len() <= LONGEST_NAME).cloned();
        (name, value)
    });
    *headers = kept.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
}

/// Whether it was h2 here that ended the connection, for what the client had sent.
fn is_ours(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(h2::Error::is_library)
}

/// Runs a connection to its end. It takes no new requests when the worker drains, when there was none for too long, or when
/// it can no longer be told what a client asks.
async fn drive<C>(
    connection: &ClientConnection,
    http: &mut C,
    drained: impl Future<Output = ()>,
    stop: impl Fn(&mut C),
) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    let mut drained = pin!(drained);
    let mut is_stopped = false;
    loop {
        tokio::select! {
            biased;
            ended = &mut *http => return ended,
            () = &mut drained, if !is_stopped => {}
            () = connection.frames.over.cancelled(), if !is_stopped => {}
            () = connection.idle(), if !is_stopped => {}
        }
        is_stopped = true;
        stop(http);
    }
}

impl Outbound {
    fn read_limits(&self) -> ReadLimits {
        let timeouts = self.timeouts();
        ReadLimits {
            head_bytes: usize::try_from(self.limits().request_head_bytes).unwrap_or(usize::MAX),
            head: timeouts.request_head,
            body_idle: timeouts.body_idle,
        }
    }
}

impl ClientConnection {
    /// Another process serves new connections; those here are as good as any until they are told to close.
    fn is_another_in_charge(&self) -> bool {
        self.outbound.context.shared.charge.is_given_up()
    }

    /// Of HTTP/1, resolves when the connection is to be closed because the worker drains. A client may be sending a request
    /// at any time, and would lose it: where there is no hurry its next answer says that it is the last.
    async fn drained(&self) {
        self.outbound.drain.cancelled().await;
        if self.is_another_in_charge() {
            self.without_requests(QUIET).await;
        }
    }

    /// Resolves when there was no request for the whole of the idle deadline.
    async fn idle(&self) {
        self.without_requests(self.outbound.timeouts().connection_idle).await;
    }

    async fn without_requests(&self, time: Duration) {
        loop {
            let before = (self.requests.get(), self.in_flight.get());
            tokio::time::sleep(time).await;
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
    unsent: Flow,
    ending: Rc<Ending>,
    /// How long the client may take nothing.
    idle: Option<Duration>,
    stalled_since: Option<Instant>,
    patience: Patience,
}

impl Captured {
    fn new(socket: CarriedSocket, connection: &ClientConnection, idle: Option<Duration>) -> Self {
        Self {
            socket,
            interim: connection.interim.clone(),
            rest: Vec::new(),
            unsent: connection.unsent.clone(),
            ending: connection.ending.clone(),
            idle,
            stalled_since: None,
            patience: Patience::default(),
        }
    }

    /// The client takes nothing now: for how long already?
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(idle) = self.idle else { return Poll::Pending };
        let since = *self.stalled_since.get_or_insert_with(Instant::now);
        ready!(self.patience.poll(cx, since + idle));
        self.ending.set(stalled(idle));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
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
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        // What was begun is ended first.
        while !this.rest.is_empty() {
            let written = ready!(Pin::new(&mut this.socket).poll_write(cx, &this.rest))?;
            this.rest.drain(..written);
        }
        match Pin::new(&mut this.socket).poll_write_vectored(cx, pieces) {
            Poll::Ready(written) => {
                this.stalled_since = None;
                this.unsent.sent(*written.as_ref().unwrap_or(&0));
                Poll::Ready(written)
            }
            Poll::Pending => this.poll_stalled(cx),
        }
    }

    /// hyper copies what it writes into one buffer otherwise, and keeps that as large as it ever was.
    fn is_write_vectored(&self) -> bool {
        true
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
