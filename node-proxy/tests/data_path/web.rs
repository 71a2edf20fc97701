//! HTTP ends of the data path: a server that says what it received, and a client that says exactly what it is told to.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use culvert_node_proxy::intercept::Netns;
use culvert_node_proxy::state::model::{AppProtocol, Membership, Service, ServiceKey, ServicePort};
use culvert_node_proxy::state::routes::{Attached, Parent};
use culvert_routing::CompiledRoute;
use culvert_routing::model::{
    Action, Backend, Filter, Match, PathMatch, Route, RouteKey, RouteKind, Rule, Target, Timeouts,
};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::mesh::{Mesh, SOON};

/// A server under a name. What it does depends on the path:
///
/// `/wait/MS` answers late, `/bytes/NUMBER` with so many, `/late-body/MS` ends its body late, `/status/CODE` answers so, `/reset` closes without an
/// answer, `/once` closes the connection that was used before, `/trailers` ends with one, `/upgrade` switches to an echo,
/// `/continue` refuses an expectation; all others say what came.
pub struct Server {
    seen: Arc<Mutex<Vec<String>>>,
    received: Arc<Mutex<Vec<String>>>,
    pub connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub fn start(netns: &Netns, at: SocketAddr, name: &'static str) -> Self {
        let listener = netns.run(|| std::net::TcpListener::bind(at)).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let (seen, connections) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
        let received = Arc::<Mutex<Vec<String>>>::default();
        let mut tasks = JoinSet::new();
        let (all, whole, count) = (seen.clone(), received.clone(), connections.clone());
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let (all, whole, requests) = (all.clone(), whole.clone(), Arc::new(AtomicUsize::new(0)));
                open.spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let number = requests.fetch_add(1, Ordering::Relaxed);
                        all.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
                        answer(request, name, number, whole.clone())
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { seen, received, connections, _tasks: tasks }
    }

    /// Requests that came whole, as they are answered.
    pub fn received(&self) -> Vec<String> {
        self.received.lock().unwrap().clone()
    }

    /// Requests so far: `METHOD URI`.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

fn full(text: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, std::io::Error> {
    Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

async fn answer(
    mut request: Request<Incoming>,
    name: &str,
    number: usize,
    received: Arc<Mutex<Vec<String>>>,
) -> Result<Answer, std::io::Error> {
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').split('/');
    let (verb, argument) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let number_of = |text: &str| text.parse::<u64>().unwrap_or_default();
    match verb {
        "wait" => tokio::time::sleep(Duration::from_millis(number_of(argument))).await,
        "reset" => return Err(std::io::ErrorKind::ConnectionReset.into()),
        "once" if number > 0 => return Err(std::io::ErrorKind::ConnectionReset.into()),
        "upgrade" => return Ok(switch(&mut request)),
        "refuse" => {
            let mut response = Response::new(full("no"));
            *response.status_mut() = StatusCode::EXPECTATION_FAILED;
            return Ok(response);
        }
        _ => {}
    }
    let (head, body) = request.into_parts();
    let collected = body.collect().await.map_err(std::io::Error::other)?;
    let trailers = collected.trailers().cloned();
    let text = describe(name, &head, &collected.to_bytes(), trailers.as_ref());
    received.lock().unwrap().push(text.clone());
    let mut response = match verb {
        "late-body" => {
            let wait = Duration::from_millis(number_of(argument));
            Response::new(late(text, wait))
        }
        "bytes" => Response::new(full(vec![b'x'; usize::try_from(number_of(argument)).unwrap()])),
        "trailers" | "grpc.Echo" => Response::new(with_trailers(text)),
        _ => Response::new(full(text)),
    };
    if verb == "status" {
        *response.status_mut() = argument.parse().unwrap();
    }
    response.headers_mut().insert("x-server", HeaderValue::from_str(name).unwrap());
    response.headers_mut().insert("x-hop", HeaderValue::from_static("gone"));
    response.headers_mut().append("connection", HeaderValue::from_static("x-hop"));
    if verb == "trailers" {
        response.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
    }
    Ok(response)
}

/// `server: NAME`, then the request as it came, one field per line in order of their names, then the body.
fn describe(name: &str, head: &http::request::Parts, body: &[u8], trailers: Option<&HeaderMap>) -> String {
    let mut lines =
        vec![format!("server: {name}"), format!("{} {} {:?}", head.method, head.uri, head.version)];
    let mut fields: Vec<String> = head
        .headers
        .iter()
        .chain(trailers.into_iter().flatten())
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    fields.sort();
    lines.extend(fields);
    lines.push(format!("body: {}", String::from_utf8_lossy(body)));
    lines.join("\n")
}

fn late(text: String, wait: Duration) -> UnsyncBoxBody<Bytes, std::io::Error> {
    let frames = futures::stream::unfold(0, move |step| {
        let text = text.clone();
        async move {
            match step {
                0 => Some((Ok(Frame::data(Bytes::from(text))), 1)),
                1 => {
                    tokio::time::sleep(wait).await;
                    Some((Ok(Frame::data(Bytes::from_static(b"\nlate"))), 2))
                }
                _ => None,
            }
        }
    });
    StreamBody::new(Box::pin(frames) as futures::stream::BoxStream<'static, _>).boxed_unsync()
}

fn with_trailers(text: String) -> UnsyncBoxBody<Bytes, std::io::Error> {
    let trailers = HeaderMap::from_iter([
        ("x-sum".parse().unwrap(), HeaderValue::from_static("42")),
        ("grpc-status".parse().unwrap(), HeaderValue::from_static("0")),
    ]);
    let frames = [Ok(Frame::data(Bytes::from(text))), Ok(Frame::trailers(trailers))];
    StreamBody::new(futures::stream::iter(frames)).boxed_unsync()
}

/// Agrees to any protocol and echoes.
fn switch(request: &mut Request<Incoming>) -> Answer {
    let upgrade = hyper::upgrade::on(&mut *request);
    let protocol = request.headers().get("upgrade").cloned();
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
        let _ = write.write_all(b"hello from the other protocol\n").await;
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    });
    let mut response = Response::new(full(""));
    if let Some(protocol) = protocol {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("upgrade", protocol);
        response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
    }
    response
}

/// A response as it came over HTTP/1.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }

    pub fn server(&self) -> &str {
        self.header("x-server")
    }

    /// The reason of Culvert's own answer.
    pub fn reason(&self) -> &str {
        let details = self.header("proxy-status").split("details=\"").nth(1).unwrap_or_default();
        details.trim_end_matches('"')
    }
}

/// A client that writes bytes and reads responses.
pub struct Wire {
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    pub async fn connect(netns: &Netns, to: SocketAddr) -> Self {
        Self::try_connect(netns, to).await.expect("connected")
    }

