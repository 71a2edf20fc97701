//! Routes about connections: TCPRoutes by weight, TLSRoutes by the server name that a client asks for.

use std::sync::Arc;
use std::time::Duration;

use culvert_node_proxy::intercept::Netns;
use culvert_node_proxy::state::model::{AppProtocol, Workload};
use culvert_node_proxy::state::routes::{Parent, Unusable};
use culvert_routing::model::{Carries, Hostname, Route, RouteKind};
use futures::FutureExt;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::mesh::{Application, Client, Mesh, expect_reset};
use crate::web::{Server, Wire, attach, attach_route, backend, prefix, rule, three_servers};

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub const ALL: &[(&str, crate::Case)] =
            &[$((stringify!($case), |mesh| $case(mesh).boxed_local())),*];
    };
}

cases![
    connections_are_shared_by_weight,
    backends_that_cannot_be_called_keep_their_share,
    one_sort_of_route_decides_and_the_oldest_of_tcp_routes,
    a_connection_route_carries_whatever_is_said,
    tls_goes_by_server_name_and_is_not_ended,
    a_client_hello_in_pieces_arrives_as_it_was,
    what_is_no_client_hello_is_reset,
];

/// The server that answers a connection of its own; `None` when it is reset.
async fn answered(mesh: &Mesh) -> Option<String> {
    let mut client = Wire::try_connect(&mesh.world.pod, mesh.vip(80)).await.ok()?;
    if client.stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.is_err() {
        return None;
    }
    Some(client.try_reply().await?.server().to_owned())
}

async fn connections_are_shared_by_weight(mesh: Mesh) {
    let (mut mesh, servers) = three_servers(mesh).await;
    attach(&mut mesh, "split", RouteKind::Tcp, None, vec![rule(prefix("/"), &[("v1", 7), ("v2", 3)])]);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    let first = client.get("/").await;
    for _ in 0..4 {
        assert_eq!(client.get("/").await.server(), first.server(), "a connection stays where it is");
    }
    for number in 0..99 {
        if number % 20 == 0 {
            // Edits of other routes let the count go on.
            attach(&mut mesh, "younger", RouteKind::Tcp, Some("audit"), vec![rule(prefix("/"), &[])]);
        }
        assert!(answered(&mesh).await.is_some());
    }
    let connections = |server: &Server| server.connections.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(servers.each_ref().map(connections), [0, 70, 30]);
    mesh.log
        .shows(&[
            "connection complete",
            "\"route\":\"TCPRoute/shop/split\"",
            "\"rule\":\"0\"",
            "\"backend\":\"shop/v2:80\"",
            "\"dst.service\":\"shop/db\"",
            "mutual_tls",
        ])
        .await;
    let counted = mesh.telemetry.scrape().unwrap();
    for service in ["v1", "v2"] {
        let name = format!("destination_service_name=\"{service}\"");
        let is_it =
            |line: &str| line.starts_with("istio_tcp_connections_opened_total") && line.contains(&name);
        assert!(counted.lines().any(is_it), "{service} in\n{counted}");
    }
}

async fn backends_that_cannot_be_called_keep_their_share(mesh: Mesh) {
    let (mut mesh, _servers) = three_servers(mesh).await;
    attach(&mut mesh, "half", RouteKind::Tcp, None, vec![rule(prefix("/"), &[("v1", 1), ("", 1)])]);
    let mut reset = 0;
    for _ in 0..20 {
        reset += usize::from(answered(&mesh).await.is_none());
    }
    assert_eq!(reset, 10);
    mesh.log.shows(&["connection failed", "InvalidBackend", "\"route\":\"TCPRoute/shop/half\""]).await;
    for (backends, reason) in [
        (&[][..], "NoBackend"),
        (&[("v1", 0)], "NoBackend"),
        (&[("gone", 1)], "InvalidBackend"),
        (&[("empty", 1)], "NoEndpoint"),
    ] {
        attach(&mut mesh, "half", RouteKind::Tcp, None, vec![rule(prefix("/"), backends)]);
        // A Service without endpoints.
        let db = mesh.db.clone();
        backend(&mut mesh, "empty", 8080, AppProtocol::Undeclared);
        mesh.db = db;
        mesh.publish();
        let before = mesh.log.count(&["connection failed", reason]);
        expect_reset(&mesh.world.pod, mesh.vip(80)).await;
        mesh.log.shows_more_than(before, &["connection failed", reason]).await;
    }
}

