//! Filters that answer in a backend's place or send requests to others beside it: CORS and mirrors.

use std::time::{Duration, Instant};

use culvert_node_proxy::intercept::Netns;
use culvert_node_proxy::state::model::AppProtocol;
use culvert_routing::cors::{Allowed, Cors, Credentials, OriginPattern};
use culvert_routing::model::{
    Action, Filter, HeaderEdit, Mirror, PathEdit, Rewrite, RouteKind, Share, Target,
};
use futures::FutureExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::mesh::{Mesh, SOON};
use crate::web::{Wire, attach, backend, filtered, prefix, rule, three_servers};

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub const ALL: &[(&str, crate::Case)] =
            &[$((stringify!($case), |mesh| $case(mesh).boxed_local())),*];
    };
}

cases![
    a_mirror_gets_a_copy_as_it_stands_at_its_place,
    a_mirror_that_fails_or_does_not_answer_changes_nothing,
    a_mirror_that_takes_nothing_is_cut,
    a_mirror_keeps_its_share,
    mirrors_of_a_backend_are_for_its_requests,
    preflights_are_answered_and_responses_say_who_may_read_them,
];

pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for a line of the access log.
pub async fn logged(mesh: &Mesh, words: &[&str]) {
    until(&format!("no line with {words:?}"), || mesh.log.count(words) > 0).await;
}

fn mirror(name: &str, share: Share) -> Filter {
    let target = match name {
        "" => Target::Invalid("for a test".into()),
        name => Target::Service { namespace: "shop".into(), name: name.into(), port: 80 },
    };
    Filter::Mirror(Mirror { target, share })
}

fn set(name: &str, value: &str) -> Filter {
    let set = vec![(name.parse().unwrap(), value.parse().unwrap())];
    Filter::RequestHeaders(HeaderEdit { set, ..HeaderEdit::default() })
}

/// What stands behind a mirror goes to the backend only.
fn rewrite(path: &str) -> Filter {
    Filter::Rewrite(Rewrite {
        hostname: Some("inner.example".into()),
        path: Some(PathEdit::ReplaceFull(path.into())),
    })
}

/// The value of a counter with these labels, all series together.
fn counted(mesh: &Mesh, name: &str, labels: &[&str]) -> f64 {
    let text = mesh.telemetry.scrape().unwrap();
    let is_it = |line: &&str| line.starts_with(name) && labels.iter().all(|label| line.contains(label));
    text.lines().filter(is_it).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

async fn a_mirror_gets_a_copy_as_it_stands_at_its_place(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    let filters =
        vec![set("x-before", "1"), mirror("v2", Share::ALL), mirror("db", Share::ALL), rewrite("/inner")];
    attach(
        &mut mesh,
        "mirror",
        RouteKind::Http,
        None,
        vec![filtered(rule(prefix("/"), &[("v1", 1)]), filters)],
    );
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    let body = "x".repeat(200_000);
    for (framing, end) in [
        ("content-length: 200000\r\n\r\n", ""),
        ("transfer-encoding: chunked\r\n\r\n30d40\r\n", "\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n30d40\r\n", "\r\n0\r\nx-sum: 7\r\n\r\n"),
    ] {
        client
            .say(format!("POST /a?b=c HTTP/1.1\r\nhost: web\r\ncookie: d\r\n{framing}{body}").as_bytes())
            .await;
        client.say(end.as_bytes()).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.server()), (200, "v1"));
        assert!(reply.body.contains("POST /inner?b=c") && reply.body.contains("host: inner.example"));
    }
    for mirror in [&servers[2], &servers[0]] {
        until("all copies arrive", || mirror.received().len() == 3).await;
        for copy in mirror.received() {
            for line in [
                "POST /a?b=c HTTP/1.1",
                "\nhost: web\n",
                "\ncookie: d\n",
                "\nx-before: 1\n",
                "\nx-request-id: ",
            ] {
                assert!(copy.contains(line), "{line:?} in {}", &copy[..400]);
            }
            assert!(copy.ends_with(&body), "the whole body");
        }
    }
    until("six copies are complete", || counted(&mesh, "culvert_mirrors_total", &["complete"]) >= 6.0).await;
    for (reporter, requests) in [("reporter=\"mirror\"", 6.0), ("reporter=\"source\"", 3.0)] {
        let is_so = || (counted(&mesh, "istio_requests_total", &[reporter]) - requests).abs() < 0.1;
        until(&format!("{requests} requests with {reporter}"), is_so).await;
    }
    logged(
        &mesh,
        &["request complete", "\"mirror\":true", "\"backend\":\"shop/v2:80\"", "\"bytes_recv\":200000"],
    )
    .await;
    assert_eq!(mesh.log.count(&["request complete", "\"backend\":\"shop/v1:80\"", "\"mirror\":true"]), 0);
}