    /// A connection that is refused may be reset before it is seen to be there.
    pub async fn try_connect(netns: &Netns, to: SocketAddr) -> std::io::Result<Self> {
        let open = || if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = netns.run(open).unwrap().unwrap();
        let stream = timeout(SOON, socket.connect(to)).await.expect("in time")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: Vec::new() })
    }

    pub async fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("sent");
    }

    pub async fn get(&mut self, path: &str) -> Reply {
        self.say(format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n").as_bytes()).await;
        self.reply().await
    }

    /// The next response; panics when the connection ends before it is complete.
    pub async fn reply(&mut self) -> Reply {
        self.try_reply().await.expect("a response")
    }

    pub async fn try_reply(&mut self) -> Option<Reply> {
        loop {
            if let Some((reply, length)) = parse(&self.read) {
                self.read.drain(..length);
                return Some(reply);
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn more(&mut self) -> bool {
        let mut bytes = vec![0; 16384];
        match timeout(SOON, self.stream.read(&mut bytes)).await.expect("in time") {
            Ok(0) | Err(_) => false,
            Ok(length) => {
                self.read.extend_from_slice(&bytes[..length]);
                true
            }
        }
    }

    /// Everything until the end, and whether that was in order.
    pub async fn rest(&mut self) -> (String, bool) {
        let mut bytes = vec![0; 16384];
        loop {
            match timeout(SOON, self.stream.read(&mut bytes)).await.expect("in time") {
                Ok(0) => return (String::from_utf8_lossy(&self.read).into_owned(), true),
                Ok(length) => self.read.extend_from_slice(&bytes[..length]),
                Err(_) => return (String::from_utf8_lossy(&self.read).into_owned(), false),
            }
        }
    }

    /// Reads until the text has come.
    pub async fn until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.read).contains(text) {
            assert!(self.more().await, "no {text:?} in {:?}", String::from_utf8_lossy(&self.read));
        }
    }
}

/// A whole response and its length; 1xx responses are passed over.
fn parse(bytes: &[u8]) -> Option<(Reply, usize)> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(head) = response.parse(bytes).expect("HTTP") else { return None };
    let status = response.code.unwrap();
    let headers: HashMap<String, String> = response
        .headers
        .iter()
        .map(|field| (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).into_owned()))
        .collect();
    let body = &bytes[head..];
    let (text, length) = if status < 200 {
        (String::new(), 0)
    } else if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
        dechunk(body)?
    } else {
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        (String::from_utf8_lossy(body.get(..length)?).into_owned(), length)
    };
    Some((Reply { status, headers, body: text }, head + length))
}

