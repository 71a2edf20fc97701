//! The node proxy as a process: what it says of itself while controller and CA come and go, what it keeps, how it ends.

// Helpers of tests are tests: what goes wrong in them fails the test.
#![allow(clippy::unwrap_used)]

mod controller;
mod proxy;
mod search;

use std::time::{Duration, Instant};

use controller::FakeController;
use proxy::{Home, Proxy};

#[tokio::test]
async fn without_a_controller_it_is_alive_but_not_ready_and_says_why() {
    let home = Home::new();
    let mut proxy = Proxy::start(&home, "https://127.0.0.1:1");
    proxy.eventually("/healthz/ready", 503, "no trust bundle").await;
    assert_eq!(proxy.get("/healthz/live").await, (200, "live\n".to_owned()));
    home.write_bundle();
    proxy.eventually("/healthz/ready", 503, "no complete state yet").await;
    assert!(home.enrolment_socket().exists(), "who brings pods is answered meanwhile");
    let (status, metrics) = proxy.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.contains("\nculvert_control_connected 0\n"), "{metrics}");
    assert!(metrics.ends_with("# EOF\n"));
    proxy.eventually("/config?only=controller", 200, "Connection refused").await;
    assert_eq!(proxy.get("/config?only=nothing").await.0, 400);
    assert_eq!(proxy.request("POST", "/log?filter=debug,h2=warn").await.0, 200);
    assert_eq!(proxy.request("POST", "/log?filter=%3D%3D").await.0, 400);
    let started = Instant::now();
    assert_eq!(proxy.terminate().await, Some(0));
    assert!(started.elapsed() < Duration::from_secs(5), "nothing to drain");
}

#[tokio::test]
async fn what_a_controller_said_outlives_controller_and_process() {
    let home = Home::new();
    home.write_bundle();
    let controller = FakeController::start(&home).await;
    let mut proxy = Proxy::start(&home, &controller.url());
    proxy.eventually("/healthz/ready", 200, "ready").await;
    let (_, config) = proxy.get("/config?only=node,workloads,controller").await;
    for part in
        ["\"name\":\"one\"", "\"version\":\"v1\"", "\"stale\":false", "shop/a/a-uid", "\"connected\":true"]
    {
        assert!(config.contains(part), "{part} in {config}");
    }
    controller.stop().await;
    proxy.eventually("/config?only=controller", 200, "\"connected\":false").await;
    assert_eq!(proxy.get("/healthz/ready").await.0, 200, "what is in force stays");
    assert_eq!(proxy.terminate().await, Some(0));

    let mut again = Proxy::start(&home, "https://127.0.0.1:1");
    again.eventually("/healthz/ready", 200, "ready").await;
    let (_, config) = again.get("/config?only=node,workloads").await;
    assert!(config.contains("\"stale\":true") && config.contains("shop/a/a-uid"), "{config}");
    assert!(again.get("/metrics").await.1.contains("\nculvert_snapshot_stale 1\n"));
    again.kill().await;

    let controller = FakeController::start(&home).await;
    let mut confirmed = Proxy::start(&home, &controller.url());
    // Before the kept state is in force nothing is stale either.
    confirmed.eventually("/config?only=node,workloads,controller", 200, "\"connected\":true").await;
    confirmed.eventually("/config?only=workloads", 200, "shop/a/a-uid").await;
    confirmed.eventually("/config?only=node", 200, "\"stale\":false").await;
    assert_eq!(controller.held_at_last().await, 2, "it resumed with what was kept");
    assert_eq!(confirmed.terminate().await, Some(0));
}

#[tokio::test]
async fn a_damaged_kept_state_is_not_served() {
    let home = Home::new();
    home.write_bundle();
    let controller = FakeController::start(&home).await;
    let mut proxy = Proxy::start(&home, &controller.url());
    proxy.eventually("/healthz/ready", 200, "ready").await;
    assert_eq!(proxy.terminate().await, Some(0));
    controller.stop().await;
    home.damage_kept_state();
    let mut again = Proxy::start(&home, "https://127.0.0.1:1");
    again.eventually("/healthz/ready", 503, "no complete state yet").await;
    assert!(again.log().contains("the kept state is not used"), "{}", again.log());
    assert_eq!(again.terminate().await, Some(0));
}

#[tokio::test]
async fn what_it_cannot_do_without_is_named() {
    let home = Home::new();
    home.write_bundle();
    let mut proxy = Proxy::start(&home, "http://not-tls");
    assert_eq!(proxy.ended().await, Some(1));
    assert!(proxy.log().contains("--controller"), "{}", proxy.log());
}
