//! Requests that are sent again: after which failures, how often, with which body, within which budget and time.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use culvert_node_proxy::intercept::Netns;
use culvert_node_proxy::state::model::{AppProtocol, RetryBudget};
use culvert_routing::model::{Filter, Mirror, Retry, RouteKind, Rule, Share, Target, Timeouts};
use futures::FutureExt;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::filters::{logged, until};
use crate::mesh::Mesh;
use crate::web::{Wire, attach, backend, declared, prefix, rule, three_servers};

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub const ALL: &[(&str, crate::Case)] =
            &[$((stringify!($case), |mesh| $case(mesh).boxed_local())),*];
    };
}

cases![
    statuses_and_lost_connections_are_sent_again,
    a_connection_that_is_lost_under_a_request_is_replaced_once,
    bodies_are_sent_again_up_to_64_kib,
    tries_have_their_own_time_and_the_request_one_for_all,
    a_budget_that_is_used_up_is_said_so,
    a_request_that_is_sent_again_is_copied_once,
];

fn retry(codes: &[u16], attempts: u32) -> Option<Retry> {
    let codes = codes.iter().map(|code| StatusCode::from_u16(*code).unwrap()).collect();
    Some(Retry { codes, attempts: NonZeroU32::new(attempts).unwrap(), backoff: Duration::from_millis(1) })
}

/// A server of HTTP/1 that fails as many requests as it is told, and answers the others with how much came.
struct Flaky {
    seen: Arc<AtomicUsize>,
    failures: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Status(u16),
    /// The connection is closed after the whole request.
    Close,
    /// Nothing is answered.
    Silence,
}

