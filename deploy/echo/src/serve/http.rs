//! HTTP/1.1 and h2c on one port: every request is answered with what was seen of it, or as its query wishes.

use super::accept;
use super::wishes::{Ending, Reading, Wishes};
use crate::identity::PodIdentity;
use crate::websocket::{self, Frame as Message, Opcode};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use indexmap::IndexMap;
use serde::Serialize;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Frames = BoxStream<'static, io::Result<Frame<Bytes>>>;

const CHUNK: usize = 64 * 1024;
const TRAILER: &str = "x-echo-trailer";
/// Bytes of one request's head, at most: proxies are to refuse what is too large, not this server.
const LARGEST_HEAD: usize = 1 << 20;

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    identity: &'a PodIdentity,
    remote: String,
    protocol: &'static str,
    method: &'a str,
    path: &'a str,
    headers: IndexMap<&'a str, Vec<String>>,
    body_bytes: u64,
    trailers: IndexMap<&'a str, Vec<String>>,
}

/// Serves for ever.
pub(crate) async fn serve(listener: TcpListener, identity: Arc<PodIdentity>) {
    loop {
        let stream = accept(&listener).await;
        let Ok(remote) = stream.peer_addr() else { continue };
        let identity = Arc::clone(&identity);
        tokio::spawn(serve_connection(stream, remote, identity));
    }
}

async fn serve_connection(stream: TcpStream, remote: SocketAddr, identity: Arc<PodIdentity>) {
    let service = service_fn(move |request| {
        let identity = Arc::clone(&identity);
        async move { Ok::<_, Infallible>(answer(request, remote, &identity).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).half_close(true);
    builder.http1().max_buf_size(LARGEST_HEAD).max_headers(1000);
    builder.http2().timer(TokioTimer::new()).max_header_list_size(LARGEST_HEAD as u32);
    // How a client's connection ends is the client's business.
    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, remote: SocketAddr, identity: &PodIdentity) -> Response<Body> {
    let wishes = match Wishes::parse(request.uri().query().unwrap_or("")) {
        Ok(wishes) => wishes,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let is_head = request.method() == Method::HEAD;
    let mut response = match websocket::handshake_key(request.headers()).map(websocket::accept_key) {
        Some(key) if request.uri().path().ends_with("/ws") => upgrade(request, &key),
        _ => respond(request, &wishes, remote, identity).await,
    };
    let is_bodiless = matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if is_head || is_bodiless {
        response = without_body(response);
    }
    if let Ok(pod) = HeaderValue::from_str(&identity.pod) {
        response.headers_mut().insert("x-echo-pod", pod);
    }
    for (name, value) in &wishes.headers {
        response.headers_mut().append(name, value.clone());
    }
    response
}

async fn respond(
    request: Request<Incoming>,
    wishes: &Wishes,
    remote: SocketAddr,
    identity: &PodIdentity,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let (body_bytes, trailers) = match wishes.reading {
        Reading::Whole => drain(body).await,
        Reading::Nothing => (0, HeaderMap::new()),
    };
    // A sleep of nothing still takes a tick of the timer.
    if !wishes.delay.is_zero() {
        tokio::time::sleep(wishes.delay).await;
    }
    let mut response = if let Some(count) = wishes.chunks {
        Response::new(finished(lines(count, wishes.every), wishes))
    } else if let Some(size) = wishes.size {
        Response::new(finished(filler(size), wishes))
    } else {
        let answer = Answer {
            identity,
            remote: remote.to_string(),
            protocol: if parts.version == Version::HTTP_2 { "HTTP/2.0" } else { "HTTP/1.1" },
            method: parts.method.as_str(),
            path: parts.uri.path_and_query().map_or("/", |path| path.as_str()),
            headers: headers_of(&parts.headers, &parts.uri),
            body_bytes,
            trailers: lists(&trailers),
        };
        let mut json = serde_json::to_vec(&answer).unwrap_or_default();
        json.push(b'\n');
        let mut response = Response::new(document(json, wishes));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    };
    *response.status_mut() = wishes.status;
    if wishes.trailer.is_some() {
        response.headers_mut().insert(header::TRAILER, HeaderValue::from_static(TRAILER));
    }
    response
}

/// With the length of the body that is left out; hyper leaves it out by itself over HTTP/1 only.
fn without_body(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact().filter(|_| parts.status != StatusCode::NO_CONTENT) {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(parts, Empty::new().map_err(|never| match never {}).boxed_unsync())
}

/// Switches to WebSocket and echoes every message.
fn upgrade(request: Request<Incoming>, key: &str) -> Response<Body> {
    let Ok(accept) = HeaderValue::from_str(key) else {
        return text(StatusCode::BAD_REQUEST, "key".to_owned());
    };
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            // How a client's connection ends is the client's business.
            let _ = echo_messages(upgraded).await;
        }
    });
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

async fn echo_messages(upgraded: Upgraded) -> io::Result<()> {
    let mut stream = TokioIo::new(upgraded);
    while let Some(mut message) = websocket::read(&mut stream).await? {
        if message.opcode == Opcode::Ping {
            message = Message { opcode: Opcode::Pong, ..message };
        }
        websocket::write(&mut stream, &message, None).await?;
        if message.opcode == Opcode::Close {
            break;
        }
    }
    Ok(())
}

/// Every value of every header; over HTTP/2 the authority as `host`, so that tests read one key.
fn headers_of<'a>(headers: &'a HeaderMap, uri: &http::Uri) -> IndexMap<&'a str, Vec<String>> {
    let mut seen = lists(headers);
    if let Some(authority) = uri.authority().filter(|_| !seen.contains_key("host")) {
        seen.insert("host", vec![authority.to_string()]);
    }
    seen
}

fn lists(headers: &HeaderMap) -> IndexMap<&str, Vec<String>> {
    let mut seen: IndexMap<&str, Vec<String>> = IndexMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        seen.entry(name.as_str()).or_default().push(value);
    }
    seen
}

