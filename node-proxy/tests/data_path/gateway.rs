//! What must hold for a Gateway: its pod is `web`, backends are in `db`, clients are outside.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use culvert_node_proxy::intercept::{Netns, gateway_listeners};
use culvert_node_proxy::state::model::{InboundMode, Listener};
use culvert_node_proxy::state::routes::{Attached, Parent, Unusable};
use culvert_node_proxy::worker::OpenPort;
use culvert_routing::CompiledRoute;
use culvert_routing::model::{Carries, Hostname, PathMatch, Route, RouteKey, RouteKind, Rule, ValueMatch};
use futures::FutureExt;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::mesh::{Client, Mesh, REQUEST_HEAD, with_settings};
use crate::web::{Reply, Server, Wire, attach, prefix, rule, three_servers};
use crate::world::{Family, World, new_netns, sh};

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub const ALL: &[(&str, crate::Case)] =
            &[$((stringify!($case), |mesh| $case(mesh).boxed_local())),*];
    };
}

cases![
    the_most_specific_listener_takes_a_request_and_no_other,
    what_a_listener_does_not_serve_is_404_or_500,
    backends_learn_of_the_client_and_nothing_is_decided_on_it,
    http2_and_grpc_come_in_too,
    clients_of_the_mesh_reach_a_gateway_through_its_tunnel,
    what_is_not_http_is_reset,
    listeners_come_and_go_under_traffic,
    a_closed_port_drains,
    a_gateway_at_its_limit_refuses_more,
];

const GATEWAY: &str = "shop/gate";

/// A namespace that the mesh knows nothing of, linked to the Gateway's pod.
pub struct Outside {
    netns: Netns,
    address: IpAddr,
    pod: IpAddr,
}

impl Outside {
    fn of(world: &World) -> Self {
        let netns = new_netns();
        // `ip` moves a device to the namespace of a process: one that stands in that.
        let mut stand_in = netns.run(|| Command::new("sleep").arg("60").spawn()).unwrap().unwrap();
        let id = stand_in.id();
        sh(
            &world.pod,
            &format!(
                "ip link add eth1 type veth peer name eth0 netns {id}; ip link set eth1 up; \
                 ip addr add 10.8.0.1/24 dev eth1; ip addr add fd08::1/64 dev eth1 nodad"
            ),
        );
        sh(
            &netns,
            "ip link set lo up; ip link set eth0 up; ip addr add 10.8.0.2/24 dev eth0; \
             ip addr add fd08::2/64 dev eth0 nodad; ip route add default via 10.8.0.1; \
             ip -6 route add default via fd08::1",
        );
        stand_in.kill().unwrap();
        stand_in.wait().unwrap();
        let address = match world.setup.family {
            Family::V4 => "10.8.0.2",
            Family::V6 => "fd08::2",
        };
        Self { netns, address: address.parse().unwrap(), pod: world.pod_ip }
    }

    /// As the access log names it as a client, without its port.
    fn logged(&self) -> String {
        match self.address {
            IpAddr::V4(address) => format!("\"src.addr\":\"{address}:"),
            IpAddr::V6(address) => format!("\"src.addr\":\"[{address}]:"),
        }
    }

    async fn connect(&self, port: u16) -> Wire {
        Wire::connect(&self.netns, SocketAddr::new(self.pod, port)).await
    }

    /// One request on a connection of its own.
    pub async fn get(&self, port: u16, host: &str, path: &str) -> Reply {
        get(&mut self.connect(port).await, host, path).await
    }
}