impl Flaky {
    fn start(netns: &Netns, at: std::net::SocketAddr, how: How) -> Self {
        let listener = netns.run(|| std::net::TcpListener::bind(at)).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let (seen, failures) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (count, left) = (seen.clone(), failures.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (count, left) = (count.clone(), left.clone());
                open.spawn(async move {
                    while let Some(body) = request(&mut stream).await {
                        count.fetch_add(1, Ordering::SeqCst);
                        let fails = left
                            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                            .is_ok();
                        let status = match how {
                            How::Close if fails => return,
                            How::Silence if fails => return std::future::pending().await,
                            How::Status(status) if fails => status,
                            _ => 200,
                        };
                        let text = body.to_string();
                        let length = text.len();
                        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n\r\n{text}");
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { seen, failures, _tasks: tasks }
    }

    /// How many requests fail from now on; forgets those it has seen.
    fn fail(&self, requests: usize) {
        self.failures.store(requests, Ordering::SeqCst);
        self.seen.store(0, Ordering::SeqCst);
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

/// Reads one request; the length of its body.
async fn request(stream: &mut tokio::net::TcpStream) -> Option<usize> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; 65536];
    loop {
        let head = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(head) = head {
            let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length = length.map_or(0, |length| length.trim().parse::<usize>().unwrap());
            if bytes.len() >= head + 4 + length {
                return Some(length);
            }
        }
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return None,
            Ok(length) => bytes.extend_from_slice(&piece[..length]),
        }
    }
}

async fn with_flaky(mut mesh: Mesh, how: How, rule_of: impl Fn(Rule) -> Rule) -> (Mesh, Flaky) {
    backend(&mut mesh, "flaky", 8083, AppProtocol::Undeclared);
    let mut mesh = mesh.with_both().await;
    let flaky = Flaky::start(&mesh.world.peer, mesh.world.peer_at(8083), how);
    attach(&mut mesh, "retry", RouteKind::Http, None, vec![rule_of(rule(prefix("/"), &[("flaky", 1)]))]);
    (mesh, flaky)
}

async fn statuses_and_lost_connections_are_sent_again(mut mesh: Mesh) {
    backend(&mut mesh, "closing", 8084, AppProtocol::Undeclared);
    let again = |rule: Rule| Rule { retry: retry(&[503, 429], 2), ..rule };
    let (mut mesh, flaky) = with_flaky(mesh, How::Status(503), again).await;
    let closing = Flaky::start(&mesh.world.peer, mesh.world.peer_at(8084), How::Close);
    let rules = [("/status", "flaky"), ("/lost", "closing")];
    let rules = rules.map(|(path, to)| again(rule(prefix(path), &[(to, 1)])));
    attach(&mut mesh, "retry", RouteKind::Http, None, rules.into());
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    for (failures, path, status, seen) in [
        (0, "/status", 200, 1),
        (1, "/status", 200, 2),
        (2, "/status", 200, 3),
        (3, "/status", 503, 3),
        (1, "/lost", 200, 2),
        (2, "/lost", 200, 3),
        (3, "/lost", 503, 3),
    ] {
        let server = if path == "/status" { &flaky } else { &closing };
        server.fail(failures);
        client
            .say(format!("POST {path} HTTP/1.1\r\nhost: web\r\ncontent-length: 5\r\n\r\nhello").as_bytes())
            .await;
        let reply = client.reply().await;
        assert_eq!((reply.status, server.seen()), (status, seen), "{failures} {path}: {reply:?}");
        assert!(reply.status != 200 || reply.body == "5", "the body of each attempt is whole: {reply:?}");
    }
    logged(&mesh, &["request failed", "\"attempts\":3", "\"response_code\":503", "/status"]).await;
    logged(&mesh, &["request failed", "RetriesExhausted", "sent 3 times", "/lost"]).await;
    // Without an attempt left, or of another status, the answer is the backend's own.
    let once = |rule: Rule| Rule { retry: retry(&[500], 2), ..rule };
    attach(&mut mesh, "retry", RouteKind::Http, None, vec![once(rule(prefix("/"), &[("flaky", 1)]))]);
    flaky.fail(1);
    assert_eq!((client.get("/other").await.status, flaky.seen()), (503, 1));
}

/// Opens so many connections to the backend, and leaves them to the pool.
async fn warm(mesh: &Mesh, connections: usize) {
    let mut clients = Vec::new();
    for _ in 0..connections {
        let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
        client.say(b"POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 2\r\n\r\nx").await;
        clients.push(client);
    }
    until("each has a connection", || mesh.pod("web").limits.requests() as usize == connections).await;
    for mut client in clients {
        client.say(b"x").await;
        assert_eq!(client.reply().await.status, 200);
    }
}

async fn a_connection_that_is_lost_under_a_request_is_replaced_once(mesh: Mesh) {
    let (mut mesh, flaky) = with_flaky(mesh, How::Close, |rule| rule).await;
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    for (retries, method, failures, status, seen) in [
        (None, "GET", 1, 200, 2),
        (None, "DELETE", 100, 502, 2),
        (None, "POST", 100, 502, 1),
        // The rule says how often, and each time counts.
        (retry(&[], 1), "GET", 1, 200, 2),
        (retry(&[], 1), "GET", 100, 503, 2),
        (retry(&[], 3), "DELETE", 100, 503, 4),
        (retry(&[], 1), "POST", 100, 503, 2),
    ] {
        let rules = vec![Rule { retry: retries.clone(), ..rule(prefix("/"), &[("flaky", 1)]) }];
        attach(&mut mesh, "retry", RouteKind::Http, None, rules);
        warm(&mesh, 6).await;
        flaky.fail(failures);
        client
            .say(format!("{method} /one HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\n\r\n").as_bytes())
            .await;
        let reply = client.reply().await;
        assert_eq!(
            (reply.status, flaky.seen()),
            (status, seen),
            "{method} {retries:?} {failures}: {reply:?}"
        );
        flaky.fail(0);
    }
}

async fn bodies_are_sent_again_up_to_64_kib(mesh: Mesh) {
    let again = |rule: Rule| Rule { retry: retry(&[503], 1), ..rule };
    let (mesh, flaky) = with_flaky(mesh, How::Status(503), again).await;
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    for (length, status, seen) in
        [(0, 200, 2), (1, 200, 2), (65_536, 200, 2), (65_537, 503, 1), (300_000, 503, 1)]
    {
        flaky.fail(1);
        let body = "x".repeat(length);
        client
            .say(format!("PUT / HTTP/1.1\r\nhost: web\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes())
            .await;
        let reply = client.reply().await;
        assert_eq!((reply.status, flaky.seen()), (status, seen), "{length}");
        assert_eq!(reply.body, length.to_string(), "all of it, in the first attempt and the last");
    }
    until("nothing is kept longer", || mesh.pod("web").limits.memory() == 0).await;
}

async fn tries_have_their_own_time_and_the_request_one_for_all(mesh: Mesh) {
    let timeouts = |request: u64, backend_request: u64| {
        let limit = |millis: u64| (millis > 0).then(|| Duration::from_millis(millis));
        Timeouts { request: limit(request), backend_request: limit(backend_request) }
    };
    let again = |rule: Rule| Rule { retry: retry(&[], 2), timeouts: timeouts(0, 2000), ..rule };
    let (mut mesh, flaky) = with_flaky(mesh, How::Silence, again).await;
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    flaky.fail(2);
    assert_eq!((client.get("/late").await.status, flaky.seen()), (200, 3));
    flaky.fail(3);
    let reply = client.get("/late").await;
    assert_eq!((reply.status, reply.reason(), flaky.seen()), (504, "BackendTimeout", 3));
    // The time of the whole request ends the attempt under way, whatever is left of them.
    let whole = |rule: Rule| Rule { retry: retry(&[], 50), timeouts: timeouts(3000, 1200), ..rule };
    attach(&mut mesh, "retry", RouteKind::Http, None, vec![whole(rule(prefix("/"), &[("flaky", 1)]))]);
    flaky.fail(100);
    let reply = client.get("/whole").await;
    assert_eq!(reply.status, 504);
    // On a machine that is late itself, no attempt may be left within the time.
    assert!(["RequestTimeout", "BackendTimeout"].contains(&reply.reason()), "{reply:?}");
    assert!((1..=3).contains(&flaky.seen()), "{}", flaky.seen());
}

async fn a_budget_that_is_used_up_is_said_so(mesh: Mesh) {
    let again = |rule: Rule| Rule { retry: retry(&[503], 1), ..rule };
    let (mut mesh, flaky) = with_flaky(mesh, How::Status(503), again).await;
    let hour = Duration::from_secs(3600);
    let mut service = declared(crate::mesh::service("flaky", mesh.world.vip), AppProtocol::Undeclared);
    service.vips.clear();
    service.retry_budget = RetryBudget { percent: 0, interval: hour, min_retries: 3, min_interval: hour };
    mesh.builder.upsert_service(service);
    mesh.publish();
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    for (number, status, seen) in [(0, 200, 2), (1, 200, 2), (2, 200, 2), (3, 503, 1), (4, 503, 1)] {
        flaky.fail(1);
        let reply = client.get("/").await;
        assert_eq!((reply.status, flaky.seen()), (status, seen), "{number}");
        assert_eq!(reply.reason(), if status == 503 { "RetryBudget" } else { "" });
    }
    logged(&mesh, &["request failed", "RetryBudget", "status 503"]).await;
    let text = mesh.telemetry.scrape().unwrap();
    for line in
        ["culvert_retries_total{result=\"sent\"} 3", "culvert_retries_total{result=\"over_budget\"} 2"]
    {
        assert!(text.contains(line), "{line}");
    }
}

async fn a_request_that_is_sent_again_is_copied_once(mesh: Mesh) {
    let mut mesh = mesh;
    backend(&mut mesh, "flaky", 8083, AppProtocol::Undeclared);
    let (mut mesh, servers) = three_servers(mesh).await;
    let flaky = Flaky::start(&mesh.world.peer, mesh.world.peer_at(8083), How::Status(503));
    let target = Target::Service { namespace: "shop".into(), name: "v2".into(), port: 80 };
    let filters = vec![Filter::Mirror(Mirror { target, share: Share::ALL })];
    let again = Rule { retry: retry(&[503], 2), filters, ..rule(prefix("/"), &[("flaky", 1)]) };
    attach(&mut mesh, "retry", RouteKind::Http, None, vec![again]);
    flaky.fail(2);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    client.say(b"POST /once HTTP/1.1\r\nhost: web\r\ncontent-length: 5\r\n\r\nhello").await;
    assert_eq!((client.reply().await.status, flaky.seen()), (200, 3));
    logged(&mesh, &["request complete", "\"mirror\":true", "/once"]).await;
    assert_eq!(servers[2].count(), 1);
    assert!(servers[2].received()[0].ends_with("body: hello"));
}
