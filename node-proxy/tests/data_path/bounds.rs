//! What clients may take of the proxy: sizes, times, places; over HTTP/2 as over HTTP/1.

use std::time::{Duration, Instant};

use bytes::Bytes;
use culvert_node_proxy::state::model::WorkloadSettings;
use culvert_routing::model::RouteKind;
use futures::FutureExt;
use futures::channel::mpsc;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::timeout;

use crate::mesh::{Mesh, with_settings};
use crate::web::{Server, Wire, attach, prefix, rule, three_servers};

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub const ALL: &[(&str, crate::Case)] =
            &[$((stringify!($case), |mesh| $case(mesh).boxed_local())),*];
    };
}

cases![
    heads_too_large_are_431_over_http2,
    a_head_too_large_to_be_read_ends_its_connection_in_order,
    heads_of_http2_that_trickle_are_408,
    bodies_of_http2_that_stop_are_408_but_calls_may_pause,
    readers_that_stop_are_given_up,
    limits_follow_their_settings,
    requests_over_the_limit_are_503,
    stalled_streams_stay_within_the_budget,
    what_is_cut_at_the_end_of_a_drain_says_so,
];

type Body = BoxBody<Bytes, std::convert::Infallible>;
type H2 = http2::SendRequest<Body>;

async fn client(mesh: &Mesh) -> H2 {
    let stream = Wire::connect(&mesh.world.pod, mesh.vip(80)).await.stream;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(16 << 20)
        .max_header_list_size(1 << 20)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn get(path: &str) -> Request<Body> {
    Request::get(format!("http://web{path}")).body(Empty::new().boxed()).unwrap()
}

async fn ask(client: &mut H2, request: Request<Body>) -> Response<Incoming> {
    timeout(Duration::from_secs(15), client.send_request(request)).await.expect("in time").expect("an answer")
}

fn reason(response: &Response<Incoming>) -> &str {
    let status = response.headers().get("proxy-status").map_or("", |status| status.to_str().unwrap());
    status.split("details=\"").nth(1).unwrap_or_default().trim_end_matches('"')
}

async fn routed(mesh: Mesh) -> (Mesh, [Server; 3]) {
    let (mut mesh, servers) = three_servers(mesh).await;
    attach(&mut mesh, "all", RouteKind::Http, None, vec![rule(prefix("/"), &[("v1", 1)])]);
    (mesh, servers)
}

fn set(mut mesh: Mesh, change: impl FnOnce(&mut WorkloadSettings)) -> Mesh {
    mesh.web = with_settings(mesh.web.clone(), change);
    mesh
}

async fn heads_too_large_are_431_over_http2(mesh: Mesh) {
    let (mesh, servers) = routed(mesh).await;
    let mut client = client(&mesh).await;
    let large = |size: usize, kind: &str| {
        let mut request = get("/large");
        request.headers_mut().insert("x-large", "a".repeat(size).parse().unwrap());
        request.headers_mut().insert("content-type", kind.parse().unwrap());
        request
    };
    // The server has limits of its own.
    assert_eq!(ask(&mut client, large(12_000, "text/plain")).await.status(), 200);
    // Larger than the limit, far larger, and larger than h2's own limit would have been.
    for size in [66_000, 100_000, 190_000] {
        let answer = ask(&mut client, large(size, "text/plain")).await;
        assert_eq!((answer.status().as_u16(), reason(&answer)), (431, "HeadersTooLarge"), "{size}");
        let answer = ask(&mut client, large(size, "application/grpc")).await;
        assert_eq!((answer.status().as_u16(), reason(&answer)), (200, "HeadersTooLarge"), "{size}");
        assert_eq!(answer.headers()["grpc-status"], "8");
    }
    let mut many = get("/many");
    for index in 0..200 {
        many.headers_mut()
            .insert(http::HeaderName::try_from(format!("x-{index}")).unwrap(), "1".parse().unwrap());
    }
    let answer = ask(&mut client, many).await;
    assert_eq!((answer.status().as_u16(), reason(&answer)), (431, "HeadersTooLarge"));
    mesh.log
        .shows(&["request failed", "HeadersTooLarge", "\"response_code\":431", "/large", "HTTP/2.0"])
        .await;
    assert_eq!(ask(&mut client, get("/after")).await.status(), 200, "the connection goes on");
    assert_eq!(servers[1].count(), 2);
    assert_eq!(mesh.pod("web").limits.memory(), 0);
}

async fn a_head_too_large_to_be_read_ends_its_connection_in_order(mesh: Mesh) {
    let (mesh, _servers) = routed(mesh).await;
    let mut client = client(&mesh).await;
    let mut waiting = client.clone();
    let waiting = tokio::spawn(async move { ask(&mut waiting, get("/wait/700")).await.status() });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut huge = get("/huge");
    for index in 0..10 {
        let name = http::HeaderName::try_from(format!("x-{index}")).unwrap();
        huge.headers_mut().insert(name, "~".repeat(60_000).parse().unwrap());
    }
    let answer = ask(&mut client, huge).await;
    assert_eq!((answer.status().as_u16(), reason(&answer)), (431, "HeadersTooLarge"));
    assert_eq!(waiting.await.unwrap(), 200, "what was under way is answered");
    let closed = async {
        while client.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), closed).await.expect("the connection takes no other request");
    mesh.log.shows(&["request failed", "HeadersTooLarge", "\"response_code\":431", "HTTP/2.0"]).await;
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

async fn heads_of_http2_that_trickle_are_408(mesh: Mesh) {
    let (mesh, servers) = routed(mesh).await;
    let mut wire = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    // GET, http, `/`, and then one field after the other.
    wire.say(&[HELLO, &frame(1, 1, 1, &[0x82, 0x86, 0x84])].concat()).await;
    let started = Instant::now();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if wire.stream.try_write(&frame(9, 0, 1, b"\x00\x01x\x01y")).is_err() {
            break;
        }
    }
    mesh.log.shows(&["request failed", "RequestHeaderTimeout", "\"response_code\":408"]).await;
    assert!(started.elapsed() >= Duration::from_millis(900));
    // One that says nothing after it has begun to speak HTTP/2 is given up, and said so.
    let mut silent = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    silent.say(&HELLO[..24]).await;
    timeout(Duration::from_secs(10), silent.rest()).await.expect("closed");
    mesh.log.shows(&["connection failed", "RequestHeaderTimeout"]).await;
    // Nonsense, too.
    let mut bad = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    bad.say(&[HELLO, &frame(1, 5, 1, &[0xff; 20])].concat()).await;
    timeout(Duration::from_secs(10), bad.rest()).await.expect("closed");
    mesh.log.shows(&["connection failed", "BadRequest", "HTTP/2 of the client"]).await;
    assert_eq!(servers[1].count(), 0);
}