async fn one_sort_of_route_decides_and_the_oldest_of_tcp_routes(mesh: Mesh) {
    let (mut mesh, _servers) = three_servers(mesh).await;
    let to = |name| vec![rule(prefix("/"), &[(name, 1)])];
    let tcp = |created, name: &str, to| Route { created, ..crate::web::route(name, RouteKind::Tcp, to) };
    attach_route(&mut mesh, tcp(20, "a-younger", to("v2")), None);
    attach_route(&mut mesh, tcp(10, "b-older", to("v1")), None);
    assert_eq!(answered(&mesh).await.as_deref(), Some("v1"));
    // A consumer's route replaces both for its namespace.
    attach(&mut mesh, "mine", RouteKind::Tcp, Some("shop"), to("v2"));
    assert_eq!(answered(&mesh).await.as_deref(), Some("v2"));
    // Should kinds meet at one port all the same, requests go before TLS, and TLS before bytes.
    attach(&mut mesh, "names", RouteKind::Tls, Some("shop"), to("v1"));
    assert_eq!(answered(&mesh).await, None, "not TLS");
    attach(&mut mesh, "requests", RouteKind::Http, Some("shop"), to("db"));
    assert_eq!(answered(&mesh).await.as_deref(), Some("db"));
    let parent = Parent::Service {
        service: mesh.db.memberships[0].service.clone(),
        ports: vec![80],
        consumers: Some("shop".into()),
    };
    // What cannot be read of a less specific sort is not asked.
    let unusable = |carries| Unusable { parent: parent.clone(), carries, why: "unreadable".into() };
    mesh.builder.refuse_route(&"bytes".into(), unusable(Carries::Bytes));
    mesh.publish();
    assert_eq!(answered(&mesh).await.as_deref(), Some("db"));
    for name in ["requests", "names", "mine"] {
        mesh.builder.remove_route(name);
    }
    mesh.publish();
    expect_reset(&mesh.world.pod, mesh.vip(80)).await;
    mesh.log.shows(&["connection failed", "RouteUnsupported", "unreadable"]).await;
}

/// A server that speaks first, bytes that are no protocol at all, and ends of one direction.
async fn a_connection_route_carries_whatever_is_said(mut mesh: Mesh) {
    backend(&mut mesh, "v1", 8081, AppProtocol::Tcp);
    let mut mesh = mesh.with_both().await;
    let application = Application::start(&mesh.world.peer, mesh.world.peer_at(8081));
    attach(&mut mesh, "bytes", RouteKind::Tcp, None, vec![rule(prefix("/"), &[("v1", 1)])]);
    let mut client = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
    assert_eq!(client.line().await.unwrap(), format!("client {}", mesh.world.pod_ip));
    for line in ["PRI * HTTP/2.0", "GET / HTTP/1.1", "\u{16}\u{3}\u{1}"] {
        client.say(format!("{line}\n").as_bytes()).await;
        assert_eq!(client.line().await.unwrap(), line);
    }
    client.stream.get_mut().shutdown().await.unwrap();
    assert_eq!(client.line().await.unwrap(), "", "an orderly end");
    assert_eq!(application.count(), 1);
}

// === TLS ===

/// A server of TLS that says its name to everybody.
struct Named(#[allow(dead_code, reason = "ends with it")] JoinSet<()>);

impl Named {
    fn start(netns: &Netns, at: std::net::SocketAddr, name: &'static str) -> Self {
        let made = rcgen::generate_simple_self_signed(vec![format!("{name}.example")]).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = netns.run(|| std::net::TcpListener::bind(at)).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let _ = stream.write_all(name.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            }
        });
        Self(tasks)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    rustls::crypto::aws_lc_rs::default_provider().into()
}

/// Believes whoever answers: which of them did is what is asked.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn client_config() -> ClientConfig {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth()
}

async fn tcp(mesh: &Mesh) -> TcpStream {
    Client::connect(&mesh.world.pod, mesh.vip(80)).await.stream.into_inner()
}

/// Who answers a client of TLS that asks for this name; empty: for none.
async fn asked(mesh: &Mesh, name: &str) -> Result<String, std::io::Error> {
    let mut config = client_config();
    config.enable_sni = !name.is_empty();
    let host = if name.is_empty() { "none.example" } else { name };
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp(mesh).await).await?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await?;
    Ok(said)
}

fn names(mesh: &mut Mesh, name: &str, hostnames: &[&str], to: &str) {
    let route = Route {
        hostnames: hostnames.iter().map(|name| Hostname::parse(name).unwrap()).collect(),
        ..crate::web::route(name, RouteKind::Tls, vec![rule(prefix("/"), &[(to, 1)])])
    };
    attach_route(mesh, route, None);
}

