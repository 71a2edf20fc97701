//! HTTP/1.1 and h2c on one port: every request is answered with what was seen of it.

use super::accept;
use crate::identity::PodIdentity;
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use indexmap::IndexMap;
use serde::Serialize;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

type Body = BoxBody<Bytes, Infallible>;

/// Longest `?delay=` and largest `?size=`, so that a typing error does not hold a test for ever.
const MAX_DELAY: Duration = Duration::from_secs(600);
const MAX_SIZE: u64 = 16 << 30;
const CHUNK: usize = 64 * 1024;

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
}

/// What the query asks of the answer.
#[derive(Debug, PartialEq)]
struct Wishes {
    status: StatusCode,
    delay: Duration,
    size: Option<u64>,
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
    builder.http2().timer(TokioTimer::new());
    // How a client's connection ends is the client's business.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, remote: SocketAddr, identity: &PodIdentity) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let wishes = match parse_query(parts.uri.query().unwrap_or("")) {
        Ok(wishes) => wishes,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let body_bytes = drain(body).await;
    // A sleep of nothing still takes a tick of the timer.
    if !wishes.delay.is_zero() {
        tokio::time::sleep(wishes.delay).await;
    }
    let mut response = match wishes.size {
        Some(size) => Response::new(filler(size)),
        None => {
            let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
            let answer = Answer {
                identity,
                remote: remote.to_string(),
                protocol: if parts.version == Version::HTTP_2 { "HTTP/2.0" } else { "HTTP/1.1" },
                method: parts.method.as_str(),
                path,
                headers: headers_of(&parts.headers, &parts.uri),
                body_bytes,
            };
            let mut json = serde_json::to_vec(&answer).unwrap_or_default();
            json.push(b'\n');
            let mut response = Response::new(Full::new(Bytes::from(json)).boxed());
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
    };
    *response.status_mut() = wishes.status;
    if let Ok(pod) = HeaderValue::from_str(&identity.pod) {
        response.headers_mut().insert("x-echo-pod", pod);
    }
    response
}

/// Every value of every header; over HTTP/2 the authority as `host`, so that tests read one key.
fn headers_of<'a>(headers: &'a http::HeaderMap, uri: &http::Uri) -> IndexMap<&'a str, Vec<String>> {
    let mut seen: IndexMap<&str, Vec<String>> = IndexMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        seen.entry(name.as_str()).or_default().push(value);
    }
    if let Some(authority) = uri.authority().filter(|_| !seen.contains_key("host")) {
        seen.insert("host", vec![authority.to_string()]);
    }
    seen
}

async fn drain(mut body: Incoming) -> u64 {
    let mut total = 0;
    while let Some(Ok(frame)) = body.frame().await {
        total += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
    total
}

fn filler(size: u64) -> Body {
    let block = Bytes::from(vec![b'x'; CHUNK]);
    let chunks = stream::unfold(size, move |left| {
        let block = block.clone();
        async move {
            let take = left.min(CHUNK as u64);
            (take > 0).then(|| (Ok(Frame::data(block.slice(..take as usize))), left - take))
        }
    });
    StreamBody::new(chunks).boxed()
}

fn text(status: StatusCode, message: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(message + "\n")).boxed());
    *response.status_mut() = status;
    response
}

fn parse_query(query: &str) -> Result<Wishes, String> {
    let mut wishes = Wishes { status: StatusCode::OK, delay: Duration::ZERO, size: None };
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match key {
            "status" => {
                let status = value.parse().ok().and_then(|code: u16| StatusCode::from_u16(code).ok());
                wishes.status = status
                    .filter(|status| !status.is_informational())
                    .ok_or_else(|| format!("status {value:?}: expected 200 to 999"))?;
            }
            "delay" => {
                wishes.delay =
                    parse_duration(value).filter(|delay| *delay <= MAX_DELAY).ok_or_else(|| {
                        format!(
                            "delay {value:?}: expected a number with ms or s, at most {} s",
                            MAX_DELAY.as_secs()
                        )
                    })?;
            }
            "size" => {
                let size = value.parse().ok().filter(|size| *size <= MAX_SIZE);
                wishes.size = Some(size.ok_or_else(|| {
                    format!("size {value:?}: expected a number of bytes, at most {MAX_SIZE}")
                })?);
            }
            _ => {}
        }
    }
    Ok(wishes)
}

/// `100ms`, `2s`; a bare number is milliseconds.
fn parse_duration(text: &str) -> Option<Duration> {
    if let Some(millis) = text.strip_suffix("ms") {
        return millis.parse().ok().map(Duration::from_millis);
    }
    if let Some(seconds) = text.strip_suffix('s') {
        return seconds.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    }
    text.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_says_how_to_answer() {
        let wishes = parse_query("a=b&status=418&delay=100ms&size=7").unwrap();
        assert_eq!(
            wishes,
            Wishes { status: StatusCode::IM_A_TEAPOT, delay: Duration::from_millis(100), size: Some(7) }
        );
        assert_eq!(parse_query("delay=1.5s").unwrap().delay, Duration::from_millis(1500));
    }

    #[test]
    fn a_query_that_cannot_be_honoured_is_an_error() {
        for bad in ["status=abc", "status=100", "delay=soon", "delay=9999s", "size=-1", "delay=-1s"] {
            assert!(parse_query(bad).is_err(), "{bad}");
        }
    }
}
