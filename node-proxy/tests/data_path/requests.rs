//! What must hold for requests.

use std::time::{Duration, Instant};

use bytes::Bytes;
use culvert_node_proxy::state::model::{AppProtocol, TunnelProtocol, Workload};
use culvert_node_proxy::state::routes::{Parent, Unusable};
use culvert_routing::model::{
    Filter, HeaderEdit, HeaderMatch, Match, PathEdit, PathMatch, Redirect, RedirectStatus, Rewrite,
    RouteKind, Rule, Timeouts, ValueMatch,
};
use futures::FutureExt;
use http::{Method, Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;

use crate::mesh::{Application, Client, HTTP, Mesh, expect_reset, member, service, with_settings};
use crate::smuggling::REFUSED;
use crate::web::{
    Server, Wire, attach, backend, declared, exact, filtered, prefix, rule, script, three_servers,
};

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub const ALL: &[(&str, crate::Case)] =
            &[$((stringify!($case), |mesh| $case(mesh).boxed_local())),*];
    };
}

cases![
    requests_of_one_connection_are_routed_one_by_one,
    shares_are_kept_to_the_request,
    consumer_routes_replace_producer_routes_for_their_namespace,
    a_route_that_cannot_be_used_answers_500,
    filters_change_what_the_backend_and_the_client_see,
    without_routes_requests_are_balanced_one_by_one,
    what_is_declared_and_what_is_said_decide_together,
    ambiguous_requests_are_refused_before_a_backend_sees_a_byte,
    bodies_and_their_ends_pass_in_both_directions,
    what_belongs_to_a_connection_stays_on_it,
    pipelined_requests_are_answered_in_order,
    a_switched_protocol_is_carried,
    an_expectation_is_asked_of_the_server,
    what_servers_say_is_passed_on_or_is_502,
    grpc_and_http2_are_routed_and_their_trailers_pass,
    time_limits_hold_before_and_within_a_body,
    slow_clients_are_bounded,
    connections_are_kept_and_dead_ones_replaced,
    endpoints_that_go_lose_nothing,
    what_cannot_be_reached_is_503,
];

