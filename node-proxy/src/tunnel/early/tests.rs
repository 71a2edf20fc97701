use std::rc::Rc;
use std::time::Duration;

use http::uri::Authority;
use http::{Method, Request, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::super::TunnelError;
use super::super::pool::{Key, Lease, Pool, may_try_new_tunnel};
use super::super::testing::{Serve, TIMEOUTS, address, limits, open, serve_http2};
use super::*;
use crate::state::model::WorkloadUid;
use crate::worker::socket::testing::connected_pair;

/// A stream of a tunnel whose server does this with streams; the server ends when it is told goodbye.
async fn lease(pool: &Pool, serve: impl Serve + Clone) -> Lease {
    let key = Key {
        client: WorkloadUid("client".into()),
        destination: WorkloadUid("destination".into()),
        address: address(),
        generation: 1,
    };
    let dial = || {
        let serve = serve.clone();
        async move {
            let (near, far) = tokio::io::duplex(1 << 20);
            serve_http2(far, 10, Rc::default(), serve);
            open(near).await
        }
    };
    let soon = Instant::now() + Duration::from_secs(5);
    pool.lease(&key, soon, &CancellationToken::new(), dial).await.unwrap()
}

async fn connect(lease: &Lease, early: &EarlyData<'_>) -> Result<(), TunnelError> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = "10.1.0.9:80".parse::<Authority>().unwrap().into();
    lease.connect(address(), request, TIMEOUTS.tunnel_handshake, early).await.map(drop)
}

/// Answers when it has read `of` bytes, and passes on what they were.
fn answer_after(
    of: usize,
    status: StatusCode,
    told: &tokio::sync::mpsc::UnboundedSender<Vec<u8>>,
) -> impl Serve + Clone + use<> {
    let told = told.clone();
    move |request: Request<RecvStream>, mut respond: h2::server::SendResponse<Bytes>| {
        let told = told.clone();
        spawn_local(async move {
            let mut body = request.into_body();
            let mut read = Vec::new();
            while read.len() < of {
                read.extend_from_slice(&body.data().await.unwrap().unwrap());
            }
            told.send(read).unwrap();
            let mut response = Response::new(());
            *response.status_mut() = status;
            let _send = respond.send_response(response, false).unwrap();
        });
    }
}

async fn local(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(async { timeout(Duration::from_secs(20), test).await.expect("in time") }).await;
}

#[tokio::test]
async fn what_a_client_says_is_sent_before_the_answer_and_to_another_server_after_a_refusal() {
    local(async {
        let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
        let (mut client, captured) = connected_pair().await;
        let limits = limits();
        let early = EarlyData::of(&captured, &limits);
        let (one, other) = (Pool::default(), Pool::default());
        let refusing = lease(&one, answer_after(5, StatusCode::SERVICE_UNAVAILABLE, &told)).await;
        let answering = lease(&other, answer_after(5, StatusCode::OK, &told)).await;
        let said = async {
            // After the request is on its way.
            tokio::time::sleep(Duration::from_millis(20)).await;
            client.write_all(b"hello").await.unwrap();
        };
        let (refused, ()) = tokio::join!(connect(&refusing, &early), said);
        let refused = refused.unwrap_err();
        assert!(matches!(refused, TunnelError::Refused { .. }) && refused.may_try_another(), "{refused}");
        connect(&answering, &early).await.unwrap();
        assert_eq!(
            (hears.recv().await.unwrap(), hears.recv().await.unwrap()),
            (b"hello".to_vec(), b"hello".to_vec())
        );
        assert_eq!((early.length(), limits.memory()), (5, 5));
        drop(early);
        assert_eq!(limits.memory(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_says_nothing_or_closes_is_connected_all_the_same() {
    local(async {
        let (told, _hears) = tokio::sync::mpsc::unbounded_channel();
        let limits = limits();
        for closes in [false, true] {
            let (mut client, captured) = connected_pair().await;
            if closes {
                client.shutdown().await.unwrap();
            }
            let pool = Pool::default();
            let lease = lease(&pool, answer_after(0, StatusCode::OK, &told)).await;
            let early = EarlyData::of(&captured, &limits);
            connect(&lease, &early).await.unwrap();
            assert_eq!(early.length(), 0);
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_may_have_delivered_it_is_not_replaced_by_another() {
    local(async {
        let limits = limits();
        let (mut client, captured) = connected_pair().await;
        client.write_all(b"buy one").await.unwrap();
        // Reads it, and resets the stream, as a proxy does that dies.
        let lost = |request: Request<RecvStream>, mut respond: h2::server::SendResponse<Bytes>| {
            spawn_local(async move {
                let mut body = request.into_body();
                body.data().await.unwrap().unwrap();
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
            });
        };
        // Says that it has not looked at the stream.
        let refuses = |_: Request<RecvStream>, mut respond: h2::server::SendResponse<Bytes>| {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        };
        let early = EarlyData::of(&captured, &limits);
        let pool = Pool::default();
        let error = connect(&lease(&pool, lost).await, &early).await.unwrap_err();
        assert!(matches!(error, TunnelError::Unanswered { .. }), "{error}");
        assert!(!error.may_try_another() && !may_try_new_tunnel(&error));
        assert!(error.is_endpoints_fault(), "the next connection is to avoid it");
        let pool = Pool::default();
        let error = connect(&lease(&pool, refuses).await, &early).await.unwrap_err();
        assert!(error.may_try_another() && may_try_new_tunnel(&error), "{error}");
        // Without a word sent, it may be tried again.
        let pool = Pool::default();
        let silent = |_: Request<RecvStream>, mut respond: h2::server::SendResponse<Bytes>| {
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
        };
        let error = connect(&lease(&pool, silent).await, &EarlyData::none()).await.unwrap_err();
        assert!(error.may_try_another(), "{error}");
    })
    .await;
}
