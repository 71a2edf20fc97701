use std::future::Future;

use http::Method;
use http::uri::Authority;
use tokio::task::{LocalSet, spawn_local};

use super::super::testing::{Dialer, TIMEOUTS, address, open, serve_http2};
use super::*;

fn key() -> Key {
    Key {
        client: WorkloadUid("client".into()),
        destination: WorkloadUid("destination".into()),
        address: address(),
        generation: 1,
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(2)
}

fn request() -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = "10.1.0.9:80".parse::<Authority>().unwrap().into();
    request
}

async fn local(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

async fn lease(pool: &Pool, dialer: &Dialer, streams: u32) -> Result<Lease, TunnelError> {
    pool.lease(&key(), soon(), &CancellationToken::new(), || dialer.dial(streams)).await
}

async fn connect(lease: &Lease) -> Result<(SendStream<Bytes>, RecvStream), TunnelError> {
    lease.connect(address(), request(), TIMEOUTS.tunnel_handshake, &EarlyData::none()).await
}

#[tokio::test]
async fn all_who_wait_share_one_attempt() {
    local(async {
        let (pool, dialer) = (Pool::default(), Dialer::default());
        let leases = futures::future::join_all((0..50).map(|_| lease(&pool, &dialer, 100))).await;
        assert!(leases.iter().all(Result::is_ok));
        assert_eq!((dialer.dials.get(), pool.tunnels()), (1, 1));
        let new = leases.iter().flatten().filter(|lease| lease.carrier == Carrier::New).count();
        assert_eq!(new, 1);
    })
    .await;
}

#[tokio::test]
async fn a_failure_is_shared_too_and_the_next_connection_tries_again() {
    local(async {
        let (pool, dials) = (Pool::default(), Rc::new(Cell::new(0)));
        let fail = || {
            let dials = dials.clone();
            async move {
                dials.set(dials.get() + 1);
                tokio::task::yield_now().await;
                Err(TunnelError::TlsTimeout { to: address(), after: Duration::from_secs(1) })
            }
        };
        let cancel = CancellationToken::new();
        let key = key();
        let waiting = (0..20).map(|_| pool.lease(&key, soon(), &cancel, fail));
        let results = futures::future::join_all(waiting).await;
        assert!(results.iter().all(|result| matches!(result, Err(TunnelError::TlsTimeout { .. }))));
        assert_eq!(dials.get(), 1);
        assert!(lease(&pool, &Dialer::default(), 100).await.is_ok());
        pool.maintain(|_| true);
    })
    .await;
}

#[tokio::test]
async fn the_peers_limit_and_ours_hold_and_streams_given_back_are_used_again() {
    local(async {
        let (pool, dialer) = (Pool::default(), Dialer::default());
        // The peer's limit is known when its settings have come: with the first answer.
        let mut held = Vec::new();
        for _ in 0..TUNNELS_PER_PAIR {
            let first = lease(&pool, &dialer, 2).await.unwrap();
            let stream = connect(&first).await.unwrap();
            held.push((first, stream));
            let second = lease(&pool, &dialer, 2).await.unwrap();
            let stream = connect(&second).await.unwrap();
            held.push((second, stream));
        }
        assert_eq!((dialer.dials.get(), pool.tunnels()), (TUNNELS_PER_PAIR, TUNNELS_PER_PAIR));
        let deadline = Instant::now() + Duration::from_millis(50);
        let full = pool.lease(&key(), deadline, &CancellationToken::new(), || dialer.dial(2)).await;
        assert!(matches!(full, Err(TunnelError::Full { tunnels: TUNNELS_PER_PAIR, .. })));
        let (given_back, waited) = (async { drop(held.pop()) }, lease(&pool, &dialer, 2));
        let ((), waited) = tokio::join!(given_back, waited);
        drop(connect(&waited.unwrap()).await.unwrap());
        assert_eq!(dialer.dials.get(), TUNNELS_PER_PAIR);
    })
    .await;
}

#[tokio::test]
async fn after_goaway_old_streams_go_on_and_new_ones_get_a_new_tunnel() {
    local(async {
        let (pool, dialer) = (Pool::default(), Dialer::default());
        let first = lease(&pool, &dialer, 100).await.unwrap();
        let (mut send, _recv) = connect(&first).await.unwrap();
        dialer.goodbye.notify_one();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let second = lease(&pool, &dialer, 100).await.unwrap();
        assert_eq!((second.carrier, dialer.dials.get(), pool.tunnels()), (Carrier::New, 2, 1));
        drop(connect(&second).await.unwrap());
        send.send_data(Bytes::from_static(b"still here"), false).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        send.reserve_capacity(1);
        assert!(std::future::poll_fn(|cx| send.poll_reset(cx)).now_or_never().is_none());
    })
    .await;
}

#[tokio::test]
async fn an_attempt_goes_on_for_those_who_still_wait() {
    local(async {
        let (pool, dialer) = (Rc::new(Pool::default()), Dialer::default());
        let impatient = {
            let (pool, dialer) = (pool.clone(), dialer.clone());
            spawn_local(async move { lease(&pool, &dialer, 100).await.map(drop) })
        };
        let patient = {
            let (pool, dialer) = (pool.clone(), dialer.clone());
            spawn_local(async move { lease(&pool, &dialer, 100).await.map(drop) })
        };
        tokio::task::yield_now().await;
        impatient.abort();
        patient.await.unwrap().unwrap();
        assert_eq!(dialer.dials.get(), 1);
        pool.maintain(|_| false);
        assert!(pool.entries.borrow().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_pod_fails_who_waits_and_ends_its_tunnels() {
    local(async {
        let (pool, cancel, key) = (Pool::default(), CancellationToken::new(), key());
        let never = || std::future::pending::<Result<Opened, TunnelError>>();
        let waiting = pool.lease(&key, soon(), &cancel, never);
        let (given_up, ()) = tokio::join!(waiting, async { cancel.cancel() });
        assert!(matches!(given_up, Err(TunnelError::GivenUp)));

        let (dialer, cancel) = (Dialer::default(), CancellationToken::new());
        let lease = pool.lease(&key, soon(), &cancel, || dialer.dial(100)).await.unwrap();
        let (mut send, _recv) = connect(&lease).await.unwrap();
        cancel.cancel();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(send.send_data(Bytes::from_static(b"x"), false).is_err());
        assert_eq!(pool.tunnels(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn idle_unwanted_and_aged_tunnels_are_closed_and_used_ones_are_not() {
    local(async {
        let (pool, dialer) = (Pool::default(), Dialer::default());
        drop(lease(&pool, &dialer, 100).await.unwrap());
        tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
        pool.maintain(|_| true);
        assert_eq!(pool.tunnels(), 1);
        let held = lease(&pool, &dialer, 100).await.unwrap();
        tokio::time::sleep(IDLE * 2).await;
        pool.maintain(|_| true);
        assert_eq!(pool.tunnels(), 1, "a tunnel with a stream is not idle");
        drop(held);
        tokio::time::sleep(IDLE).await;
        pool.maintain(|_| true);
        assert!(pool.entries.borrow().is_empty());

        let held = lease(&pool, &dialer, 100).await.unwrap();
        pool.maintain(|key| key.generation != 1);
        assert_eq!(pool.tunnels(), 0, "a tunnel of an old certificate takes no streams");
        drop(connect(&held).await.unwrap());

        let _held = lease(&pool, &dialer, 100).await.unwrap();
        tokio::time::sleep(Duration::from_secs(86400)).await;
        let next = lease(&pool, &dialer, 100).await.unwrap();
        assert_eq!(next.carrier, Carrier::New, "the certificate is about to end");
    })
    .await;
}

#[tokio::test]
async fn a_thousand_resets_do_not_end_a_shared_tunnel() {
    local(async {
        let (pool, dialer) = (Pool::default(), Dialer::default());
        let kept = lease(&pool, &dialer, 4096).await.unwrap();
        let _kept_stream = connect(&kept).await.unwrap();
        for _ in 0..20 {
            let mut leases = Vec::new();
            for _ in 0..100 {
                leases.push(lease(&pool, &dialer, 4096).await.unwrap());
            }
            let streams = futures::future::join_all(leases.iter().map(connect)).await;
            for stream in streams {
                let (mut send, _) = stream.unwrap();
                send.send_data(Bytes::from_static(b"never read"), false).unwrap();
                send.send_reset(H2Reason::CANCEL);
            }
        }
        let last = lease(&pool, &dialer, 4096).await.unwrap();
        drop(connect(&last).await.unwrap());
        assert_eq!(dialer.dials.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_refusal_carries_its_status_and_a_late_answer_is_reset() {
    local(async {
        let pool = Pool::default();
        let dial = || async {
            let (near, far) = tokio::io::duplex(1 << 16);
            serve_http2(
                far,
                10,
                Rc::default(),
                |request: Request<RecvStream>, mut respond: h2::server::SendResponse<Bytes>| {
                    if request.uri().port_u16() == Some(80) {
                        let response = http::Response::builder().status(503).body(()).unwrap();
                        respond.send_response(response, true).unwrap();
                    } else {
                        spawn_local(async move {
                            let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                            assert_eq!(reset.unwrap(), H2Reason::CANCEL);
                        });
                    }
                },
            );
            open(near).await
        };
        let lease = pool.lease(&key(), soon(), &CancellationToken::new(), dial).await.unwrap();
        let refused = connect(&lease).await.map(drop).unwrap_err();
        assert!(matches!(refused, TunnelError::Refused { status, .. } if status == 503));
        assert!(refused.may_try_another() && !may_try_new_tunnel(&refused));
        let mut slow = request();
        *slow.uri_mut() = "10.1.0.9:81".parse::<Authority>().unwrap().into();
        let late = lease
            .connect(address(), slow, Duration::from_millis(20), &EarlyData::none())
            .await
            .map(drop)
            .unwrap_err();
        assert!(matches!(late, TunnelError::Http2Timeout { .. }));
    })
    .await;
}
