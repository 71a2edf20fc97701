//! The admin server of every process: health, metrics, log filter and what else a process adds. On its own thread, so
//! that it answers when everything else is busy.

mod readiness;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use crate::logging::LogControl;
pub use readiness::{Check, Readiness};

/// Clients served at once; more wait.
const MOST_CLIENTS: usize = 32;
/// From the first byte of a request to the last of its answer.
const ONE_REQUEST: Duration = Duration::from_secs(15);
const HEADERS: Duration = Duration::from_secs(5);
const AFTER_A_FAILED_ACCEPT: Duration = Duration::from_millis(200);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// An answer of the admin server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: String,
}

impl Answer {
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, content_type: TEXT, body: body.into() }
    }

    /// 200 with a JSON text.
    pub fn json(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, content_type: JSON, body: body.into() }
    }
}

/// The query of a request's URL.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a>(&'a str);

impl Query<'_> {
    /// The first value of a parameter, percent-decoded. `None` when it is not there or not UTF-8.
    pub fn get(&self, name: &str) -> Option<String> {
        self.0
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .find(|(key, _)| *key == name)
            .and_then(|(_, value)| decode(value))
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || (rest.next()? as char).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Pieces of an answer that has no end of its own.
pub type Pieces = BoxStream<'static, Bytes>;

enum Handler {
    Answer(Box<dyn Fn(Query<'_>) -> Answer + Send + Sync>),
    Stream(&'static str, Box<dyn Fn(Query<'_>) -> Pieces + Send + Sync>),
}

/// What an answer's body is sent from.
type Body = UnsyncBoxBody<Bytes, Infallible>;

type Liveness = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

struct Route {
    method: Method,
    path: &'static str,
    answer: Handler,
}

/// What the admin server will serve: `/healthz/live`, `/healthz/ready`, `/metrics`, `/log`, and the routes added.
pub struct Admin {
    readiness: Readiness,
    registry: Arc<Registry>,
    log: LogControl,
    live: Liveness,
    instance: Option<String>,
    routes: Vec<Route>,
}

impl Admin {
    pub fn new(readiness: Readiness, registry: Arc<Registry>, log: LogControl) -> Self {
        Self { readiness, registry, log, live: Box::new(|| Ok(())), instance: None, routes: Vec::new() }
    }

    /// Which process this is: `/healthz/ready?instance=NAME` is answered 503 by a process of another name. For those that
    /// follow each other at one address.
    #[must_use]
    pub fn named(mut self, instance: String) -> Self {
        self.instance = Some(instance);
        self
    }

    /// What `/healthz/live` asks; without it, a process that answers is alive. An error says what is stuck: 503.
    #[must_use]
    pub fn live_while(mut self, live: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.live = Box::new(live);
        self
    }

    /// Adds a path. `answer` runs on the admin thread and may block it for a moment.
    #[must_use]
    pub fn route(
        mut self,
        method: Method,
        path: &'static str,
        answer: impl Fn(Query<'_>) -> Answer + Send + Sync + 'static,
    ) -> Self {
        self.routes.push(Route { method, path, answer: Handler::Answer(Box::new(answer)) });
        self
    }

    /// Adds a path whose answer goes on until the client leaves or the pieces end. It holds one of the places for clients.
    #[must_use]
    pub fn stream(
        mut self,
        path: &'static str,
        content_type: &'static str,
        pieces: impl Fn(Query<'_>) -> Pieces + Send + Sync + 'static,
    ) -> Self {
        let answer = Handler::Stream(content_type, Box::new(pieces));
        self.routes.push(Route { method: Method::GET, path, answer });
        self
    }

    /// Listens, and serves from a thread of its own until the returned handle is dropped.
    ///
    /// # Errors
    /// When the address cannot be listened on or the thread not started.
    pub fn start(self, listen: SocketAddr) -> io::Result<AdminServer> {
        let about =
            |error: io::Error| io::Error::new(error.kind(), format!("admin address {listen}: {error}"));
        self.start_on(std::net::TcpListener::bind(listen).map_err(about)?)
    }

    /// As [`Admin::start`], on a socket that listens already.
    ///
    /// # Errors
    /// When the socket cannot be used or the thread not started.
    pub fn start_on(self, listener: std::net::TcpListener) -> io::Result<AdminServer> {
        let about = |error: io::Error| io::Error::new(error.kind(), format!("admin socket: {error}"));
        listener.set_nonblocking(true).map_err(about)?;
        let socket = listener.try_clone().map_err(about)?;
        let address = listener.local_addr().map_err(about)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener).map_err(about)?
        };
        let (stop, stopped) = oneshot::channel::<Infallible>();
        std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, Arc::new(self)) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(AdminServer { address, socket, _stop: stop })
    }

    /// The answer, and whether it has an end.
    fn respond(&self, method: &Method, path: &str, query: Query<'_>) -> (Response<Body>, bool) {
        let streamed = self.routes.iter().find(|route| route.path == path && route.method == *method);
        if let Some(Route { answer: Handler::Stream(content_type, pieces), .. }) = streamed {
            let frames = pieces(query).map(|piece| Ok(Frame::data(piece)));
            return (response(StatusCode::OK, content_type, StreamBody::new(frames).boxed_unsync()), false);
        }
        let Answer { status, content_type, body } = self.answer(method, path, query);
        (response(status, content_type, Full::new(Bytes::from(body)).boxed_unsync()), true)
    }

    fn answer(&self, method: &Method, path: &str, query: Query<'_>) -> Answer {
        let read = method == Method::GET || method == Method::HEAD;
        match path {
            "/healthz/live" if read => match (self.live)() {
                Ok(()) => Answer::text(StatusCode::OK, "live\n"),
                Err(stuck) => Answer::text(StatusCode::SERVICE_UNAVAILABLE, format!("{stuck}\n")),
            },
            "/healthz/ready" if read => self.ready(query),
            "/metrics" if read => self.metrics(),
            "/log" if read => Answer::text(StatusCode::OK, format!("{}\n", self.log.current())),
            "/log" if method == Method::POST => self.set_log(query),
            _ => self.added(method, path, query),
        }
    }

    fn ready(&self, query: Query<'_>) -> Answer {
        match (query.get("instance"), &self.instance) {
            (Some(asked), Some(own)) if asked != *own => {
                let text =
                    format!("not ready\ninstance: this address is still served by {own}, not by {asked}\n");
                Answer::text(StatusCode::SERVICE_UNAVAILABLE, text)
            }
            _ => self.readiness.answer(),
        }
    }

    fn added(&self, method: &Method, path: &str, query: Query<'_>) -> Answer {
        let mut same_path = self.routes.iter().filter(|route| route.path == path).peekable();
        if same_path.peek().is_none() {
            return Answer::text(
                StatusCode::NOT_FOUND,
                format!("no such path; there are:\n{}", self.paths()),
            );
        }
        match same_path.find(|route| route.method == *method) {
            Some(Route { answer: Handler::Answer(answer), .. }) => answer(query),
            _ => Answer::text(StatusCode::METHOD_NOT_ALLOWED, "this path has another method\n"),
        }
    }

    fn paths(&self) -> String {
        let own = [
            "GET /healthz/live",
            "GET /healthz/ready",
            "GET /metrics",
            "GET /log",
            "POST /log?filter=FILTER",
        ];
        let added = self.routes.iter().map(|route| format!("{} {}", route.method, route.path));
        own.iter().map(ToString::to_string).chain(added).map(|line| line + "\n").collect()
    }

    fn metrics(&self) -> Answer {
        let mut body = String::new();
        match prometheus_client::encoding::text::encode(&mut body, &self.registry) {
            Ok(()) => Answer { status: StatusCode::OK, content_type: METRICS, body },
            Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn set_log(&self, query: Query<'_>) -> Answer {
        let Some(filter) = query.get("filter") else {
            return Answer::text(StatusCode::BAD_REQUEST, "which filter? ?filter=info,h2=warn\n");
        };
        match self.log.set(&filter) {
            Ok(()) => {
                tracing::info!(filter = self.log.current(), "log filter changed");
                Answer::text(StatusCode::OK, format!("{}\n", self.log.current()))
            }
            Err(error) => Answer::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }
}

/// A running admin server; ends when dropped.
#[derive(Debug)]
pub struct AdminServer {
    address: SocketAddr,
    socket: std::net::TcpListener,
    _stop: oneshot::Sender<Infallible>,
}

impl AdminServer {
    /// Where it listens, the port chosen if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its listening socket once more, for another process to go on with.
    ///
    /// # Errors
    /// When descriptors are exhausted.
    pub fn listener(&self) -> io::Result<std::net::TcpListener> {
        self.socket.try_clone()
    }
}

async fn accept(listener: TcpListener, admin: Arc<Admin>) {
    let places = Arc::new(Semaphore::new(MOST_CLIENTS));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((tcp, _)) => drop(tokio::spawn(serve(tcp, admin.clone(), place))),
            Err(error) => {
                tracing::warn!(%error, "admin connections cannot be accepted");
                sleep(AFTER_A_FAILED_ACCEPT).await;
            }
        }
    }
}

async fn serve(tcp: TcpStream, admin: Arc<Admin>, _place: OwnedSemaphorePermit) {
    let endless = Arc::new(AtomicBool::new(false));
    let mark = endless.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let query = Query(request.uri().query().unwrap_or_default());
        let (response, has_end) = admin.respond(request.method(), request.uri().path(), query);
        mark.store(!has_end, Ordering::Relaxed);
        async move { Ok::<_, Infallible>(response) }
    });
    // One request per connection: nobody holds a place longer than one deadline.
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(tcp), service);
    let mut connection = pin!(connection);
    // What goes wrong here is the client's: it left, or was too slow.
    let in_time = timeout(ONE_REQUEST, connection.as_mut()).await;
    if in_time.is_err() && endless.load(Ordering::Relaxed) {
        let _ = connection.await;
    }
}

fn response(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests;