async fn tls_goes_by_server_name_and_is_not_ended(mut mesh: Mesh) {
    backend(&mut mesh, "v1", 8081, AppProtocol::Tls);
    backend(&mut mesh, "v2", 8082, AppProtocol::Tls);
    let mut mesh = mesh.with_both().await;
    let peer = |port| mesh.world.peer_at(port);
    let _servers = [
        Named::start(&mesh.world.peer, peer(8080), "db"),
        Named::start(&mesh.world.peer, peer(8081), "v1"),
        Named::start(&mesh.world.peer, peer(8082), "v2"),
    ];
    names(&mut mesh, "exact", &["Cart.shop.example"], "v1");
    names(&mut mesh, "wide", &["*.example"], "v2");
    names(&mut mesh, "narrow", &["*.shop.example"], "db");
    for (name, server) in [
        ("cart.shop.example", "v1"),
        ("CART.shop.example", "v1"),
        ("pay.shop.example", "db"),
        ("a.b.shop.example", "db"),
        ("shop.example", "v2"),
    ] {
        assert_eq!(asked(&mesh, name).await.unwrap(), server, "{name}");
    }
    mesh.log
        .shows(&[
            "connection complete",
            "\"server_name\":\"cart.shop.example\"",
            "\"route\":\"TLSRoute/shop/exact\"",
            "\"backend\":\"shop/v1:80\"",
        ])
        .await;
    for name in ["example", "elsewhere.org", ""] {
        assert!(asked(&mesh, name).await.is_err(), "{name}");
    }
    mesh.log.shows(&["connection failed", "RouteNotFound", "\"server_name\":\"elsewhere.org\""]).await;
    mesh.log.shows(&["connection failed", "RouteNotFound", "no server name"]).await;
    names(&mut mesh, "any", &[], "v2");
    for name in ["elsewhere.org", ""] {
        assert_eq!(asked(&mesh, name).await.unwrap(), "v2", "{name}");
    }
    // Without a tunnel too.
    mesh.builder.upsert_workload(Workload {
        tunnel: culvert_node_proxy::state::model::TunnelProtocol::Plaintext,
        ..mesh.db.clone()
    });
    mesh.publish();
    assert_eq!(asked(&mesh, "cart.shop.example").await.unwrap(), "v1");
}

fn hello(name: &str) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![vec![b'a'; 100]];
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

fn in_records_of(hello: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[0x16, 0x03, 0x01], &length[..], part].concat()
    };
    hello[5..].chunks(size).flat_map(record).collect()
}

/// The backend sends back what it gets.
async fn a_client_hello_in_pieces_arrives_as_it_was(mut mesh: Mesh) {
    backend(&mut mesh, "v1", 8081, AppProtocol::Tls);
    let mut mesh = mesh.with_both().await;
    let _application = Application::start(&mesh.world.peer, mesh.world.peer_at(8081));
    names(&mut mesh, "exact", &["cart.shop.example"], "v1");
    let hello = hello("cart.shop.example");
    assert!(hello.len() > 1536, "no post-quantum key share");
    for (bytes, pieces) in [
        (hello.clone(), hello.len()),
        // Byte by byte.
        (hello.clone(), 1),
        (in_records_of(&hello, 1), 1000),
        (in_records_of(&hello, 100), 37),
        // What follows the ClientHello is not waited for, and not lost.
        ([hello.clone(), b"\x17\x03\x03\x00\x05early".to_vec()].concat(), 600),
    ] {
        let mut client = tcp(&mesh).await;
        client.set_nodelay(true).unwrap();
        for piece in bytes.chunks(pieces) {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        client.shutdown().await.unwrap();
        let mut echoed = Vec::new();
        tokio::time::timeout(Duration::from_secs(20), client.read_to_end(&mut echoed))
            .await
            .unwrap()
            .unwrap();
        let greeting = format!("client {}\n", mesh.world.pod_ip).into_bytes();
        assert!(echoed == [greeting, bytes].concat(), "pieces of {pieces}: {} bytes", echoed.len());
    }
}

async fn what_is_no_client_hello_is_reset(mut mesh: Mesh) {
    backend(&mut mesh, "v1", 8081, AppProtocol::Tls);
    let mut mesh = mesh.with_both().await;
    let application = Application::start(&mesh.world.peer, mesh.world.peer_at(8081));
    names(&mut mesh, "any", &[], "v1");
    let hello = hello("cart.shop.example");
    // A message of 60,000 bytes, of which what is sent is a part.
    let mut long = vec![0x16, 0x03, 0x01, 0x3f, 0xff, 1, 0, 0xea, 0x60];
    long.resize(5 + 0x3fff, 0);
    long.extend_from_slice(&[0x16, 0x03, 0x01, 0x3f, 0xff]);
    long.resize(17 << 10, 0);
    for (bytes, reason) in [
        (&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], "ProtocolMismatch"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "ProtocolMismatch"),
        (b"\x00\x01\x02", "ProtocolMismatch"),
        (b"\x16\x03\x01\x00\x05hello", "ProtocolMismatch"),
        (&long, "HeadersTooLarge"),
        (&hello[..100], "RequestHeaderTimeout"),
        (b"", "RequestHeaderTimeout"),
    ] {
        let before = mesh.log.count(&["connection failed", reason]);
        let mut client = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
        // Perhaps it is reset before all of it is sent.
        let _ = client.stream.write_all(bytes).await;
        client.is_reset().await;
        mesh.log.shows_more_than(before, &["connection failed", reason]).await;
    }
    // It ends in the middle, or says nothing at all.
    let mut client = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
    client.say(&hello[..100]).await;
    client.stream.get_mut().shutdown().await.unwrap();
    client.is_reset().await;
    mesh.log.shows(&["connection failed", "ProtocolMismatch", "in the middle"]).await;
    let mut client = Client::connect(&mesh.world.pod, mesh.vip(80)).await;
    client.stream.get_mut().shutdown().await.unwrap();
    assert_eq!(client.line().await.unwrap(), "");
    assert_eq!(application.count(), 0, "no backend was dialled");
}
