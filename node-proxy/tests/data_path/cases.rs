//! What must hold.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use culvert_node_proxy::state::model::{
    InboundMode, Limits, OutboundPolicy, Probe, ProbeCheck, TunnelProtocol, Workload,
};
use futures::FutureExt;
use tokio::io::AsyncReadExt;

use crate::mesh::{
    Application, Client, Mesh, expect_reset, member, service, with_probes, with_settings, workload,
};
use crate::world::{Family, sh};

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub const ALL: &[(&str, crate::Case)] =
            &[$((stringify!($case), |mesh| $case(mesh).boxed_local())),*];
    };
}

cases![
    a_service_and_a_pod_are_reached_through_a_tunnel_from_the_clients_address,
    a_pod_reaches_itself_through_its_own_service,
    connections_share_few_tunnels,
    what_cannot_be_reached_is_reset_with_a_reason,
    an_unknown_address_is_held_until_it_is_known,
    a_client_that_gives_up_while_it_is_held_is_let_go,
    outside_addresses_pass_unless_the_policy_refuses,
    an_endpoint_that_does_not_answer_is_replaced_by_another,
    what_was_said_to_an_endpoint_that_refuses_is_said_to_the_next,
    an_enrolled_destination_is_never_downgraded,
    the_wrong_identity_at_the_address_gets_nothing,
    plaintext_is_accepted_or_refused_by_mode,
    only_declared_probes_pass_under_strict_mode,
    garbage_on_every_port_is_reset,
    a_workload_at_its_limit_is_refused_more,
    a_new_certificate_resets_nothing,
    a_removed_pod_is_closed_and_a_drained_worker_ends,
];

async fn a_service_and_a_pod_are_reached_through_a_tunnel_from_the_clients_address(mesh: Mesh) {
    let mesh = mesh.with_both().await;
    let _application = Application::start(&mesh.world.peer, mesh.world.peer_at(8080));
    for to in [mesh.vip(80), mesh.world.peer_at(8080)] {
        let mut client = Client::connect(&mesh.world.pod, to).await;
        assert_eq!(client.line().await.unwrap(), format!("client {}", mesh.world.pod_ip));
        client.echo().await;
        drop(client);
    }
    mesh.log.shows(&["mutual_tls", "outbound"]).await;
    mesh.log.shows(&["mutual_tls", "inbound"]).await;
    assert_eq!(mesh.log.count(&["\"none\""]), 0);
    let pods = mesh.workers.pods();
    assert_eq!(pods.len(), 2);
}

async fn a_pod_reaches_itself_through_its_own_service(mut mesh: Mesh) {
    let web = member(mesh.web.clone(), "web");
    let vip = next(mesh.world.vip, 1);
    mesh.builder.upsert_service(service("web", vip));
    mesh.enrol(web.clone()).await;
    let _application = Application::start(&mesh.world.pod, mesh.world.pod_at(8080));
    for tunnel in [TunnelProtocol::Hbone, TunnelProtocol::Plaintext] {
        mesh.builder.upsert_workload(Workload { tunnel, ..web.clone() });
        mesh.publish();
        let mut client = Client::connect(&mesh.world.pod, SocketAddr::new(vip, 80)).await;
        assert_eq!(client.line().await.unwrap(), format!("client {}", mesh.world.pod_ip), "{tunnel:?}");
        client.echo().await;
    }
}