type Pieces = mpsc::UnboundedSender<Result<Frame<Bytes>, std::convert::Infallible>>;

fn piecewise(path: &str, kind: &str) -> (Pieces, Request<Body>) {
    let (pieces, body) = mpsc::unbounded();
    let request = Request::post(format!("http://web{path}")).header("content-type", kind);
    let request = request.body(BodyExt::boxed(StreamBody::new(body))).unwrap();
    pieces.unbounded_send(Ok(Frame::data(Bytes::from_static(b"some")))).unwrap();
    (pieces, request)
}

async fn bodies_of_http2_that_stop_are_408_but_calls_may_pause(mesh: Mesh) {
    let (mesh, _servers) = routed(mesh).await;
    let mut client = client(&mesh).await;
    let (_pieces, request) = piecewise("/upload", "text/plain");
    let started = Instant::now();
    let answer = ask(&mut client, request).await;
    assert_eq!((answer.status().as_u16(), reason(&answer)), (408, "RequestBodyTimeout"));
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    mesh.log.shows(&["request failed", "RequestBodyTimeout", "/upload", "HTTP/2.0"]).await;
    // One that goes on is none of them, however long it takes; a call of gRPC may pause.
    let (pieces, request) = piecewise("/slow", "text/plain");
    let (call, paused) = piecewise("/grpc.Echo/Say", "application/grpc");
    let mut other = client.clone();
    let talk = async {
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            pieces.unbounded_send(Ok(Frame::data(Bytes::from_static(b"more")))).unwrap();
        }
        drop((pieces, call));
    };
    let (slow, paused, ()) = tokio::join!(ask(&mut client, request), ask(&mut other, paused), talk);
    assert_eq!((slow.status().as_u16(), paused.status().as_u16()), (200, 200));
    assert_eq!((reason(&slow), reason(&paused)), ("", ""));
}

async fn readers_that_stop_are_given_up(mesh: Mesh) {
    let (mesh, _servers) = routed(mesh).await;
    let mut client = client(&mesh).await;
    let answer = ask(&mut client, get("/bytes/4000000")).await;
    assert_eq!(answer.status(), 200);
    mesh.log.shows(&["request failed", "IdleTimeout", "/bytes/4000000", "took nothing"]).await;
    assert!(answer.into_body().collect().await.is_err(), "reset, not ended");
    let answer = ask(&mut client, get("/bytes/1000000")).await;
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes().len(),
        1_000_000,
        "others are not concerned"
    );
    let mut wire = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    wire.say(b"GET /bytes/30000000 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    mesh.log.shows(&["request failed", "IdleTimeout", "/bytes/30000000", "took nothing"]).await;
    assert!(!wire.rest().await.1, "cut, not ended");
}