async fn get(client: &mut Wire, host: &str, path: &str) -> Reply {
    client.say(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await;
    client.reply().await
}

/// The Gateway's pod and three backends, `db`, `v1`, `v2`; plaintext to the pod is refused, but for the Gateway's ports.
pub async fn gateway(mut mesh: Mesh) -> (Mesh, [Server; 3], Outside) {
    let outside = Outside::of(&mesh.world);
    let web = with_settings(mesh.web.clone(), |settings| settings.inbound_mode = InboundMode::Strict);
    mesh.web = culvert_node_proxy::state::model::Workload { gateway: Some(GATEWAY.into()), ..web };
    let (mesh, servers) = three_servers(mesh).await;
    (mesh, servers, outside)
}

/// As the life of a pod does it.
pub async fn open(mesh: &mut Mesh, port: u16) -> OpenPort {
    mesh.steer("web", port).await;
    let pod = mesh.pod("web");
    let listeners = gateway_listeners(&pod.netns, port).unwrap();
    mesh.workers.open_port(&pod.uid, GATEWAY.into(), listeners).await.unwrap()
}

fn resource(listener: &str) -> Arc<str> {
    format!("{GATEWAY}/{listener}").as_str().into()
}

pub fn listen(mesh: &mut Mesh, name: &str, port: u16, hostname: &str) {
    let hostname = (!hostname.is_empty()).then(|| Hostname::parse(hostname).unwrap());
    mesh.builder.upsert_listener(Listener { name: resource(name), gateway: GATEWAY.into(), port, hostname });
    mesh.publish();
}

pub fn route(mesh: &mut Mesh, listener: &str, kind: RouteKind, hostnames: &[&str], rules: Vec<Rule>) {
    let name = format!("to-{listener}-{kind:?}").to_lowercase();
    let route = Route {
        key: RouteKey { kind, namespace: "shop".into(), name: name.as_str().into() },
        created: 0,
        hostnames: hostnames.iter().map(|name| Hostname::parse(name).unwrap()).collect(),
        rules,
    };
    let route = Arc::new(CompiledRoute::compile(route).expect("the route compiles"));
    let attached = Attached { parent: Parent::Listener(resource(listener)), route };
    mesh.builder.upsert_route(&format!("{name}@{listener}").as_str().into(), attached);
    mesh.publish();
}

async fn the_most_specific_listener_takes_a_request_and_no_other(mesh: Mesh) {
    let (mut mesh, servers, outside) = gateway(mesh).await;
    let listeners = [
        ("any", ""),
        ("wide", "*.example.com"),
        ("narrow", "*.foo.example.com"),
        ("exact", "abc.foo.example.com"),
    ];
    for (name, hostname) in listeners {
        listen(&mut mesh, name, 80, hostname);
        let backend = if name == "exact" { "v2" } else { "v1" };
        let rules = vec![rule(prefix(&format!("/{name}")), &[(backend, 1)])];
        route(&mut mesh, name, RouteKind::Http, &[], rules);
    }
    listen(&mut mesh, "elsewhere", 8000, "abc.foo.example.com");
    route(&mut mesh, "elsewhere", RouteKind::Http, &[], vec![rule(prefix("/"), &[("db", 1)])]);
    let _open = (open(&mut mesh, 80).await, open(&mut mesh, 8000).await);
    let mut client = outside.connect(80).await;
    for (host, listener) in [
        ("abc.foo.example.com", "exact"),
        ("ABC.foo.Example.com.:80", "exact"),
        ("def.foo.example.com", "narrow"),
        ("foo.example.com", "wide"),
        ("a.b.example.com", "wide"),
        ("example.com", "any"),
        ("other.test:1234", "any"),
        ("10.9.0.1", "any"),
    ] {
        for (path, _) in listeners {
            let reply = get(&mut client, host, &format!("/{path}/x")).await;
            if path == listener {
                let server = if path == "exact" { "v2" } else { "v1" };
                assert_eq!((reply.status, reply.server()), (200, server), "{host} {path} {reply:?}");
                assert!(reply.body.contains(&format!("\nhost: {host}\n")), "{}", reply.body);
            } else {
                assert_eq!((reply.status, reply.reason()), (404, "RouteNotFound"), "{host} {path} {reply:?}");
            }
        }
    }
    assert_eq!(outside.get(8000, "abc.foo.example.com", "/").await.server(), "db");
    let line = [
        "request complete",
        "\"listener\":\"shop/gate/exact\"",
        "\"route\":\"HTTPRoute/shop/to-exact-http\"",
        "\"src.workload\":\"web\"",
        "\"dst.service\":\"shop/v2\"",
        "mutual_tls",
        &outside.logged(),
    ];
    mesh.log.shows(&line).await;
    mesh.log.shows(&["request failed", "RouteNotFound", "\"listener\":\"shop/gate/any\""]).await;
    // What is not a Gateway's port is a port of the pod as ever, and its inbound mode refuses it.
    crate::mesh::expect_reset(&outside.netns, SocketAddr::new(outside.pod, 9000)).await;
    mesh.log.shows(&["PlaintextRefused"]).await;
    assert_eq!(servers[0].count(), 1);
}

async fn what_a_listener_does_not_serve_is_404_or_500(mesh: Mesh) {
    let (mut mesh, servers, outside) = gateway(mesh).await;
    listen(&mut mesh, "one", 80, "one.example");
    listen(&mut mesh, "bare", 80, "bare.example");
    route(
        &mut mesh,
        "one",
        RouteKind::Http,
        &[],
        vec![
            rule(prefix("/db"), &[("db", 1)]),
            rule(prefix("/none"), &[]),
            rule(prefix("/invalid"), &[("", 1)]),
        ],
    );
    // Routes of the backend itself hold for those who call it as a Service, not for what comes by a Gateway.
    attach(&mut mesh, "producer", RouteKind::Http, None, vec![rule(prefix("/producer"), &[("v1", 1)])]);
    let _open = open(&mut mesh, 80).await;
    let mut client = outside.connect(80).await;
    for (host, path, status, reason) in [
        ("two.example", "/db", 404, "RouteNotFound"),
        ("bare.example", "/db", 404, "RouteNotFound"),
        ("one.example", "/producer", 404, "RouteNotFound"),
        ("one.example", "/none", 500, "NoBackend"),
        ("one.example", "/invalid", 500, "InvalidBackend"),
    ] {
        let reply = get(&mut client, host, path).await;
        assert_eq!((reply.status, reply.reason()), (status, reason), "{host} {path}");
    }
    assert_eq!(get(&mut client, "one.example", "/db").await.server(), "db");
    let parent = Parent::Listener(resource("one"));
    mesh.builder.refuse_route(
        &"bad".into(),
        Unusable { parent, carries: Carries::Requests, why: "unreadable".into() },
    );
    mesh.publish();
    let reply = get(&mut client, "one.example", "/db").await;
    assert_eq!((reply.status, reply.reason()), (500, "RouteUnsupported"));
    assert_eq!(servers[0].count(), 1);
}

async fn backends_learn_of_the_client_and_nothing_is_decided_on_it(mesh: Mesh) {
    let (mut mesh, _servers, outside) = gateway(mesh).await;
    listen(&mut mesh, "any", 80, "");
    route(&mut mesh, "any", RouteKind::Http, &["a.example"], vec![rule(prefix("/"), &[("v1", 1)])]);
    let _open = open(&mut mesh, 80).await;
    let mut client = outside.connect(80).await;
    let address = outside.address;
    let reply = get(&mut client, "a.example", "/").await;
    for line in [format!("\nx-forwarded-for: {address}\n"), "\nx-forwarded-proto: http\n".to_owned()] {
        assert!(reply.body.contains(&line), "{line} in {}", reply.body);
    }
    let claims = "X-Forwarded-For: 6.6.6.6\r\nx-forwarded-for: a, b\r\nX-Forwarded-Proto: https\r\n\
                  Connection: x-forwarded-proto\r\nX-Forwarded-Host: a.example\r\n";
    client.say(format!("GET / HTTP/1.1\r\nHost: a.example\r\n{claims}\r\n").as_bytes()).await;
    let reply = client.reply().await;
    for line in
        [format!("\nx-forwarded-for: 6.6.6.6, a, b, {address}\n"), "\nx-forwarded-proto: http\n".to_owned()]
    {
        assert!(reply.body.contains(&line), "{line} in {}", reply.body);
    }
    client.say(format!("GET / HTTP/1.1\r\nHost: b.example\r\n{claims}\r\n").as_bytes()).await;
    assert_eq!(client.reply().await.status, 404);
    let logged = outside.logged();
    assert_eq!(mesh.log.count(&["request complete"]), mesh.log.count(&["request complete", &logged]));
}

async fn http2_and_grpc_come_in_too(mesh: Mesh) {
    let (mut mesh, _servers, outside) = gateway(mesh).await;
    listen(&mut mesh, "calls", 80, "calls.example");
    let call = PathMatch::Grpc { service: Some(ValueMatch::Exact("grpc.Echo".into())), method: None };
    route(&mut mesh, "calls", RouteKind::Grpc, &[], vec![rule(call, &[("v2", 1)])]);
    route(&mut mesh, "calls", RouteKind::Http, &[], vec![rule(prefix("/"), &[("v1", 1)])]);
    let _open = open(&mut mesh, 80).await;
    let stream = outside.connect(80).await.stream;
    let (mut client, driver) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(driver);
    let mut ask = async |host: &str, path: &str, kind: &str| {
        let request = Request::post(format!("http://{host}{path}")).header("content-type", kind);
        let request = request.body(Full::<Bytes>::from("hi")).unwrap();
        let (head, body) = client.send_request(request).await.expect("answered").into_parts();
        let body = body.collect().await.expect("a body");
        let trailers = body.trailers().cloned().unwrap_or_default();
        (head, String::from_utf8_lossy(&body.to_bytes()).into_owned(), trailers)
    };
    let status = |headers: &HeaderMap| headers["grpc-status"].to_str().unwrap().to_owned();
    let (_, body, trailers) = ask("calls.example", "/grpc.Echo/Say", "application/grpc").await;
    assert!(body.starts_with("server: v2"), "{body}");
    assert_eq!(status(&trailers), "0");
    let (_, body, _) = ask("calls.example", "/grpc.Echo/Say", "text/plain").await;
    assert!(body.starts_with("server: v1"), "only gRPC requests take a GRPCRoute: {body}");
    let (head, _, _) = ask("other.example", "/grpc.Echo/Say", "application/grpc").await;
    assert_eq!((head.status.as_u16(), status(&head.headers)), (200, "12".to_owned()), "no listener");
}

async fn clients_of_the_mesh_reach_a_gateway_through_its_tunnel(mesh: Mesh) {
    let (mut mesh, _servers, _outside) = gateway(mesh).await;
    listen(&mut mesh, "any", 80, "");
    route(&mut mesh, "any", RouteKind::Http, &[], vec![rule(prefix("/"), &[("v1", 1)])]);
    let _open = open(&mut mesh, 80).await;
    let mut client = Wire::connect(&mesh.world.peer, mesh.world.pod_at(80)).await;
    let reply = get(&mut client, "any.example", "/").await;
    assert_eq!((reply.status, reply.server()), (200, "v1"));
    assert!(reply.body.contains(&format!("\nx-forwarded-for: {}\n", mesh.world.peer_ip)), "{}", reply.body);
    drop(client);
    mesh.log
        .shows(&[
            "connection complete",
            "\"direction\":\"inbound\"",
            "mutual_tls",
            "\"dst.workload\":\"web\"",
        ])
        .await;
    // From inside the pod itself.
    let mut client = Wire::connect(&mesh.world.pod, mesh.world.loopback_at(80)).await;
    assert_eq!(get(&mut client, "any.example", "/").await.status, 200);
}

async fn what_is_not_http_is_reset(mesh: Mesh) {
    let (mut mesh, servers, outside) = gateway(mesh).await;
    listen(&mut mesh, "any", 80, "");
    route(&mut mesh, "any", RouteKind::Http, &[], vec![rule(prefix("/"), &[("v1", 1)])]);
    let _open = open(&mut mesh, 80).await;
    let to = SocketAddr::new(outside.pod, 80);
    for bytes in [&b"\x16\x03\x01\x02\x00\x01"[..], b"SSH-2.0-x\r\n"] {
        let mut client = Client::connect(&outside.netns, to).await;
        client.say(bytes).await;
        client.is_reset().await;
    }
    mesh.log.shows(&["ProtocolMismatch", "port 80 of Gateway shop/gate", "\"src.workload\":\"web\""]).await;
    let mut silent = Client::connect(&outside.netns, to).await;
    let started = Instant::now();
    silent.is_reset().await;
    assert!(started.elapsed() >= REQUEST_HEAD / 2, "{:?}", started.elapsed());
    mesh.log.shows(&["RequestHeaderTimeout"]).await;
    let mut bad = outside.connect(80).await;
    bad.say(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert_eq!(bad.reply().await.status, 400);
    assert_eq!(servers.each_ref().map(Server::count), [0, 0, 0]);
}

async fn listeners_come_and_go_under_traffic(mesh: Mesh) {
    let (mut mesh, _servers, outside) = gateway(mesh).await;
    listen(&mut mesh, "kept", 80, "kept.example");
    route(&mut mesh, "kept", RouteKind::Http, &[], vec![rule(prefix("/"), &[("v1", 1)])]);
    let _open = open(&mut mesh, 80).await;
    let (over, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let kept = async {
        let mut client = outside.connect(80).await;
        while !over.load(Ordering::Relaxed) {
            assert_eq!(get(&mut client, "kept.example", "/").await.server(), "v1");
            assert_eq!(outside.get(80, "kept.example", "/").await.server(), "v1", "a connection of its own");
            done.fetch_add(2, Ordering::Relaxed);
        }
    };
    let change = async {
        for round in 0..20 {
            let host = format!("new-{round}.example");
            listen(&mut mesh, "new", 80, &host);
            route(&mut mesh, "new", RouteKind::Http, &[], vec![rule(prefix("/"), &[("v2", 1)])]);
            assert_eq!(outside.get(80, &host, "/").await.server(), "v2");
            let other = open(&mut mesh, 8000).await;
            listen(&mut mesh, "other", 8000, "");
            route(&mut mesh, "other", RouteKind::Http, &[], vec![rule(prefix("/"), &[("db", 1)])]);
            assert_eq!(outside.get(8000, "whoever", "/").await.server(), "db");
            mesh.builder.remove_listener("shop/gate/new");
            mesh.builder.remove_listener("shop/gate/other");
            mesh.publish();
            drop(other);
            assert_eq!(outside.get(80, &host, "/").await.status, 404);
        }
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(kept, change);
    assert!(done.load(Ordering::Relaxed) > 40, "{done:?}");
}

async fn a_closed_port_drains(mesh: Mesh) {
    let (mut mesh, servers, outside) = gateway(mesh).await;
    for (name, port) in [("kept", 80), ("gone", 8000)] {
        listen(&mut mesh, name, port, "");
        route(&mut mesh, name, RouteKind::Http, &[], vec![rule(prefix("/"), &[("v1", 1)])]);
    }
    let _kept = open(&mut mesh, 80).await;
    let gone = open(&mut mesh, 8000).await;
    let mut idle = outside.connect(8000).await;
    assert_eq!(get(&mut idle, "a", "/").await.status, 200);
    let mut elsewhere = outside.connect(80).await;
    assert_eq!(get(&mut elsewhere, "a", "/").await.status, 200);
    let (mut short, mut long) = (outside.connect(8000).await, outside.connect(8000).await);
    short.say(b"GET /wait/400 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    long.say(b"GET /wait/20000 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    while servers[1].count() < 4 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let closed = Instant::now();
    drop(gone);
    assert_eq!(timeout(Duration::from_secs(1), idle.rest()).await.expect("at once"), (String::new(), true));
    let reply = short.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (200, "close"), "{reply:?}");
    // The workload's drain deadline is a second.
    let (rest, in_order) = long.rest().await;
    assert!(rest.is_empty() && !in_order, "{rest:?} {in_order}");
    let took = closed.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(5), "{took:?}");
    mesh.log.shows(&["request failed", "Drained", "/wait/20000"]).await;
    assert_eq!(get(&mut elsewhere, "a", "/").await.status, 200, "another port goes on");
}

async fn a_gateway_at_its_limit_refuses_more(mut mesh: Mesh) {
    mesh.web = with_settings(mesh.web.clone(), |settings| settings.limits.connections = 2);
    let (mut mesh, _servers, outside) = gateway(mesh).await;
    listen(&mut mesh, "any", 80, "");
    route(&mut mesh, "any", RouteKind::Http, &[], vec![rule(prefix("/"), &[("v1", 1)])]);
    let _open = open(&mut mesh, 80).await;
    let (mut one, mut two) = (outside.connect(80).await, outside.connect(80).await);
    for client in [&mut one, &mut two] {
        assert_eq!(get(client, "a", "/").await.status, 200);
    }
    crate::mesh::expect_reset(&outside.netns, SocketAddr::new(outside.pod, 80)).await;
    mesh.log.shows(&["WorkloadLimit", "\"src.workload\":\"web\""]).await;
    two.stream.shutdown().await.unwrap();
    drop(two);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut again = outside.connect(80).await;
        let asked = again.stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.is_ok();
        let reply = timeout(Duration::from_millis(500), again.try_reply()).await.ok().flatten();
        if asked && reply.is_some_and(|reply| reply.status == 200) {
            return;
        }
    }
    panic!("no place was given back");
}