async fn connections_share_few_tunnels(mesh: Mesh) {
    let mesh = mesh.with_both().await;
    let application = Application::start(&mesh.world.peer, mesh.world.peer_at(8080));
    let mut clients = Vec::new();
    for _ in 0..200 {
        let mut client = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
        client.line().await.unwrap();
        clients.push(client);
    }
    for client in &mut clients {
        client.echo().await;
    }
    assert_eq!(application.count(), 200);
    let pods = mesh.workers.pods();
    let web = pods.iter().find(|pod| pod.workload.contains("/web/")).unwrap();
    let db = pods.iter().find(|pod| pod.workload.contains("/db/")).unwrap();
    assert_eq!((web.connections, db.connections), (200, 200));
    let tunnels: usize = web.tunnels_out.values().sum();
    assert!((1..=2).contains(&tunnels) && db.tunnels_in == tunnels, "{pods:?}");
    drop(clients);
    for _ in 0..100 {
        if mesh.workers.pods().iter().all(|pod| pod.connections == 0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("connections are left: {:?}", mesh.workers.pods());
}

async fn what_cannot_be_reached_is_reset_with_a_reason(mut mesh: Mesh) {
    let vip = next(mesh.world.vip, 1);
    mesh.builder.upsert_service(service("empty", vip));
    let mesh = mesh.with_both().await;
    for (to, reason) in [
        (mesh.vip(81), "NoServicePort"),
        (SocketAddr::new(vip, 80), "NoEndpoint"),
        (next_at(mesh.world.pod_ip, 100, 80), "UnknownDestination"),
        // Nobody listens: the server's proxy answers 503.
        (mesh.world.peer_at(8081), "Tunnel"),
        (mesh.world.loopback_at(15001), "ProxyPort"),
    ] {
        expect_reset(&mesh.world.pod, to).await;
        mesh.log.shows(&[reason]).await;
    }
    mesh.log.shows(&["inbound", "Connect"]).await;
}

async fn an_unknown_address_is_held_until_it_is_known(mesh: Mesh) {
    let mut mesh = mesh;
    let web = with_settings(mesh.web.clone(), |settings| {
        settings.timeouts.unknown_destination = Duration::from_secs(5);
    });
    mesh.enrol(web).await;
    let _application = Application::start(&mesh.world.peer, mesh.world.peer_at(8080));
    let mut client = Client::connect(&mesh.world.pod, mesh.world.peer_at(8080)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let db = mesh.db.clone();
    mesh.enrol(db).await;
    assert_eq!(client.line().await.unwrap(), format!("client {}", mesh.world.pod_ip));
    drop(client);
    mesh.log.shows(&["outbound", "mutual_tls"]).await;
}

async fn a_client_that_gives_up_while_it_is_held_is_let_go(mut mesh: Mesh) {
    let web = with_settings(mesh.web.clone(), |settings| {
        settings.timeouts.unknown_destination = Duration::from_secs(30);
    });
    mesh.enrol(web).await;
    let client = Client::connect(&mesh.world.pod, mesh.world.peer_at(8080)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(mesh.workers.pods()[0].connections, 1);
    socket2::SockRef::from(client.stream.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    mesh.log.shows(&["PeerReset"]).await;
    assert_eq!(mesh.workers.pods()[0].connections, 0);
}

async fn outside_addresses_pass_unless_the_policy_refuses(mut mesh: Mesh) {
    let outside: IpAddr = match mesh.world.setup.family {
        Family::V4 => "198.51.100.1".parse().unwrap(),
        Family::V6 => "2001:db8::1".parse().unwrap(),
    };
    sh(&mesh.world.peer, "ip addr add 198.51.100.1/32 dev lo; ip addr add 2001:db8::1/128 dev lo");
    let to = SocketAddr::new(outside, 8080);
    let application = Application::start(&mesh.world.peer, to);
    let web = mesh.web.clone();
    mesh.enrol(web.clone()).await;
    let mut client = Client::connect(&mesh.world.pod, to).await;
    assert_eq!(client.line().await.unwrap(), format!("client {}", mesh.world.pod_ip));
    drop(client);
    mesh.log.shows(&["DestinationOutsideMesh"]).await;
    let strict = with_settings(web, |settings| settings.outbound_policy = OutboundPolicy::RegistryOnly);
    mesh.pod("web").workload.store(strict.into());
    expect_reset(&mesh.world.pod, to).await;
    mesh.log.shows(&["OutboundPolicy"]).await;
    assert_eq!(application.count(), 1);
}

async fn an_endpoint_that_does_not_answer_is_replaced_by_another(mut mesh: Mesh) {
    // One is somebody else, the other unreachable.
    sh(&mesh.world.peer, "ip addr add 10.9.0.3/24 dev eth0; ip addr add fd09::3/64 dev eth0 nodad");
    sh(&mesh.world.pod, "ip route add unreachable 10.9.0.4; ip -6 route add unreachable fd09::4");
    for (name, by) in [("other", 1), ("gone", 2)] {
        let endpoint = member(workload(name, next(mesh.world.peer_ip, by)), "db");
        mesh.builder.upsert_workload(Workload { own: None, ..endpoint });
    }
    let mesh = mesh.with_both().await;
    let application = Application::start(&mesh.world.peer, mesh.world.peer_at(8080));
    for _ in 0..20 {
        let mut client = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
        assert_eq!(client.line().await.unwrap(), format!("client {}", mesh.world.pod_ip));
    }
    assert_eq!(application.count(), 20);
}

async fn what_was_said_to_an_endpoint_that_refuses_is_said_to_the_next(mut mesh: Mesh) {
    // The enrolled one has no application, so its proxy refuses what it was told; the other is not enrolled.
    sh(&mesh.world.peer, "ip addr add 10.9.0.3/24 dev eth0; ip addr add fd09::3/64 dev eth0 nodad");
    let address = next(mesh.world.peer_ip, 1);
    let plain = member(workload("plain", address), "db");
    mesh.builder.upsert_workload(Workload { own: None, tunnel: TunnelProtocol::Plaintext, ..plain });
    let mesh = mesh.with_both().await;
    let application = Application::start(&mesh.world.peer, SocketAddr::new(address, 8080));
    for _ in 0..20 {
        let mut client = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
        client.say(b"hello\n").await;
        assert_eq!(client.line().await.unwrap(), format!("client {}", mesh.world.pod_ip));
        assert_eq!(client.line().await.unwrap(), "hello");
    }
    mesh.log.shows(&["Connect", "inbound"]).await;
    assert_eq!(application.count(), 20);
}

async fn an_enrolled_destination_is_never_downgraded(mut mesh: Mesh) {
    // The destination is marked HBONE, but nobody listens on its 15008, only the application does.
    let (web, db) = (mesh.web.clone(), mesh.db.clone());
    mesh.enrol(web).await;
    mesh.builder.upsert_workload(Workload { own: None, ..db });
    mesh.publish();
    let application = Application::start(&mesh.world.peer, mesh.world.peer_at(8080));
    for to in [mesh.vip(80), mesh.world.peer_at(8080)] {
        expect_reset(&mesh.world.pod, to).await;
    }
    mesh.log.shows(&["Connect", "outbound"]).await;
    assert_eq!(application.count(), 0);
}

async fn the_wrong_identity_at_the_address_gets_nothing(mesh: Mesh) {
    let mut mesh = mesh.with_both().await;
    let application = Application::start(&mesh.world.peer, mesh.world.peer_at(8080));
    let other = Workload {
        uid: culvert_node_proxy::state::model::WorkloadUid("Kubernetes//Pod/shop/other/uid-other".into()),
        own: None,
        identity: Some("spiffe://cluster.local/ns/shop/sa/other".parse().unwrap()),
        ..workload("other", mesh.world.peer_ip)
    };
    mesh.builder.upsert_workload(other);
    mesh.publish();
    expect_reset(&mesh.world.pod, mesh.world.peer_at(8080)).await;
    mesh.log.shows(&["PeerIdentity"]).await;
    assert_eq!(application.count(), 0);
}

async fn plaintext_is_accepted_or_refused_by_mode(mut mesh: Mesh) {
    let web = with_settings(mesh.web.clone(), |settings| {
        settings.port_modes = vec![(8081, InboundMode::Strict)];
    });
    mesh.enrol(web).await;
    let open = Application::start(&mesh.world.pod, mesh.world.pod_at(8080));
    let strict = Application::start(&mesh.world.pod, mesh.world.pod_at(8081));
    let mut client = Client::connect(&mesh.world.peer, mesh.world.pod_at(8080)).await;
    assert_eq!(client.line().await.unwrap(), format!("client {}", mesh.world.peer_ip));
    client.echo().await;
    expect_reset(&mesh.world.peer, mesh.world.pod_at(8081)).await;
    mesh.log.shows(&["PlaintextRefused"]).await;
    for port in [15001, 15006] {
        expect_reset(&mesh.world.peer, mesh.world.pod_at(port)).await;
    }
    mesh.log.shows(&["ProxyPort"]).await;
    assert_eq!((open.count(), strict.count()), (1, 0));
}

/// The test's node has the peer's address.
async fn only_declared_probes_pass_under_strict_mode(mut mesh: Mesh) {
    let get = ProbeCheck::HttpGet { path: "/healthz".into(), headers: Vec::new(), https: false };
    let probes = vec![
        Probe { port: 8080, check: get },
        Probe { port: 8081, check: ProbeCheck::TcpConnect },
        Probe { port: 8083, check: ProbeCheck::TcpConnect },
    ];
    let web = with_settings(mesh.web.clone(), |settings| settings.inbound_mode = InboundMode::Strict);
    mesh.enrol(with_probes(web, probes)).await;
    let (pod, peer) = (mesh.world.pod.clone(), mesh.world.peer.clone());
    let http = Application::start(&pod, mesh.world.pod_at(8080));
    let tcp = Application::start(&pod, mesh.world.pod_at(8081));
    let other = Application::start(&pod, mesh.world.pod_at(8082));

    // The echo server answers with what reached it, and ends when the client does.
    let mut probe = Client::connect(&peer, mesh.world.pod_at(8080)).await;
    probe.say(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Evil: 1\r\n\r\n").await;
    assert_eq!(probe.line().await.unwrap(), format!("client {}", mesh.world.peer_ip));
    assert_eq!(probe.line().await.unwrap(), "GET /healthz HTTP/1.1");
    assert_eq!(probe.line().await.unwrap(), format!("Host: {}", mesh.world.pod_at(8080)));
    assert_eq!(probe.line().await.unwrap(), "Connection: close");
    probe.say(b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n").await;
    probe.is_reset().await;
    assert_eq!(http.count(), 1);
    for request in [
        &b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        b"\x00\x01\x02\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut refused = Client::connect(&peer, mesh.world.pod_at(8080)).await;
        refused.say(request).await;
        refused.is_reset().await;
    }
    assert_eq!(http.count(), 1, "nothing else reached the application");

    drop(Client::connect(&peer, mesh.world.pod_at(8081)).await);
    let mut talks = Client::connect(&peer, mesh.world.pod_at(8081)).await;
    talks.say(b"x").await;
    talks.is_reset().await;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if tcp.count() == 2 {
            break;
        }
    }
    assert_eq!(tcp.count(), 2);
    // A TCP probe of a port on which the application does not listen fails.
    expect_reset(&peer, mesh.world.pod_at(8083)).await;

    expect_reset(&peer, mesh.world.pod_at(8082)).await;
    assert_eq!(other.count(), 0);
    mesh.log.shows(&["Probe"]).await;
    mesh.log.shows(&["PlaintextRefused"]).await;
}

async fn garbage_on_every_port_is_reset(mut mesh: Mesh) {
    let web = with_settings(mesh.web.clone(), |settings| {
        settings.timeouts.tls_handshake = Duration::from_millis(300);
    });
    mesh.enrol(web).await;
    let from_peer = [(15008, &b"GET / HTTP/1.1\r\n\r\n"[..]), (15008, &[0xff; 64]), (15008, b"\x16\x03\x01")];
    for (port, garbage) in from_peer {
        let mut client = Client::connect(&mesh.world.peer, mesh.world.pod_at(port)).await;
        client.say(garbage).await;
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(3), client.stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "the connection is closed");
    }
    mesh.log.shows(&["TlsHandshake"]).await;
    for port in [15001, 15006] {
        expect_reset(&mesh.world.pod, mesh.world.loopback_at(port)).await;
    }
    assert!(mesh.workers.silence().iter().all(|silence| *silence < Duration::from_secs(1)));
}

async fn a_workload_at_its_limit_is_refused_more(mut mesh: Mesh) {
    let web = with_settings(mesh.web.clone(), |settings| {
        settings.limits = Limits { connections: 3, memory_bytes: 1 << 20, ..settings.limits };
    });
    let db = mesh.db.clone();
    mesh.enrol(web).await;
    mesh.enrol(db).await;
    let _application = Application::start(&mesh.world.peer, mesh.world.peer_at(8080));
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
        client.line().await.unwrap();
        open.push(client);
    }
    expect_reset(&mesh.world.pod, mesh.vip(80)).await;
    mesh.log.shows(&["WorkloadLimit"]).await;
    open.pop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    Client::connect(&mesh.world.pod, mesh.vip(80)).await.line().await.unwrap();
    for client in &mut open {
        client.echo().await;
    }
}

async fn a_new_certificate_resets_nothing(mesh: Mesh) {
    let mesh = mesh.with_both().await;
    let _application = Application::start(&mesh.world.peer, mesh.world.peer_at(8080));
    let mut old = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
    old.line().await.unwrap();
    mesh.certify("web", 2);
    mesh.certify("db", 2);
    let mut new = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
    new.line().await.unwrap();
    let tunnels =
        || -> usize { mesh.workers.pods().iter().map(|pod| pod.tunnels_out.values().sum::<usize>()).sum() };
    assert_eq!(tunnels(), 2);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    old.echo().await;
    new.echo().await;
    drop(old);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if tunnels() == 1 {
            return new.echo().await;
        }
    }
    panic!("the old tunnel does not end with its last stream");
}

async fn a_removed_pod_is_closed_and_a_drained_worker_ends(mesh: Mesh) {
    let mesh = mesh.with_both().await;
    let _application = Application::start(&mesh.world.peer, mesh.world.peer_at(8080));
    let mut client = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
    client.line().await.unwrap();
    let started = Instant::now();
    mesh.workers.leave_pod(&mesh.db.uid).await;
    assert!(started.elapsed() >= Duration::from_secs(1), "one connection is open: the drain deadline passes");
    client.echo().await;
    mesh.workers.remove_pod(&mesh.db.uid).await;
    client.is_reset().await;
    mesh.log.shows(&["inbound", "Drained"]).await;
    let started = Instant::now();
    mesh.workers.drain(tokio::time::Instant::now() + Duration::from_secs(3)).await;
    assert!(started.elapsed() < Duration::from_secs(2), "nothing is open any more");
    assert!(mesh.workers.pods().is_empty());
}

fn next(address: IpAddr, by: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => (u32::from(v4) + u32::from(by)).to_be_bytes().into(),
        IpAddr::V6(v6) => (u128::from(v6) + u128::from(by)).to_be_bytes().into(),
    }
}

fn next_at(address: IpAddr, by: u8, port: u16) -> SocketAddr {
    SocketAddr::new(next(address, by), port)
}
