//! Messages of HTTP/1 as they are let in and passed on.

use std::time::Duration;

use culvert_node_proxy::state::model::AppProtocol;
use culvert_routing::model::RouteKind;
use futures::FutureExt;
use tokio::io::AsyncWriteExt;

use crate::mesh::Mesh;
use crate::smuggling::REFUSED;
use crate::web::{Wire, attach, backend, prefix, rule, script, three_servers};

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub const ALL: &[(&str, crate::Case)] =
            &[$((stringify!($case), |mesh| $case(mesh).boxed_local())),*];
    };
}

cases![
    ambiguous_requests_are_refused_before_a_backend_sees_a_byte,
    bodies_and_their_ends_pass_in_both_directions,
    what_belongs_to_a_connection_stays_on_it,
    pipelined_requests_are_answered_in_order,
    an_expectation_is_asked_of_the_server,
    what_servers_say_is_passed_on_or_is_502,
];

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
