//! Requests and the endpoints they go to: in time, balanced, sent again, without one.

use std::time::{Duration, Instant};

use culvert_node_proxy::state::model::AppProtocol;
use culvert_routing::model::{RouteKind, Rule, Timeouts};
use futures::FutureExt;
use tokio::io::AsyncWriteExt;

use crate::mesh::{Mesh, member, service};
use crate::web::{Server, Wire, attach, backend, declared, prefix, rule, three_servers};

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub const ALL: &[(&str, crate::Case)] =
            &[$((stringify!($case), |mesh| $case(mesh).boxed_local())),*];
    };
}

cases![
    without_routes_requests_are_balanced_one_by_one,
    time_limits_hold_before_and_within_a_body,
    slow_clients_are_bounded,
    connections_are_kept_and_dead_ones_replaced,
    endpoints_that_go_lose_nothing,
    what_cannot_be_reached_is_503,
];

/// A Service `db` that is declared so, with another endpoint on port 8083 of `web`'s own pod.
pub async fn two_endpoints(mut mesh: Mesh, protocol: AppProtocol) -> (Mesh, [Server; 2]) {
    mesh.builder.upsert_service(declared(service("db", mesh.world.vip), protocol));
    let web = member(mesh.web.clone(), "db");
    mesh.web = web;
    let mesh = mesh.with_both().await;
    let servers = [
        Server::start(&mesh.world.peer, mesh.world.peer_at(8080), "one"),
        Server::start(&mesh.world.pod, mesh.world.pod_at(8080), "two"),
    ];
    (mesh, servers)
}

async fn without_routes_requests_are_balanced_one_by_one(mesh: Mesh) {
    let (mesh, servers) = two_endpoints(mesh, AppProtocol::Http1).await;
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    for _ in 0..100 {
        assert_eq!(client.get("/").await.status, 200);
    }
    let counts = servers.each_ref().map(Server::count);
    assert!(counts[0] >= 3 && counts[1] >= 3, "{counts:?}");
    // Nobody can be told apart from the other by more than the connections they need.
    for server in &servers {
        assert_eq!(server.connections.load(std::sync::atomic::Ordering::Relaxed), 1);
    }
}

fn limited(path: &str, request: u64, backend: u64) -> Rule {
    let limit = |ms| (ms > 0).then(|| Duration::from_millis(ms));
    let timeouts = Timeouts { request: limit(request), backend_request: limit(backend) };
    Rule { timeouts, ..rule(prefix(path), &[("v1", 1)]) }
}

