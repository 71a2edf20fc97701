use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use super::*;
use crate::testing::{LeafSpec, TestAuthority};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const TILL: &str = "spiffe://cluster.local/ns/shop/sa/till";

fn domains(names: &[&str]) -> Vec<TrustDomain> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

/// Runs a handshake in memory; the error is the first either side found.
fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), Error> {
    let mut client = ClientConnection::new(client, no_server_name()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        feed(&mut server.read_tls(&mut wire.as_slice()), server.process_new_packets().map(|_| ()))?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        feed(&mut client.read_tls(&mut wire.as_slice()), client.process_new_packets().map(|_| ()))?;
    }
    Ok((client, server))
}

fn feed(read: &mut std::io::Result<usize>, processed: Result<(), Error>) -> Result<(), Error> {
    read.as_ref().expect("bytes in memory are read");
    processed
}

fn reason(result: Result<(ClientConnection, ServerConnection), Error>) -> String {
    match result {
        Ok(_) => panic!("the handshake went through"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_lists_of_algorithms_are_these() {
    let provider = provider();
    let suites: Vec<_> = provider.cipher_suites.iter().map(|suite| suite.suite()).collect();
    assert_eq!(
        suites,
        [rustls::CipherSuite::TLS13_AES_128_GCM_SHA256, rustls::CipherSuite::TLS13_AES_256_GCM_SHA384]
    );
    let groups: Vec<_> = provider.kx_groups.iter().map(|group| group.name()).collect();
    assert_eq!(groups, [rustls::NamedGroup::X25519MLKEM768, rustls::NamedGroup::X25519]);
}

#[test]
fn both_sides_know_each_other_after_the_handshake() {
    let authority = TestAuthority::new("root");
    let (cart, till) = (authority.leaf(CART), authority.leaf(TILL));
    let (client, server) = handshake(
        client_config(&cart, &authority.bundle()).unwrap(),
        server_config(&till, &authority.bundle(), &domains(&["cluster.local"])).unwrap(),
    )
    .unwrap();
    assert_eq!(peer(&client).unwrap(), Peer { identity: TILL.parse().unwrap(), not_after: till.not_after() });
    assert_eq!(peer(&server).unwrap(), Peer { identity: CART.parse().unwrap(), not_after: cart.not_after() });
    for connection in [Connection::from(client), Connection::from(server)] {
        assert_eq!(connection.alpn_protocol(), Some(b"h2".as_slice()));
        assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let suite = connection.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        let group = connection.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    }
}

#[test]
fn nobody_is_known_before_the_handshake() {
    let authority = TestAuthority::new("root");
    let config = client_config(&authority.leaf(CART), &authority.bundle()).unwrap();
    let client = ClientConnection::new(config, no_server_name()).unwrap();
    assert_eq!(peer(&client), Err(PeerError::NoCertificate));
}

#[test]
fn a_server_refuses_clients_it_cannot_place() {
    let (authority, stranger) = (TestAuthority::new("root"), TestAuthority::new("stranger"));
    let accepted = domains(&["cluster.local"]);
    let server = server_config(&authority.leaf(TILL), &authority.bundle(), &accepted).unwrap();
    let as_client = |leaf: &WorkloadCertificate| {
        handshake(client_config(leaf, &authority.bundle()).unwrap(), server.clone())
    };

    let foreign = authority.leaf("spiffe://elsewhere/ns/shop/sa/cart");
    assert!(reason(as_client(&foreign)).contains("accepted trust domain"));
    assert!(reason(as_client(&stranger.leaf(CART))).contains("UnknownIssuer"));

    let mut expired = LeafSpec::proper(CART);
    expired.not_before = SystemTime::now() - Duration::from_secs(100);
    expired.not_after = SystemTime::now() - Duration::from_secs(10);
    assert!(reason(as_client(&authority.leaf_of(&expired))).contains("expired"));

    let mut servers_only = LeafSpec::proper(CART);
    servers_only.usages.truncate(1);
    assert!(as_client(&authority.leaf_of(&servers_only)).is_err());

    let anonymous = grpc_client_config(&TILL.parse().unwrap(), &authority.bundle()).unwrap();
    assert!(reason(handshake(anonymous, server.clone())).contains("no certificates"));
    as_client(&authority.leaf(CART)).unwrap();
}

#[test]
fn a_client_refuses_servers_that_are_not_trusted() {
    let (authority, stranger) = (TestAuthority::new("root"), TestAuthority::new("stranger"));
    let client = client_config(&authority.leaf(CART), &authority.bundle()).unwrap();
    let accepted = domains(&["cluster.local"]);
    let as_server = |leaf: &WorkloadCertificate| {
        handshake(client.clone(), server_config(leaf, &authority.bundle(), &accepted).unwrap())
    };
    assert!(reason(as_server(&stranger.leaf(TILL))).contains("UnknownIssuer"));
    let mut clients_only = LeafSpec::proper(TILL);
    clients_only.usages.remove(0);
    assert!(as_server(&authority.leaf_of(&clients_only)).is_err());
    let mut future = LeafSpec::proper(TILL);
    future.not_before = SystemTime::now() + Duration::from_secs(600);
    assert!(reason(as_server(&authority.leaf_of(&future))).contains("not valid yet"));
    as_server(&authority.leaf(TILL)).unwrap();
}

#[test]
fn a_control_plane_server_must_be_exactly_the_expected_one() {
    let authority = TestAuthority::new("root");
    let server = grpc_server_config(&authority.leaf(TILL)).unwrap();
    let expecting =
        |identity: &str| grpc_client_config(&identity.parse().unwrap(), &authority.bundle()).unwrap();
    handshake(expecting(TILL), server.clone()).unwrap();
    assert!(reason(handshake(expecting(CART), server)).contains("the server is"));
}

#[test]
fn old_and_new_roots_overlap() {
    let (old, new) = (TestAuthority::new("root"), TestAuthority::new("root"));
    let both = TrustBundle::from_pem(format!("{}{}", old.pem(), new.pem()).as_bytes()).unwrap();
    let accepted = domains(&["cluster.local"]);
    for (client, server) in [(&old, &new), (&new, &old)] {
        handshake(
            client_config(&client.leaf(CART), &both).unwrap(),
            server_config(&server.leaf(TILL), &both, &accepted).unwrap(),
        )
        .unwrap();
    }
}