async fn drain(mut body: Incoming) -> (u64, HeaderMap) {
    let (mut total, mut trailers) = (0, HeaderMap::new());
    while let Some(Ok(frame)) = body.frame().await {
        total += frame.data_ref().map_or(0, |data| data.len() as u64);
        if let Ok(last) = frame.into_trailers() {
            trailers = last;
        }
    }
    (total, trailers)
}

/// With its length said in advance, unless something else is to follow.
fn document(bytes: Vec<u8>, wishes: &Wishes) -> Body {
    if wishes.trailer.is_none() && wishes.ending == Ending::Whole {
        return whole(bytes);
    }
    finished(stream::iter([Ok(Frame::data(Bytes::from(bytes)))]).boxed(), wishes)
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The frames and what is to come after them.
fn finished(frames: Frames, wishes: &Wishes) -> Body {
    let trailers = wishes.trailer.clone().map(|value| {
        Ok(Frame::trailers(HeaderMap::from_iter([(http::HeaderName::from_static(TRAILER), value)])))
    });
    let broken = (wishes.ending == Ending::Broken).then(|| Err(io::ErrorKind::ConnectionAborted.into()));
    StreamBody::new(frames.chain(stream::iter(broken)).chain(stream::iter(trailers))).boxed_unsync()
}

fn filler(size: u64) -> Frames {
    let block = Bytes::from(vec![b'x'; CHUNK]);
    stream::unfold(size, move |left| {
        let block = block.clone();
        async move {
            let take = left.min(CHUNK as u64);
            (take > 0).then(|| (Ok(Frame::data(block.slice(..take as usize))), left - take))
        }
    })
    .boxed()
}

fn lines(count: u64, every: Duration) -> Frames {
    stream::iter(0..count)
        .then(move |index| async move {
            if index > 0 && !every.is_zero() {
                tokio::time::sleep(every).await;
            }
            Ok(Frame::data(Bytes::from(format!("chunk {index}\n"))))
        })
        .boxed()
}

fn text(status: StatusCode, message: String) -> Response<Body> {
    let mut response = Response::new(whole(message + "\n"));
    *response.status_mut() = status;
    response
}