async fn requests_of_one_connection_are_routed_one_by_one(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    let by_header = Rule {
        matches: vec![Match {
            headers: vec![HeaderMatch {
                name: "x-version".parse().unwrap(),
                value: ValueMatch::Exact("two".into()),
            }],
            ..rule(prefix("/"), &[]).matches[0].clone()
        }],
        ..rule(prefix("/"), &[("v2", 1)])
    };
    let rules = vec![
        by_header,
        rule(exact("/one"), &[("v1", 1)]),
        rule(prefix("/none"), &[]),
        rule(prefix("/zero"), &[("v1", 0)]),
        rule(prefix("/invalid"), &[("", 1)]),
    ];
    attach(&mut mesh, "by-path", RouteKind::Http, None, rules);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    let reply = client.get("/one").await;
    assert_eq!((reply.status, reply.server()), (200, "v1"), "{reply:?}");
    assert!(reply.body.contains("GET /one HTTP/1.1"), "{}", reply.body);
    for (request, status, reason) in [
        ("/two", 404, "RouteNotFound"),
        ("/none", 500, "NoBackend"),
        ("/zero", 500, "NoBackend"),
        ("/invalid", 500, "InvalidBackend"),
    ] {
        let reply = client.get(request).await;
        assert_eq!((reply.status, reply.reason()), (status, reason), "{request} {reply:?}");
        mesh.log.shows(&["request failed", reason, request]).await;
    }
    client.say(b"GET /any HTTP/1.1\r\nHost: elsewhere\r\nX-Version: two\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.server()), (200, "v2"));
    assert!(reply.body.contains("host: elsewhere"), "{}", reply.body);
    assert_eq!(servers.each_ref().map(Server::count), [0, 1, 1]);
    mesh.log.shows(&["request complete", "\"route\":\"HTTPRoute/shop/by-path\"", "mutual_tls"]).await;
    // The pod's own address is not routed.
    let mut direct = Wire::connect(&mesh.world.pod, mesh.world.peer_at(8080)).await;
    assert_eq!(direct.get("/two").await.server(), "db");
}

async fn shares_are_kept_to_the_request(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    for (weights, least, most) in [([99, 1], 4, 6), ([70, 30], 135, 165), ([1, 0], 0, 0)] {
        let backends = [("v1", weights[0]), ("v2", weights[1])];
        attach(&mut mesh, "canary", RouteKind::Http, None, vec![rule(prefix("/"), &backends)]);
        let before = servers[2].count();
        let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
        for number in 0..500 {
            if number % 50 == 0 {
                // Another route is edited meanwhile.
                let rules = vec![rule(exact(&format!("/other-{number}")), &[("v1", 1)])];
                attach(&mut mesh, "other", RouteKind::Http, None, rules);
            }
            assert_eq!(client.get("/").await.status, 200);
        }
        let share = servers[2].count() - before;
        assert!((least..=most).contains(&share), "{weights:?}: {share}");
    }
}

async fn consumer_routes_replace_producer_routes_for_their_namespace(mesh: Mesh) {
    let (mut mesh, _servers) = three_servers(mesh).await;
    attach(&mut mesh, "producer", RouteKind::Http, None, vec![rule(prefix("/"), &[("v1", 1)])]);
    attach(&mut mesh, "elsewhere", RouteKind::Http, Some("audit"), vec![rule(prefix("/"), &[])]);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    assert_eq!(client.get("/").await.server(), "v1", "another namespace's consumer route changes nothing");
    // This client's namespace is the Service's own; a second connection of another namespace would need another pod.
    attach(&mut mesh, "mine", RouteKind::Http, Some("shop"), vec![rule(exact("/mine"), &[("v2", 1)])]);
    assert_eq!(client.get("/mine").await.server(), "v2");
    let reply = client.get("/").await;
    assert_eq!((reply.status, reply.reason()), (404, "RouteNotFound"), "the groups do not merge");
}

async fn a_route_that_cannot_be_used_answers_500(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    attach(&mut mesh, "good", RouteKind::Http, None, vec![rule(prefix("/"), &[("v1", 1)])]);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    assert_eq!(client.get("/").await.status, 200);
    let parent = Parent::Service {
        service: culvert_node_proxy::state::model::ServiceKey("shop/db".into()),
        ports: vec![80],
        consumers: None,
    };
    mesh.builder.refuse_route(&"bad".into(), Unusable { parent, why: "unreadable".into() });
    mesh.publish();
    let reply = client.get("/").await;
    assert_eq!((reply.status, reply.reason()), (500, "RouteUnsupported"));
    mesh.builder.remove_route("bad");
    mesh.publish();
    assert_eq!(client.get("/").await.status, 200);
    let refuses =
        Rule { action: culvert_routing::model::Action::Refuse("retries".into()), ..rule(prefix("/"), &[]) };
    attach(&mut mesh, "good", RouteKind::Http, None, vec![refuses]);
    let reply = client.get("/").await;
    assert_eq!((reply.status, reply.reason()), (500, "RouteUnsupported"));
    assert_eq!(servers[1].count(), 2);
}

fn edit(set: &[(&str, &str)], remove: &[&str]) -> HeaderEdit {
    HeaderEdit {
        set: set.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect(),
        add: Vec::new(),
        remove: remove.iter().map(|name| name.parse().unwrap()).collect(),
    }
}

async fn filters_change_what_the_backend_and_the_client_see(mesh: Mesh) {
    let (mut mesh, _servers) = three_servers(mesh).await;
    let rewrite = Rewrite {
        hostname: Some("other.example".into()),
        path: Some(PathEdit::ReplacePrefix("/new".into())),
    };
    let redirect = Redirect {
        scheme: None,
        hostname: Some("moved.example".into()),
        path: None,
        port: None,
        status: RedirectStatus::PermanentRedirect,
    };
    let mut at_backend = rule(prefix("/backend"), &[("v1", 1)]);
    if let culvert_routing::model::Action::Forward(backends) = &mut at_backend.action {
        backends[0].filters = vec![
            Filter::RequestHeaders(edit(&[("x-backend", "v1")], &[])),
            Filter::ResponseHeaders(edit(&[("x-answered", "v1")], &[])),
        ];
    }
    let rules = vec![
        filtered(
            rule(prefix("/old"), &[("v1", 1)]),
            vec![
                Filter::RequestHeaders(edit(&[("x-set", "yes")], &["x-remove"])),
                Filter::Rewrite(rewrite),
                Filter::ResponseHeaders(edit(&[("x-seen", "by culvert")], &["x-server"])),
            ],
        ),
        filtered(rule(prefix("/gone"), &[]), vec![Filter::Redirect(redirect)]),
        at_backend,
    ];
    attach(&mut mesh, "filters", RouteKind::Http, None, rules);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    client.say(b"GET /old/a//b/../c%7e?q=1 HTTP/1.1\r\nHost: web:80\r\nX-Remove: 1\r\n\r\n").await;
    let reply = client.reply().await;
    for line in ["GET /new/a/c~?q=1 HTTP/1.1", "\nhost: other.example\n", "\nx-set: yes\n"] {
        assert!(reply.body.contains(line), "{line} in {}", reply.body);
    }
    assert!(!reply.body.contains("x-remove"), "{}", reply.body);
    assert_eq!((reply.header("x-seen"), reply.header("x-server")), ("by culvert", ""));
    let reply = client.get("/gone/a?b").await;
    assert_eq!((reply.status, reply.header("location")), (308, "http://moved.example/gone/a?b"));
    assert_eq!(reply.reason(), "");
    let reply = client.get("/backend").await;
    assert!(reply.body.contains("x-backend: v1"), "{}", reply.body);
    assert_eq!(reply.header("x-answered"), "v1");
    // Matched as normalized: no way around a rule by spelling its path otherwise.
    for path in ["//old", "/x/../old/", "/%6fld", "/./old"] {
        assert_eq!(client.get(path).await.header("x-seen"), "by culvert", "{path}");
    }
    assert_eq!(client.get("/x%2f..%2fold").await.status, 404);
    let reply = client.get("/a/../../b").await;
    assert_eq!((reply.status, reply.reason()), (400, "BadRequest"));
}

/// A Service `db` that is declared so, with another endpoint on port 8083 of `web`'s own pod.
async fn two_endpoints(mut mesh: Mesh, protocol: AppProtocol) -> (Mesh, [Server; 2]) {
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

/// One row of the table after the other: what is declared, what is said, what comes of it.
async fn what_is_declared_and_what_is_said_decide_together(mut mesh: Mesh) {
    mesh.builder.upsert_service(declared(service("db", mesh.world.vip), AppProtocol::Undeclared));
    let mut mesh = mesh.with_both().await;
    const TLS: &[u8] = b"\x16\x03\x01\x00\x05hello\n";
    const BINARY: &[u8] = b"\x00\x01\x02\x03\n";
    const HTTP1: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    // A server that speaks first, and echoes whatever it is told.
    let application = Application::start(&mesh.world.peer, mesh.world.peer_at(8080));
    for protocol in [AppProtocol::Undeclared, AppProtocol::Http1, AppProtocol::Tcp, AppProtocol::Tls] {
        mesh.builder.upsert_service(declared(service("db", mesh.world.vip), protocol));
        mesh.publish();
        let mut silent = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
        assert_eq!(silent.line().await.unwrap(), format!("client {}", mesh.world.pod_ip), "{protocol:?}");
        silent.echo().await;
        for bytes in [TLS, BINARY] {
            let mut client = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
            client.say(bytes).await;
            assert_eq!(client.line().await.unwrap(), format!("client {}", mesh.world.pod_ip), "{protocol:?}");
        }
        if protocol != AppProtocol::Http1 {
            let mut client = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
            client.say(HTTP1).await;
            assert_eq!(client.line().await.unwrap(), format!("client {}", mesh.world.pod_ip), "{protocol:?}");
            assert_eq!(client.line().await.unwrap(), "GET / HTTP/1.1", "bytes, as they are");
        }
    }
    let opaque = with_settings(mesh.web.clone(), |settings| {
        let range = culvert_node_proxy::state::model::PortRange { first: 80, last: 80 };
        settings.opaque_ports = vec![range];
    });
    mesh.pod("web").workload.store(opaque.into());
    mesh.builder.upsert_service(declared(service("db", mesh.world.vip), AppProtocol::Http1));
    mesh.publish();
    let mut client = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
    client.say(HTTP1).await;
    assert_eq!(client.line().await.unwrap(), format!("client {}", mesh.world.pod_ip));
    let accepted = application.count();
    drop(application);

    // With a route nothing but HTTP gets in, not even past `opaque-ports`.
    attach(&mut mesh, "all", RouteKind::Http, None, vec![rule(prefix("/"), &[("db", 1)])]);
    for bytes in [TLS, BINARY] {
        let mut client = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
        client.say(bytes).await;
        client.is_reset().await;
        mesh.log.shows(&["ProtocolMismatch"]).await;
    }
    let started = Instant::now();
    expect_reset(&mesh.world.pod, mesh.vip(80)).await;
    assert!(started.elapsed() >= HTTP.head - Duration::from_millis(50), "{:?}", started.elapsed());
    mesh.log.shows(&["RequestHeaderTimeout"]).await;
    let server = Server::start(&mesh.world.peer, mesh.world.peer_at(8080), "db");
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    assert_eq!(client.get("/").await.server(), "db");
    assert_eq!((server.count(), accepted > 0), (1, true));
    // A request that comes in pieces is one all the same.
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    for piece in [&b"GE"[..], b"T / HT", b"TP/1.1\r\nHo", b"st: a\r\n\r", b"\n"] {
        client.say(piece).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(client.reply().await.server(), "db");
}

async fn ambiguous_requests_are_refused_before_a_backend_sees_a_byte(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    attach(&mut mesh, "all", RouteKind::Http, None, vec![rule(prefix("/"), &[("v1", 1)])]);
    let mut wanted = 0;
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let bodies = [
        "x\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "-1\r\n",
        "1000000000000000\r\n",
        "0\r\nContent-Length : 5\r\n\r\n",
    ];
    let heads =
        REFUSED.iter().map(|(name, head, _)| ((*name).to_owned(), (*head).to_owned(), "400", "BadRequest"));
    let bad_bodies =
        bodies.map(|body| (format!("chunk {body:?}"), format!("{chunked}{body}"), "400", "BadRequest"));
    let more = [
        (
            "Host and another target",
            "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(),
            "400",
            "BadRequest",
        ),
        ("a Host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_owned(), "400", "BadRequest"),
        ("a Host with a user", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n".to_owned(), "400", "BadRequest"),
        ("an empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n".to_owned(), "400", "BadRequest"),
        ("a path above the root", "GET /../a HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "400", "BadRequest"),
        ("a NUL in words", "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "400", "BadRequest"),
        ("CONNECT", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n".to_owned(), "405", "ConnectRefused"),
        (
            "a long head",
            format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(70 << 10)),
            "431",
            "HeadersTooLarge",
        ),
        (
            "many fields",
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(101)),
            "431",
            "HeadersTooLarge",
        ),
    ];
    let more = more.map(|(name, bytes, status, reason)| (name.to_owned(), bytes, status, reason));
    for (name, bytes, status, reason) in heads.chain(bad_bodies).chain(more) {
        // After a good request on the same connection, which is answered; first on a connection, most are not even HTTP.
        let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
        client.say(format!("GET /good HTTP/1.1\r\nHost: a\r\n\r\n{bytes}{smuggled}").as_bytes()).await;
        assert_eq!(client.reply().await.status, 200, "{name}");
        wanted += 1;
        let reply = client.reply().await;
        assert_eq!((reply.status.to_string().as_str(), reply.reason()), (status, reason), "{name}");
        if reason != "ConnectRefused" && !reply.body.is_empty() && reply.header("connection") == "close" {
            let (rest, _) = client.rest().await;
            assert_eq!(rest, "", "{name}: nothing follows a refusal");
        }
    }
    let seen = servers[1].seen();
    let strange: Vec<_> = seen.iter().filter(|request| *request != "GET /good").collect();
    // Those whose end was clear leave the connection usable; what follows them is a request of its own.
    assert!(strange.iter().all(|request| *request == "GET /smuggled"), "{strange:?}");
    assert!(strange.len() <= 7, "{strange:?}");
    assert_eq!(seen.len() - strange.len(), wanted);
    mesh.log.shows(&["request failed", "BadRequest"]).await;
}

async fn bodies_and_their_ends_pass_in_both_directions(mesh: Mesh) {
    let (mut mesh, _servers) = three_servers(mesh).await;
    attach(&mut mesh, "all", RouteKind::Http, None, vec![rule(prefix("/"), &[("v1", 1)])]);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    client.say(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12345").await;
    assert!(client.reply().await.body.ends_with("body: 12345"));
    // Also of a GET, and in pieces.
    client.say(b"GET /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.say(b"3;x=y\r\ndef\r\n0\r\n\r\n").await;
    let reply = client.reply().await;
    assert!(
        reply.body.ends_with("body: abcdef") && reply.body.contains("transfer-encoding: chunked"),
        "{reply:?}"
    );
    // Trailers of requests that announce them, and of responses for clients that take them.
    client
        .say(b"POST /trailers HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: x-end\r\nTransfer-Encoding: chunked\r\n\r\n\
               1\r\na\r\n0\r\nX-End: 7\r\nContent-Length: 9\r\n\r\n")
        .await;
    let reply = client.reply().await;
    assert!(reply.body.contains("x-end: 7") && reply.body.contains("trailer x-sum: 42"), "{reply:?}");
    assert!(!reply.body.contains("content-length: 9"), "{reply:?}");
    client.say(b"HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    let mut next = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    next.say(b"HEAD /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let (rest, in_order) = next.rest().await;
    assert!(in_order && rest.ends_with("\r\n\r\n") && rest.contains("content-length: "), "{rest}");
    let mut large = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    let body = "z".repeat(3 << 20);
    large
        .say(format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes())
        .await;
    let (mut read, mut write) = large.stream.split();
    let mut received = Vec::new();
    let (_, _) = tokio::join!(async { write.write_all(body.as_bytes()).await.unwrap() }, async {
        use tokio::io::AsyncReadExt;
        while received.len() < body.len() {
            let mut bytes = vec![0; 1 << 16];
            let length = read.read(&mut bytes).await.unwrap();
            received.extend_from_slice(&bytes[..length]);
        }
    });
    // HTTP/1.0, without Host and to the end of the connection.
    let mut old = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    old.say(b"GET /old HTTP/1.0\r\n\r\n").await;
    let (rest, in_order) = old.rest().await;
    assert!(in_order && rest.starts_with("HTTP/1.0 200") && rest.contains("GET /old HTTP/1.1"), "{rest}");
    assert!(rest.contains(&format!("host: {}", mesh.vip(80))), "{rest}");
}

async fn what_belongs_to_a_connection_stays_on_it(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    attach(&mut mesh, "all", RouteKind::Http, None, vec![rule(prefix("/"), &[("v1", 1)])]);
    for _ in 0..5 {
        let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
        client
            .say(b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\n\
                   TE: trailers, gzip\r\nProxy-Connection: x\r\nX-Request-Id: mine\r\ntraceparent: 00-1-2-3\r\n\r\n")
            .await;
        let reply = client.reply().await;
        let lines: Vec<&str> = reply.body.lines().skip(2).collect();
        assert_eq!(
            lines,
            ["host: a", "te: trailers", "traceparent: 00-1-2-3", "x-request-id: mine", "body: "]
        );
        assert_eq!((reply.header("x-hop"), reply.header("connection")), ("", "close"));
        assert!(client.rest().await.1, "closed in order");
    }
    mesh.log.shows(&["\"request_id\":\"mine\"", "\"traceparent\":\"00-1-2-3\""]).await;
    let connections = servers[1].connections.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(connections, 1, "the client's `close` is not the server's");
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    let body = client.get("/a").await.body;
    assert!(body.contains("x-request-id: ") && body.contains("traceparent: 00-"), "{body}");
}

async fn pipelined_requests_are_answered_in_order(mesh: Mesh) {
    let (mut mesh, _servers) = three_servers(mesh).await;
    let rules = vec![rule(prefix("/wait"), &[("v1", 1)]), rule(prefix("/"), &[("v2", 1)])];
    attach(&mut mesh, "all", RouteKind::Http, None, rules);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let post = "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    client
        .say([get("/wait/200"), get("/a"), post.to_owned(), get("/wait/1"), get("/c")].concat().as_bytes())
        .await;
    for expected in ["GET /wait/200", "GET /a", "POST /b", "GET /wait/1", "GET /c"] {
        let reply = client.reply().await;
        assert!(reply.body.contains(expected), "{expected}: {reply:?}");
    }
}

async fn a_switched_protocol_is_carried(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    attach(&mut mesh, "all", RouteKind::Http, None, vec![rule(prefix("/"), &[("v1", 1)])]);
    for tunnel in [TunnelProtocol::Hbone, TunnelProtocol::Plaintext] {
        mesh.builder.upsert_workload(Workload { tunnel, ..mesh.db.clone() });
        mesh.publish();
        let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
        client
            .say(b"GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nearly ")
            .await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.header("upgrade")), (101, "websocket"), "{tunnel:?}");
        client.until("hello from the other protocol\nearly ").await;
        client.say(b"later").await;
        client.until("early later").await;
        client.stream.shutdown().await.unwrap();
        assert!(client.rest().await.1, "both directions end in order");
    }
    mesh.log.shows(&["request complete", "\"response_code\":101"]).await;
    // Agreed to by nobody: an ordinary answer, and the connection goes on.
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    client.say(b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 200);
    assert_eq!(client.get("/b").await.status, 200);
    // Nor does an answer of Culvert's own, or one to an earlier request, hold anything up.
    attach(&mut mesh, "all", RouteKind::Http, None, vec![rule(exact("/upgrade"), &[("v1", 1)])]);
    let upgrade = |path: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    };
    let get = "GET /none HTTP/1.1\r\nHost: a\r\n\r\n";
    client
        .say([upgrade("/none").as_str(), get, get, &upgrade("/upgrade"), "piped"].concat().as_bytes())
        .await;
    for expected in [404, 404, 404, 101] {
        assert_eq!(client.reply().await.status, expected);
    }
    client.until("hello from the other protocol\npiped").await;
    attach(&mut mesh, "all", RouteKind::Http, None, vec![rule(prefix("/"), &[("v1", 1)])]);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    // Another HTTP within HTTP would not be routed.
    client.say(b"GET /c HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n").await;
    let body = client.reply().await.body;
    assert!(!body.to_lowercase().contains("upgrade") && !body.contains("http2-settings"), "{body}");
    assert_eq!(servers[1].count(), 6);
}

async fn an_expectation_is_asked_of_the_server(mesh: Mesh) {
    let (mut mesh, _servers) = three_servers(mesh).await;
    attach(&mut mesh, "all", RouteKind::Http, None, vec![rule(prefix("/"), &[("v1", 1)])]);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    client.say(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 100);
    client.say(b"abc").await;
    assert!(client.reply().await.body.ends_with("body: abc"));
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    client
        .say(b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        .await;
    assert_eq!(
        client.reply().await.status,
        417,
        "the server refused before a byte of the body was asked for"
    );
}

async fn what_servers_say_is_passed_on_or_is_502(mesh: Mesh) {
    let (mut mesh, _servers) = three_servers(mesh).await;
    let scripts: [(u16, &[&str]); 5] = [
        (
            8090,
            &[
                "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
            ],
        ),
        (8091, &["HTTP/1.1 200 OK\r\n\r\nuntil", " the end"]),
        (8092, &["nonsense\r\n\r\n"]),
        (8093, &["HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"]),
        (
            8094,
            &[
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n",
            ],
        ),
    ];
    let mut running = Vec::new();
    let mut rules = Vec::new();
    for (port, pieces) in scripts {
        let name = format!("s{port}");
        backend(&mut mesh, &name, port, AppProtocol::Undeclared);
        rules.push(rule(prefix(&format!("/{port}")), &[(name.as_str(), 1)]));
        running.push(script(&mesh.world.peer, mesh.world.peer_at(port), pieces));
    }
    let db = mesh.db.clone();
    mesh.builder.upsert_workload(db);
    attach(&mut mesh, "all", RouteKind::Http, None, rules);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    let hints = client.get("/8090").await;
    assert_eq!((hints.status, hints.header("link")), (103, "</a>"));
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "hi"));
    let reply = client.get("/8091").await;
    assert_eq!((reply.header("transfer-encoding"), reply.body.as_str()), ("chunked", "until the end"));
    let reply = client.get("/8092").await;
    assert_eq!((reply.status, reply.reason()), (502, "BadResponse"));
    let reply = client.get("/8094").await;
    assert_eq!((reply.header("content-length"), reply.body.as_str()), ("", "12345"), "the chunks count");
    client.say(b"GET /8093 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.until("half").await;
    assert!(!client.rest().await.1, "cut, not ended");
    mesh.log.shows(&["BackendReset", "/8093"]).await;
}

type H2 = http2::SendRequest<Full<Bytes>>;

async fn http2_client(mesh: &Mesh, port: u16) -> H2 {
    let stream = Wire::connect(&mesh.world.pod, mesh.vip(port)).await.stream;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn ask(
    client: &mut H2,
    path: &str,
    content_type: &str,
    body: &'static str,
) -> (Response<()>, String, http::HeaderMap) {
    let request = Request::post(format!("http://web{path}"))
        .header("content-type", content_type)
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(body.as_bytes())))
        .unwrap();
    let (head, body) = client.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    (Response::from_parts(head, ()), String::from_utf8_lossy(&body.to_bytes()).into_owned(), trailers)
}

async fn grpc_and_http2_are_routed_and_their_trailers_pass(mesh: Mesh) {
    // Nothing is declared: the preface alone makes requests of it.
    let (mut mesh, servers) = two_endpoints(mesh, AppProtocol::Undeclared).await;
    let mut client = http2_client(&mesh, 80).await;
    for _ in 0..60 {
        let (head, body, trailers) = ask(&mut client, "/grpc.Echo/Say", "application/grpc", "hi").await;
        assert_eq!((head.status().as_u16(), head.version()), (200, Version::HTTP_2));
        assert!(
            body.contains("POST http://web/grpc.Echo/Say HTTP/2.0") && body.ends_with("body: hi"),
            "{body}"
        );
        assert_eq!(trailers["grpc-status"], "0");
    }
    // Of requests under way at the same time no endpoint gets many more than the other, whatever was measured before.
    let before = servers.each_ref().map(Server::count);
    futures::future::join_all((0..40).map(|_| {
        let mut client = client.clone();
        async move {
            let (head, ..) = ask(&mut client, "/wait/500", "application/grpc", "hi").await;
            assert_eq!(head.status(), 200);
        }
    }))
    .await;
    let counts = [0, 1].map(|index| servers[index].count() - before[index]);
    assert!(counts[0] >= 3 && counts[1] >= 3, "{before:?} {counts:?}");
    mesh.log.shows(&["request complete", "\"grpc_status\":0", "HTTP/2.0"]).await;
    let head = Request::head("http://web/a").body(Full::default()).unwrap();
    let (head, body) = client.send_request(head).await.unwrap().into_parts();
    assert_eq!((head.status.as_u16(), body.collect().await.unwrap().to_bytes().len()), (200, 0));
    assert!(head.headers.contains_key("content-length"), "{head:?}");

    let grpc =
        |service: &str| PathMatch::Grpc { service: Some(ValueMatch::Exact(service.into())), method: None };
    backend(&mut mesh, "v1", 8081, AppProtocol::Undeclared);
    backend(&mut mesh, "old", 8081, AppProtocol::Http1);
    let db = mesh.db.clone();
    mesh.builder.upsert_workload(db);
    let other = Server::start(&mesh.world.peer, mesh.world.peer_at(8081), "v1");
    attach(
        &mut mesh,
        "calls",
        RouteKind::Grpc,
        None,
        vec![rule(grpc("grpc.Echo"), &[("v1", 1)]), rule(grpc("no.Backend"), &[])],
    );
    let (_, body, trailers) = ask(&mut client, "/grpc.Echo/Say", "application/grpc+proto", "hi").await;
    assert!(body.starts_with("server: v1"), "{body}");
    assert_eq!(trailers["grpc-status"], "0");
    for (path, status, reason) in
        [("/other.Service/Call", "12", "RouteNotFound"), ("/no.Backend/Call", "13", "NoBackend")]
    {
        let (head, body, _) = ask(&mut client, path, "application/grpc", "hi").await;
        assert_eq!((head.status().as_u16(), &head.headers()["grpc-status"]), (200, &status.parse().unwrap()));
        assert!(head.headers()["proxy-status"].to_str().unwrap().contains(reason), "{head:?}");
        assert_eq!(body, "");
    }
    // What is no call is not for a GRPCRoute.
    let (head, _, _) = ask(&mut client, "/grpc.Echo/Say", "text/plain", "hi").await;
    assert_eq!(head.status(), 404);
    assert_eq!(other.count(), 1);

    // A server that is declared HTTP/1 is spoken to as the client speaks; one that is declared HTTP/2 never in HTTP/1.
    mesh.builder.remove_route("calls");
    backend(&mut mesh, "two", 8081, AppProtocol::Http2);
    let db = mesh.db.clone();
    mesh.builder.upsert_workload(db);
    attach(&mut mesh, "all", RouteKind::Http, None, vec![rule(prefix("/"), &[("two", 1)])]);
    let mut wire = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    let reply = wire.get("/a?b").await;
    assert!(reply.body.contains("GET http://web/a?b HTTP/2.0"), "{reply:?}");
    wire.say(b"POST /c HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        .await;
    assert!(wire.reply().await.body.ends_with("body: abc"));
    // Hosts that differ, and connection fields, are refused in HTTP/2 as well.
    let request = Request::get("http://web/").header("host", "other").body(Full::default()).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 400);
    let request = Request::builder().method(Method::CONNECT).uri("web:80").body(Full::default()).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 405);
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