fn dechunk(mut body: &[u8]) -> Option<(String, usize)> {
    let whole = body.len();
    let mut text = Vec::new();
    loop {
        let end = body.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        body = &body[end + 2..];
        if size == 0 {
            // Trailers, then an empty line.
            loop {
                let end = body.windows(2).position(|two| two == b"\r\n")?;
                let line = &body[..end];
                body = &body[end + 2..];
                if line.is_empty() {
                    return Some((String::from_utf8_lossy(&text).into_owned(), whole - body.len()));
                }
                text.extend_from_slice(b"\ntrailer ");
                text.extend_from_slice(line);
            }
        }
        text.extend_from_slice(body.get(..size)?);
        body = body.get(size + 2..)?;
    }
}

/// A Service of `db`'s pod: port 80 leads to `target`.
pub fn backend(mesh: &mut Mesh, name: &str, target: u16, protocol: AppProtocol) {
    let mut db = mesh.db.clone();
    db.memberships.push(Membership {
        service: ServiceKey(format!("shop/{name}").into()),
        ports: vec![(80, target)],
        ready: true,
        serving: true,
        terminating: false,
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    });
    mesh.db = db;
    let service =
        Service { vips: Vec::new(), ..declared(crate::mesh::service(name, mesh.world.vip), protocol) };
    mesh.builder.upsert_service(service);
}

pub fn declared(mut service: Service, protocol: AppProtocol) -> Service {
    service.ports = vec![ServicePort { port: 80, name: "http".into(), app_protocol: protocol }];
    service
}

pub fn rule(path: PathMatch, backends: &[(&str, u32)]) -> Rule {
    let target = |name: &str| match name {
        "" => Target::Invalid("for a test".into()),
        name => Target::Service { namespace: "shop".into(), name: name.into(), port: 80 },
    };
    Rule {
        name: None,
        matches: vec![Match { path, method: None, headers: Vec::new(), query: Vec::new() }],
        filters: Vec::new(),
        action: Action::Forward(
            backends
                .iter()
                .map(|(name, weight)| Backend { weight: *weight, filters: Vec::new(), target: target(name) })
                .collect(),
        ),
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    }
}

pub fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.into())
}

pub fn exact(path: &str) -> PathMatch {
    PathMatch::Exact(path.into())
}

pub fn filtered(rule: Rule, filters: Vec<Filter>) -> Rule {
    Rule { filters, ..rule }
}

/// A producer route of namespace `shop`.
pub fn route(name: &str, kind: RouteKind, rules: Vec<Rule>) -> Route {
    let key = RouteKey { kind, namespace: "shop".into(), name: name.into() };
    Route { key, created: 0, hostnames: Vec::new(), rules }
}

/// Attaches a route to `shop/db`, port 80.
pub fn attach(mesh: &mut Mesh, name: &str, kind: RouteKind, consumers: Option<&str>, rules: Vec<Rule>) {
    let mut route = route(name, kind, rules);
    route.key.namespace = consumers.unwrap_or("shop").into();
    attach_route(mesh, route, consumers);
}

/// The same with a route that says more.
pub fn attach_route(mesh: &mut Mesh, route: Route, consumers: Option<&str>) {
    let parent = Parent::Service {
        service: ServiceKey("shop/db".into()),
        ports: vec![80],
        consumers: consumers.map(Into::into),
    };
    let name = route.key.name.clone();
    let route = Arc::new(CompiledRoute::compile(route).expect("the route compiles"));
    mesh.builder.upsert_route(&name, Attached { parent, route });
    mesh.publish();
}

/// `web` and `db` enrolled, with Services `v1` and `v2` on 8081 and 8082 of `db`'s pod, and servers there and on 8080.
pub async fn three_servers(mut mesh: Mesh) -> (Mesh, [Server; 3]) {
    backend(&mut mesh, "v1", 8081, AppProtocol::Undeclared);
    backend(&mut mesh, "v2", 8082, AppProtocol::Undeclared);
    let mesh = mesh.with_both().await;
    let servers = [(8080, "db"), (8081, "v1"), (8082, "v2")];
    let servers = servers.map(|(port, name)| Server::start(&mesh.world.peer, mesh.world.peer_at(port), name));
    (mesh, servers)
}

/// Answers the first request of each connection with these bytes, each piece after a pause, and then closes.
pub fn script(netns: &Netns, at: SocketAddr, pieces: &'static [&'static str]) -> JoinSet<()> {
    let listener = netns.run(|| std::net::TcpListener::bind(at)).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 16384];
            let _ = stream.read(&mut request).await;
            for piece in pieces {
                let _ = stream.write_all(piece.as_bytes()).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    tasks
}