async fn a_mirror_that_fails_or_does_not_answer_changes_nothing(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    let mirrors = ["v2", "gone", ""].map(|name| mirror(name, Share::ALL));
    let filters = mirrors.into_iter().chain([rewrite("/fine")]).collect();
    attach(
        &mut mesh,
        "mirror",
        RouteKind::Http,
        None,
        vec![filtered(rule(prefix("/"), &[("v1", 1)]), filters)],
    );
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    // The mirror would keep each of the first waiting for longer than the client's patience.
    for path in ["/wait/20000", "/wait/20000", "/reset", "/status/503", "/bytes/3000000"] {
        let reply = client.get(path).await;
        assert_eq!((reply.status, reply.server()), (200, "v1"), "{path}");
    }
    until("the mirror was asked too", || servers[2].count() == 5).await;
    until("copies without a backend are counted", || {
        counted(&mesh, "culvert_mirrors_total", &["unresolved"]) >= 10.0
    })
    .await;
    logged(&mesh, &["request failed", "BackendReset", "\"mirror\":true", "/reset"]).await;
    // Nothing moves: given up after the idle deadline.
    logged(&mesh, &["request failed", "IdleTimeout", "\"mirror\":true", "/wait/20000"]).await;
    assert_eq!(mesh.log.count(&["request failed", "\"backend\":\"shop/v1:80\""]), 0);
}

/// Accepts connections and never reads.
fn stuck(netns: &Netns, at: std::net::SocketAddr) -> JoinSet<()> {
    let listener = netns.run(|| std::net::TcpListener::bind(at)).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    // Kernels may keep tens of megabytes for who does not read.
    socket2::SockRef::from(&listener).set_recv_buffer_size(64 << 10).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open = Vec::new();
        loop {
            open.push(listener.accept().await.unwrap());
        }
    });
    tasks
}

async fn a_mirror_that_takes_nothing_is_cut(mut mesh: Mesh) {
    backend(&mut mesh, "stuck", 8083, AppProtocol::Undeclared);
    let (mut mesh, servers) = three_servers(mesh).await;
    let _stuck = stuck(&mesh.world.peer, mesh.world.peer_at(8083));
    let filters = vec![mirror("stuck", Share::ALL)];
    attach(
        &mut mesh,
        "mirror",
        RouteKind::Http,
        None,
        vec![filtered(rule(prefix("/"), &[("v1", 1)]), filters)],
    );
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    let length = 40_000_000;
    client
        .say(format!("POST /bytes/3 HTTP/1.1\r\nhost: web\r\ncontent-length: {length}\r\n\r\n").as_bytes())
        .await;
    let piece = vec![b'x'; 1_000_000];
    for _ in 0..length / piece.len() {
        client.say(&piece).await;
    }
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "xxx"));
    assert!(servers[1].received()[0].len() > length, "the backend got all of it");
    logged(&mesh, &["request failed", "MirrorSlow", "\"mirror\":true", "\"backend\":\"shop/stuck:80\""])
        .await;
    assert!((counted(&mesh, "culvert_mirrors_total", &["\"cut\""]) - 1.0).abs() < 0.1);
    assert_eq!(mesh.log.count(&["request failed", "\"backend\":\"shop/v1:80\""]), 0);
}