async fn time_limits_hold_before_and_within_a_body(mesh: Mesh) {
    let (mut mesh, _servers) = three_servers(mesh).await;
    let rules = vec![
        limited("/wait/1000", 200, 0),
        limited("/wait/2000", 500, 100),
        limited("/late-body", 300, 0),
        limited("/wait/1", 5000, 3000),
    ];
    attach(&mut mesh, "limits", RouteKind::Http, None, rules);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    for (path, reason, after) in
        [("/wait/1000", "RequestTimeout", 200), ("/wait/2000", "BackendTimeout", 100)]
    {
        let started = Instant::now();
        let reply = client.get(path).await;
        assert_eq!((reply.status, reply.reason()), (504, reason), "{path}");
        let took = started.elapsed().as_millis();
        assert!((after - 5..after + 300).contains(&took), "{path} {took}");
    }
    assert_eq!(client.get("/wait/1").await.status, 200);
    let started = Instant::now();
    client.say(b"GET /late-body/2000 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.until("server: v1").await;
    let (rest, in_order) = client.rest().await;
    assert!(!in_order && !rest.contains("late\r\n0"), "cut, not ended: {rest}");
    assert!(started.elapsed() < Duration::from_millis(1000), "{:?}", started.elapsed());
    mesh.log.shows(&["RequestTimeout", "/late-body/2000", "\"response_code\":200"]).await;
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    client.say(b"GET /late-body/100 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(client.reply().await.body.ends_with("\nlate"));
}

async fn slow_clients_are_bounded(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    attach(&mut mesh, "all", RouteKind::Http, None, vec![rule(prefix("/"), &[("v1", 1)])]);
    let started = Instant::now();
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    client.say(b"GET / HTTP/1.1\r\nHost: a\r\n").await;
    let reply = loop {
        tokio::select! {
            reply = client.reply() => break reply,
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        let _ = client.stream.write_all(b"X: y\r\n").await;
        assert!(started.elapsed() < Duration::from_secs(5));
    };
    assert_eq!((reply.status, reply.reason()), (408, "RequestHeaderTimeout"));
    assert_eq!(servers[1].count(), 0);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    let started = Instant::now();
    client.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nsome").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.reason()), (408, "RequestBodyTimeout"), "{:?}", started.elapsed());
    mesh.log.shows(&["RequestBodyTimeout"]).await;
    // Many at once are no more than the workload's limit, and the worker answers others.
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
        client.say(b"GET / HTTP/1.1\r\nHost").await;
        slow.push(client);
    }
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    assert_eq!(client.get("/").await.status, 200);
    for mut client in slow {
        assert_eq!(client.reply().await.status, 408);
    }
}

async fn connections_are_kept_and_dead_ones_replaced(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    attach(&mut mesh, "all", RouteKind::Http, None, vec![rule(prefix("/"), &[("v1", 1)])]);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert_eq!(servers[1].connections.load(std::sync::atomic::Ordering::Relaxed), 1);
    // Each of these is the second or a later one on its connection, which dies without an answer.
    for _ in 0..5 {
        let reply = client.get("/once").await;
        assert_eq!(reply.status, 200, "sent again on a new connection: {reply:?}");
    }
    // What may have been done is not done twice.
    let before = servers[1].count();
    client.say(b"POST /reset HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.reason()), (502, "BackendReset"));
    assert_eq!(servers[1].count(), before + 1);
    mesh.log.shows(&["BackendReset", "\"attempts\":1"]).await;
}

async fn endpoints_that_go_lose_nothing(mesh: Mesh) {
    let (mut mesh, servers) = two_endpoints(mesh, AppProtocol::Http1).await;
    let both = mesh.db.clone();
    let mut gone = both.clone();
    gone.memberships.clear();
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    // Under way at the endpoint that goes.
    let mut slow = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    slow.say(b"GET /wait/1500 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    for round in 0..40 {
        let workload = if round % 2 == 0 { gone.clone() } else { both.clone() };
        mesh.builder.upsert_workload(workload);
        mesh.publish();
        for _ in 0..10 {
            assert_eq!(client.get("/").await.status, 200, "round {round}");
        }
    }
    assert_eq!(slow.reply().await.status, 200, "what is under way ends where it began");
    assert!(servers.iter().all(|server| server.count() > 0));
}

async fn what_cannot_be_reached_is_503(mesh: Mesh) {
    let (mut mesh, _servers) = three_servers(mesh).await;
    backend(&mut mesh, "dead", 8099, AppProtocol::Undeclared);
    let empty = service("empty", mesh.world.vip);
    mesh.builder.upsert_service(culvert_node_proxy::state::model::Service { vips: Vec::new(), ..empty });
    let db = mesh.db.clone();
    mesh.builder.upsert_workload(db);
    let rules = vec![rule(prefix("/dead"), &[("dead", 1)]), rule(prefix("/empty"), &[("empty", 1)])];
    attach(&mut mesh, "all", RouteKind::Http, None, rules);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    for (path, reason) in [("/empty", "NoEndpoint"), ("/dead", "Tunnel")] {
        let reply = client.get(path).await;
        assert_eq!((reply.status, reply.reason()), (503, reason), "{path}");
        mesh.log.shows(&["request failed", reason, path]).await;
    }
}
