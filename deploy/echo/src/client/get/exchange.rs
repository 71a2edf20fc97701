//! One request and its answer.

use super::Plan;
use crate::client::connect::{lookup_one, open};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::error::Error;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Of a body, so many bytes are kept to be looked into.
const LOOK_INTO: usize = 64 * 1024;

pub(super) type Failure = Box<dyn Error>;
type Body = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) trailers: HeaderMap,
    /// The start of it.
    pub(super) body: Bytes,
    /// Of the body.
    pub(super) bytes: u64,
    /// Until the first byte of the body.
    pub(super) first_byte: Option<Duration>,
    pub(super) whole: Duration,
}

impl Answer {
    /// Who answered, if it was an echo server.
    pub(super) fn pod(&self) -> Option<String> {
        if let Some(pod) = self.headers.get("x-echo-pod") {
            return Some(String::from_utf8_lossy(pod.as_bytes()).into_owned());
        }
        let json: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        Some(json.get("pod")?.as_str()?.to_owned())
    }
}

pub(super) enum Sender {
    Http1(hyper::client::conn::http1::SendRequest<Body>),
    Http2(hyper::client::conn::http2::SendRequest<Body>),
}

impl Sender {
    async fn send(&mut self, request: Request<Body>) -> hyper::Result<http::Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}

/// One request; a connection that failed is forgotten, so that the next request makes a new one.
pub(super) async fn exchange(plan: &Plan, connection: &mut Option<Sender>) -> Result<Answer, Failure> {
    let deadline = Duration::from_millis(plan.args.timeout);
    let mut sender = match connection.take().filter(|sender| !sender.is_closed()) {
        Some(sender) => sender,
        None => connect(plan, deadline).await?,
    };
    let answer = timeout(deadline, converse(plan, &mut sender)).await??;
    *connection = Some(sender);
    Ok(answer)
}

async fn converse(plan: &Plan, sender: &mut Sender) -> Result<Answer, Failure> {
    let started = Instant::now();
    let response = sender.send(request(plan)?).await?;
    let mut answer = Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        ..Answer::default()
    };
    let mut body = response.into_body();
    let mut kept = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        if let Some(data) = frame.data_ref() {
            answer.first_byte.get_or_insert_with(|| started.elapsed());
            answer.bytes += data.len() as u64;
            kept.extend_from_slice(&data[..data.len().min(LOOK_INTO - kept.len().min(LOOK_INTO))]);
        }
        if let Ok(trailers) = frame.into_trailers() {
            answer.trailers = trailers;
        }
    }
    Ok(Answer { body: kept.into(), whole: started.elapsed(), ..answer })
}

async fn connect(plan: &Plan, deadline: Duration) -> Result<Sender, Failure> {
    let address = lookup_one(&plan.target, deadline).await?;
    let io = TokioIo::new(open(address, deadline).await?);
    if plan.args.http2 {
        let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (sender, driver) = timeout(deadline, handshake.handshake(io)).await??;
        tokio::task::spawn_local(driver);
        return Ok(Sender::Http2(sender));
    }
    let (sender, driver) = hyper::client::conn::http1::handshake(io).await?;
    tokio::task::spawn_local(driver);
    Ok(Sender::Http1(sender))
}

fn request(plan: &Plan) -> Result<Request<Body>, Failure> {
    let (args, url) = (&plan.args, &plan.args.url);
    let mut headers = lines(&args.headers)?;
    let host = headers.remove(header::HOST);
    if let Some(line) = plan.cookie_line() {
        headers.append(header::COOKIE, HeaderValue::from_str(&line)?);
    }
    let trailers = lines(&args.trailers)?;
    for name in trailers.keys() {
        headers.append(header::TRAILER, HeaderValue::from_name(name.clone()));
    }
    let mut request = Request::new(body(plan, trailers));
    *request.method_mut() = args.method.clone();
    *request.uri_mut() = match &host {
        _ if args.absolute => url.clone(),
        Some(host) if args.http2 => with_authority(url, host)?,
        _ if args.http2 => url.clone(),
        _ => url.path_and_query().map_or("/", |path| path.as_str()).parse()?,
    };
    if !args.http2 {
        let authority = url.authority().map_or("", |authority| authority.as_str());
        headers.insert(header::HOST, host.map_or_else(|| HeaderValue::from_str(authority), Ok)?);
    }
    *request.headers_mut() = headers;
    Ok(request)
}

fn with_authority(url: &Uri, host: &HeaderValue) -> Result<Uri, Failure> {
    let mut parts = url.clone().into_parts();
    parts.authority = Some(host.to_str()?.parse()?);
    Ok(Uri::from_parts(parts)?)
}

fn lines(lines: &[String]) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) =
            line.split_once(':').ok_or_else(|| format!("header {line:?}: expected NAME: VALUE"))?;
        let name: HeaderName = name.trim().parse()?;
        headers.append(name, HeaderValue::from_str(value.trim())?);
    }
    Ok(headers)
}

/// With its length said in advance, or in chunks.
fn body(plan: &Plan, trailers: HeaderMap) -> Body {
    let content = Bytes::from(plan.args.body.clone());
    let Some(times) = plan.args.chunked else { return Full::new(content).boxed_unsync() };
    let every = Duration::from_millis(plan.args.every);
    let chunks = stream::iter(0..times).then(move |index| {
        let content = content.clone();
        async move {
            if index > 0 && !every.is_zero() {
                tokio::time::sleep(every).await;
            }
            Ok(Frame::data(content))
        }
    });
    let trailers = (!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers)));
    StreamBody::new(chunks.chain(stream::iter(trailers))).boxed_unsync()
}