async fn a_mirror_keeps_its_share(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    let filters = vec![mirror("v2", Share::new(25, 100).unwrap()), mirror("db", Share::new(0, 100).unwrap())];
    let rules = vec![filtered(rule(prefix("/"), &[("v1", 1)]), filters)];
    attach(&mut mesh, "mirror", RouteKind::Http, None, rules);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    for _ in 0..200 {
        assert_eq!(client.get("/").await.status, 200);
    }
    until("all copies are answered", || counted(&mesh, "culvert_mirrors_total", &["complete"]) >= 50.0).await;
    assert_eq!(servers.each_ref().map(|server| server.count()), [0, 200, 50]);
}

async fn mirrors_of_a_backend_are_for_its_requests(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    let mut split = rule(prefix("/"), &[("v1", 1), ("v2", 1)]);
    if let Action::Forward(backends) = &mut split.action {
        backends[1].filters = vec![set("x-backend", "v2"), mirror("db", Share::ALL)];
    }
    attach(&mut mesh, "mirror", RouteKind::Http, None, vec![split]);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await.status, 200);
    }
    until("all copies are answered", || counted(&mesh, "culvert_mirrors_total", &["complete"]) >= 10.0).await;
    assert_eq!(servers.each_ref().map(|server| server.count()), [10, 10, 10]);
    assert!(servers[0].received().iter().all(|copy| copy.contains("x-backend: v2")));
}

async fn preflights_are_answered_and_responses_say_who_may_read_them(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    let cors = Filter::Cors(Cors {
        origins: Allowed::These(vec![OriginPattern::parse("https://*.example.com").unwrap()]),
        methods: Allowed::These(vec![http::Method::PUT]),
        headers: Allowed::Any,
        exposed: Allowed::These(vec!["x-server".parse().unwrap()]),
        credentials: Credentials::Allowed,
        max_age: 600,
    });
    let rules = vec![
        filtered(rule(prefix("/"), &[("v1", 1)]), vec![cors.clone(), mirror("v2", Share::ALL)]),
        filtered(rule(prefix("/broken"), &[("", 1)]), vec![cors]),
    ];
    attach(&mut mesh, "cors", RouteKind::Http, None, rules);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    let preflight =
        "access-control-request-method: PUT\r\naccess-control-request-headers: x-a, authorization\r\n";
    for path in ["/a", "/broken"] {
        let head = format!("OPTIONS {path} HTTP/1.1\r\nhost: web\r\norigin: https://app.example.com\r\n");
        client.say(format!("{head}{preflight}\r\n").as_bytes()).await;
        let reply = client.reply().await;
        assert_eq!(reply.status, 204, "{reply:?}");
        for (name, value) in [
            ("access-control-allow-origin", "https://app.example.com"),
            ("access-control-allow-methods", "PUT"),
            ("access-control-allow-headers", "x-a, authorization"),
            ("access-control-allow-credentials", "true"),
            ("access-control-max-age", "600"),
            ("proxy-status", "culvert"),
        ] {
            assert_eq!(reply.header(name), value, "{name}");
        }
    }
    let head = "OPTIONS /a HTTP/1.1\r\nhost: web\r\norigin: https://example.org\r\n";
    client.say(format!("{head}{preflight}\r\n").as_bytes()).await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.reason()), (403, "OriginNotAllowed"));
    assert_eq!(reply.header("access-control-allow-origin"), "");
    logged(&mesh, &["request failed", "OriginNotAllowed", "\"response_code\":403"]).await;
    assert_eq!(
        servers.each_ref().map(|server| server.count()),
        [0, 0, 0],
        "no backend and no mirror saw one"
    );
    for (path, origin, expected) in [
        ("/a", "https://app.example.com", (200, "https://app.example.com")),
        ("/a", "https://example.org", (200, "")),
        ("/broken", "https://app.example.com", (500, "https://app.example.com")),
    ] {
        client.say(format!("PUT {path} HTTP/1.1\r\nhost: web\r\norigin: {origin}\r\n\r\n").as_bytes()).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), expected, "{path} {origin}");
        assert_eq!(reply.header("vary"), "origin");
    }
}