async fn limits_follow_their_settings(mesh: Mesh) {
    let (mesh, _servers) = routed(mesh).await;
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Large: {}\r\n\r\n", "a".repeat(3000));
    let mut large = get("/");
    large.headers_mut().insert("x-large", "a".repeat(3000).parse().unwrap());
    let mut before = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    before.say(head.as_bytes()).await;
    assert_eq!(before.reply().await.status, 200);
    let changed = with_settings(mesh.web.clone(), |settings| {
        settings.limits.request_head_bytes = 2048;
        settings.timeouts.request_head = Duration::from_millis(300);
    });
    mesh.pod("web").workload.store(changed.into());
    before.say(head.as_bytes()).await;
    assert_eq!(before.reply().await.status, 200, "a connection keeps what it began with");
    let mut after = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    after.say(head.as_bytes()).await;
    let reply = after.reply().await;
    assert_eq!((reply.status, reply.reason()), (431, "HeadersTooLarge"));
    assert_eq!(ask(&mut client(&mesh).await, large).await.status(), 431);
    let started = Instant::now();
    let mut slow = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    slow.say(b"GET / HTTP/1.1\r\nHost").await;
    assert_eq!(slow.reply().await.status, 408);
    assert!(started.elapsed() >= Duration::from_millis(250));
}

async fn requests_over_the_limit_are_503(mesh: Mesh) {
    let mesh = set(mesh, |settings| settings.limits.requests = 2);
    let (mesh, _servers) = routed(mesh).await;
    let mut client = client(&mesh).await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut client = client.clone();
        waiting.push(tokio::spawn(async move { ask(&mut client, get("/wait/1500")).await.status() }));
    }
    let limits = mesh.pod("web").limits.clone();
    while limits.requests() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let answer = ask(&mut client, get("/")).await;
    assert_eq!((answer.status().as_u16(), reason(&answer)), (503, "WorkloadLimit"));
    let mut wire = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    let reply = wire.get("/").await;
    assert_eq!((reply.status, reply.reason()), (503, "WorkloadLimit"), "{reply:?}");
    mesh.log.shows(&["request failed", "WorkloadLimit", "2 requests under way"]).await;
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), 200);
    }
    while limits.requests() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(ask(&mut client, get("/")).await.status(), 200);
    assert_eq!(wire.get("/").await.status, 200);
}

async fn stalled_streams_stay_within_the_budget(mesh: Mesh) {
    let budget = 1 << 20;
    let mesh = set(mesh, |settings| {
        settings.limits.memory_bytes = budget;
        settings.timeouts.body_idle = Duration::from_secs(30);
    });
    let (mesh, servers) = routed(mesh).await;
    let limits = mesh.pod("web").limits.clone();
    // A client that lets everything come, and reads nothing.
    let mut stalled = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    let path = b"/bytes/4000000";
    let head = [&[0x82, 0x86, 0x04, path.len() as u8], &path[..], &[0x01, 3], b"web"].concat();
    let mut all = HELLO[..24].to_vec();
    all.extend(frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
    all.extend(frame(8, 0, 0, &[0x7f, 0xff, 0, 0]));
    let mut requests = (0..).map(|index| frame(1, 5, 2 * index + 1, &head));
    all.extend(requests.by_ref().take(40).flatten());
    stalled.say(&all).await;
    let filled = async {
        while limits.memory() < budget {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(15), filled).await.expect("what waits for the client is counted");
    let mut other = client(&mesh).await;
    // What waits falls below the budget as the kernel's buffers fill, too: then the one that reads nothing asks for more.
    let (mut refused, end) = (0, Instant::now() + Duration::from_secs(15));
    while refused < 10 {
        assert!(Instant::now() < end, "{refused} refused, {} bytes wait", limits.memory());
        stalled.say(&requests.next().unwrap()).await;
        let answer = ask(&mut other, get("/")).await;
        match (answer.status().as_u16(), reason(&answer)) {
            (503, "WorkloadLimit") => refused += 1,
            answered => assert_eq!(answered, (200, "")),
        }
        assert!(limits.memory() < 2 * budget, "{}", limits.memory());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    mesh.log.shows(&["request failed", "WorkloadLimit", "has reached its limit"]).await;
    assert!(servers[1].count() > 2, "{}", servers[1].count());
    drop(stalled);
    let given_back = async {
        while limits.memory() > 0 || limits.requests() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), given_back).await.expect("all of it is given back");
    assert_eq!(ask(&mut other, get("/")).await.status(), 200);
    // Over the budget one who reads gets everything all the same.
    let answer = ask(&mut other, get("/bytes/3000000")).await;
    let charge = limits.charge(2 * budget);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), 3_000_000);
    drop(charge);
}

async fn what_is_cut_at_the_end_of_a_drain_says_so(mesh: Mesh) {
    let (mesh, servers) = routed(mesh).await;
    let mut wire = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    wire.say(b"GET /wait/20001 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut begun = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    begun.say(b"GET /late-body/20002 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    begun.until("server: v1").await;
    let mut other = client(&mesh).await;
    let other = tokio::spawn(async move { other.send_request(get("/wait/20003")).await.map(drop) });
    while servers[1].count() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    mesh.workers.remove_pod(&mesh.web.uid).await;
    assert!(other.await.unwrap().is_err());
    for path in ["/wait/20001", "/late-body/20002", "/wait/20003"] {
        mesh.log.shows(&["request failed", "Drained", path]).await;
    }
    assert_eq!(mesh.log.count(&["ClientCancelled"]), 0);
}
