//! Which connections carry requests, and in which protocols.

use std::time::{Duration, Instant};

use bytes::Bytes;
use culvert_node_proxy::state::model::{AppProtocol, TunnelProtocol, Workload};
use culvert_routing::model::{PathMatch, RouteKind, ValueMatch};
use futures::FutureExt;
use http::{Method, Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;

use crate::endpoints::two_endpoints;
use crate::mesh::{Application, Client, Mesh, REQUEST_HEAD, expect_reset, service, with_settings};
use crate::web::{Server, Wire, attach, backend, declared, exact, prefix, rule, three_servers};

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub const ALL: &[(&str, crate::Case)] =
            &[$((stringify!($case), |mesh| $case(mesh).boxed_local())),*];
    };
}

cases![
    what_is_declared_and_what_is_said_decide_together,
    a_switched_protocol_is_carried,
    grpc_and_http2_are_routed_and_their_trailers_pass,
];

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
    assert!(started.elapsed() >= REQUEST_HEAD - Duration::from_millis(50), "{:?}", started.elapsed());
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
