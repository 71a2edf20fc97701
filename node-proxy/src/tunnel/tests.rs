use culvert_identity::testing::TestAuthority;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::task::{LocalSet, spawn_local};

use super::dial::{Opened, Target, open};
use super::server::{Refused, accept_on};
use super::testing::{TIMEOUTS, active, address, limits};
use super::*;

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/web";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/db";

async fn shake_hands(
    client: &crate::identity::ActiveCertificate,
    server: &crate::identity::ActiveCertificate,
    expected: &str,
) -> (Result<Opened, TunnelError>, Result<Identity, Refused>) {
    let (near, far) = duplex(1 << 16);
    let target = Target { address: address(), identity: expected.parse().unwrap() };
    let dial = Box::pin(async {
        let opened = open(near, client, &target, TIMEOUTS, limits()).await;
        if let Ok(opened) = opened {
            let Opened { sender, window, retire_at, driver } = opened;
            spawn_local(driver);
            return Ok(Opened { sender, window, retire_at, driver: Box::pin(async { Ok(()) }) });
        }
        opened
    });
    let accept =
        Box::pin(async { accept_on(far, server, TIMEOUTS, 10).await.map(|(_, identity, _)| identity) });
    let both = Box::pin(async { tokio::join!(dial, accept) });
    LocalSet::new().run_until(both).await
}

#[tokio::test]
async fn both_ends_know_each_other_and_the_tunnel_ends_before_the_certificates() {
    let ca = TestAuthority::new("one");
    let (client, server) = (active(&ca, &ca, CLIENT), active(&ca, &ca, SERVER));
    let (opened, identity) = shake_hands(&client, &server, SERVER).await;
    assert_eq!(identity.unwrap().uri(), CLIENT);
    let left = opened.unwrap().retire_at - Instant::now();
    let life = testing::lifetime(&client);
    assert!(left < life && left > life / 2, "{left:?} of {life:?}");
}

#[tokio::test]
async fn another_identity_than_expected_is_refused_before_a_byte_is_sent() {
    let ca = TestAuthority::new("one");
    let (client, server) = (active(&ca, &ca, CLIENT), active(&ca, &ca, SERVER));
    let (opened, accepted) = shake_hands(&client, &server, CLIENT).await;
    let error = opened.map(drop).unwrap_err();
    assert_eq!(error.reason(), Reason::PeerIdentity);
    assert!(error.to_string().contains(SERVER), "{error}");
    assert!(matches!(accepted, Err(Refused::Http2(_))), "no preface may have come: {accepted:?}");
}

#[tokio::test]
async fn strangers_are_refused_by_either_end() {
    let (ours, theirs) = (TestAuthority::new("ours"), TestAuthority::new("theirs"));
    let (client, server) = (active(&ours, &ours, CLIENT), active(&ours, &ours, SERVER));
    let stranger = active(&theirs, &ours, SERVER);
    let (opened, _) = shake_hands(&client, &stranger, SERVER).await;
    assert_eq!(opened.map(drop).unwrap_err().reason(), Reason::TlsHandshake);

    let stranger = active(&theirs, &ours, CLIENT);
    let (_, accepted) = shake_hands(&stranger, &server, SERVER).await;
    assert_eq!(accepted.unwrap_err().reason(), Reason::TlsHandshake);

    let foreign = active(&ours, &ours, "spiffe://elsewhere/ns/shop/sa/web");
    let (_, accepted) = shake_hands(&foreign, &server, SERVER).await;
    assert_eq!(accepted.unwrap_err().reason(), Reason::TlsHandshake);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_goes_silent_at_any_step_is_given_up() {
    let ca = TestAuthority::new("one");
    let (client, server) = (active(&ca, &ca, CLIENT), active(&ca, &ca, SERVER));
    let target = Target { address: address(), identity: SERVER.parse().unwrap() };

    let (near, _silent) = duplex(1 << 16);
    let late = open(near, &client, &target, TIMEOUTS, limits()).await.map(drop);
    assert!(matches!(late, Err(TunnelError::TlsTimeout { .. })));

    let (mut silent, far) = duplex(1 << 16);
    silent.write_all(b"\x16\x03").await.unwrap();
    let late = accept_on(far, &server, TIMEOUTS, 10).await.map(drop);
    assert!(matches!(late, Err(Refused::TlsTimeout(_))));

    // TLS, then nothing: no preface.
    let (near, far) = duplex(1 << 16);
    let connector = tokio_rustls::TlsConnector::from(client.client.clone());
    let tls = async {
        let mut stream = connector.connect(culvert_identity::tls::no_server_name(), near).await.unwrap();
        stream.flush().await.unwrap();
        let mut buffer = Vec::new();
        let _ = stream.read_to_end(&mut buffer).await;
    };
    let (late, ()) = tokio::join!(async { accept_on(far, &server, TIMEOUTS, 10).await.map(drop) }, tls);
    assert!(matches!(late, Err(Refused::Http2Timeout(_))), "{late:?}");
}

#[tokio::test]
async fn garbage_is_refused() {
    let ca = TestAuthority::new("one");
    let server = active(&ca, &ca, SERVER);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0xff; 3], b""] {
        let (mut near, far) = duplex(1 << 16);
        near.write_all(garbage).await.unwrap();
        near.shutdown().await.unwrap();
        let refused = accept_on(far, &server, TIMEOUTS, 10).await.map(drop).unwrap_err();
        assert_eq!(refused.reason(), Reason::TlsHandshake, "{garbage:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_retires_before_the_first_certificate_ends() {
    let now = SystemTime::now();
    let after = |seconds| retire_at(now, now + Duration::from_secs(seconds)) - Instant::now();
    assert_eq!(after(86400), Duration::from_secs(85800));
    assert_eq!(after(100), Duration::from_secs(90));
    assert_eq!(retire_at(now, now - Duration::from_secs(1)), Instant::now());
}
