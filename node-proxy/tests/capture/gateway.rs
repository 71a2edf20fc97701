//! A pod of a Gateway: its listeners are opened, reported, closed.

use std::time::Duration;

use culvert_api::enrolment::{Reply, Request};
use culvert_node_proxy::intercept::Netns;
use culvert_node_proxy::pods::{Phase, PodReport};
use culvert_node_proxy::state::model::Enrolment;
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::node::{Home, Node, gateway_snapshot, pod_ref, settings, snapshot};
use crate::traffic::{Connection, Server, connect};
use crate::world::World;

pub const ALL: &[(&str, crate::Case)] = &[
    ("listeners_are_opened_reported_and_closed", |world| {
        listeners_are_opened_reported_and_closed(world).boxed()
    }),
    ("a_port_in_use_is_reported_and_tried_again", |world| {
        a_port_in_use_is_reported_and_tried_again(world).boxed()
    }),
    ("nothing_is_opened_before_there_is_a_certificate", |world| {
        nothing_is_opened_before_there_is_a_certificate(world).boxed()
    }),
    ("a_restart_opens_the_listeners_again", |world| a_restart_opens_the_listeners_again(world).boxed()),
    ("a_gateway_that_leaves_or_goes_drains", |world| a_gateway_that_leaves_or_goes_drains(world).boxed()),
];

/// What the report says of each listener, by its short name; empty: it is open.
fn states(report: &PodReport) -> Vec<(String, String)> {
    let short = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let states = report.listeners.iter();
    states.map(|(name, failure)| (short(name), failure.clone().unwrap_or_default())).collect()
}

fn open(names: &[&str]) -> Vec<(String, String)> {
    names.iter().map(|name| ((*name).to_owned(), String::new())).collect()
}

async fn dial(netns: &Netns, world: &World, port: u16) -> std::io::Result<TcpStream> {
    connect(netns, world.pod_at(port))?.await
}

/// The status of a request from outside; `None` when there is no answer.
async fn status(world: &World, port: u16) -> Option<u16> {
    let ask = async {
        let mut stream = dial(&world.peer, world, port).await.ok()?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.split(' ').nth(1)?.parse().ok()
    };
    timeout(Duration::from_secs(5), ask).await.ok().flatten()
}

/// A worker may take a moment to let go of a port.
async fn becomes(world: &World, port: u16, wanted: Option<u16>, what: &str) {
    let mut last = None;
    for _ in 0..50 {
        last = status(world, port).await;
        if last == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what}: {last:?}");
}

/// Waits until nobody listens on a port of the pod: whoever gets in before that is reset when it closes.
async fn let_go(world: &World, port: u16) {
    let is_listening = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().and_then(|local| local.rsplit(':').next());
        local == Some(format!("{port:04X}").as_str()) && fields.nth(1) == Some("0A")
    };
    let listened = || {
        let read = |file| std::fs::read_to_string(file).expect("connections");
        let both = read("/proc/thread-self/net/tcp") + &read("/proc/thread-self/net/tcp6");
        both.lines().any(is_listening)
    };
    for _ in 0..1_500 {
        if !world.pod.run(listened).expect("entering") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("port {port} is still listened on");
}

async fn listeners_are_opened_reported_and_closed(world: World) {
    let home = Home::new().await;
    let path = home.bind(&world.pod, "pod");
    let first = [("a", 80), ("b", 80), ("c", 8000)];
    let mut node = Node::start(&home, &world, gateway_snapshot(&world, Enrolment::Enrolled, &first));
    assert_eq!(node.add(&world, &path).await, Reply::Enrolled);
    node.reported("all are open", |report| states(report) == open(&["a", "b", "c"])).await;
    for port in [80, 8000] {
        assert_eq!(status(&world, port).await, Some(404), "{port}: the proxy answers, there is no route");
    }
    let mut kept = dial(&world.peer, &world, 80).await.expect("connected");
    let second = [("a", 80), ("d", 8001)];
    node.snapshots.publish(gateway_snapshot(&world, Enrolment::Enrolled, &second));
    node.reported("b and c are gone", |report| states(report) == open(&["a", "d"])).await;
    assert_eq!(status(&world, 8001).await, Some(404));
    becomes(&world, 8000, None, "captured like any other port, and nobody listens").await;
    kept.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.expect("sent");
    let mut answer = [0; 12];
    kept.read_exact(&mut answer).await.expect("a connection to a port that stays goes on");
    assert_eq!(&answer, b"HTTP/1.1 404");
    world.flush();
    node.reported("as before", |report| states(report) == open(&["a", "d"])).await;
    becomes(&world, 80, Some(404), "rules came back").await;
    node.snapshots.publish(snapshot(&world, Enrolment::Enrolled, settings()));
    node.reported("it is no Gateway's any more", |report| report.listeners.is_empty()).await;
    becomes(&world, 80, None, "closed").await;
}

async fn a_port_in_use_is_reported_and_tried_again(world: World) {
    let home = Home::new().await;
    let path = home.bind(&world.pod, "pod");
    let application = Server::start(&world.pod, world.pod_at(80));
    let listeners = [("a", 80), ("b", 8000)];
    let mut node = Node::start(&home, &world, gateway_snapshot(&world, Enrolment::Enrolled, &listeners));
    assert_eq!(node.add(&world, &path).await, Reply::Enrolled);
    let report = node.reported("b is open", |report| report.listeners.values().any(Option::is_none)).await;
    let states_now = states(&report);
    assert_eq!(states_now[1], ("b".to_owned(), String::new()));
    assert!(states_now[0].1.contains(":80") && states_now[0].1.contains("in use"), "{states_now:?}");
    assert_eq!(status(&world, 8000).await, Some(404));
    let inbound = Connection::open(&world.peer, world.pod_at(80)).await.expect("captured as ever");
    assert_eq!(inbound.greeting, format!("client {}", world.peer_ip));
    assert_eq!(application.count(), 1);
    drop((inbound, application));
    node.reported("a is open once the port is free", |report| states(report) == open(&["a", "b"])).await;
    assert_eq!(status(&world, 80).await, Some(404));
}

async fn nothing_is_opened_before_there_is_a_certificate(world: World) {
    use std::sync::atomic::Ordering;
    let home = Home::new().await;
    let path = home.bind(&world.pod, "pod");
    home.ca.up.store(false, Ordering::Relaxed);
    let listeners = [("a", 80)];
    let mut node = Node::start(&home, &world, gateway_snapshot(&world, Enrolment::Enrolled, &listeners));
    let mut adding = Box::pin(node.add(&world, &path));
    assert!(timeout(Duration::from_secs(1), &mut adding).await.is_err());
    let early = timeout(Duration::from_millis(500), dial(&world.peer, &world, 80)).await;
    assert!(early.is_err(), "clients wait: {early:?}");
    home.ca.up.store(true, Ordering::Relaxed);
    assert_eq!(adding.await, Reply::Enrolled);
    node.reported("open", |report| states(report) == open(&["a"])).await;
    assert_eq!(status(&world, 80).await, Some(404));
}

async fn a_restart_opens_the_listeners_again(world: World) {
    let home = Home::new().await;
    let path = home.bind(&world.pod, "pod");
    let with_listener = || gateway_snapshot(&world, Enrolment::Enrolled, &[("a", 80)]);
    let mut node = Node::start(&home, &world, with_listener());
    assert_eq!(node.add(&world, &path).await, Reply::Enrolled);
    node.reported("open", |report| states(report) == open(&["a"])).await;
    node.kill().await;
    let_go(&world, 80).await;
    let waiting = status(&world, 80);
    let restart = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut node = Node::start(&home, &world, with_listener());
        node.reported("open again", |report| states(report) == open(&["a"])).await;
        node
    };
    let (answered, _node) = tokio::join!(waiting, restart);
    assert_eq!(answered, Some(404), "a client that comes in between waits");
}

async fn a_gateway_that_leaves_or_goes_drains(world: World) {
    let home = Home::new().await;
    let path = home.bind(&world.pod, "pod");
    let listeners = [("a", 80)];
    let mut node = Node::start(&home, &world, gateway_snapshot(&world, Enrolment::Enrolled, &listeners));
    assert_eq!(node.add(&world, &path).await, Reply::Enrolled);
    node.reported("open", |report| states(report) == open(&["a"])).await;

    let mut under_way = begin(&world).await;
    node.snapshots.publish(gateway_snapshot(&world, Enrolment::Leaving, &listeners));
    node.phase(Phase::Leaving).await;
    assert_eq!(status(&world, 80).await, Some(404), "until peers know, everything goes on");
    node.snapshots.publish(gateway_snapshot(&world, Enrolment::NotEnrolled, &listeners));
    node.reported("closed", |report| report.listeners.is_empty()).await;
    becomes(&world, 80, None, "closed").await;
    assert_eq!(end(&mut under_way).await, "HTTP/1.1 404");
    drop(under_way);
    node.phase(Phase::NotEnrolled).await;

    node.snapshots.publish(gateway_snapshot(&world, Enrolment::Enrolled, &listeners));
    node.reported("open again", |report| states(report) == open(&["a"])).await;
    let mut under_way = begin(&world).await;
    let remove = node.call(Request::Remove { pod: pod_ref() }, None);
    let finish = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let Reply::Wait { message, .. } = node.add(&world, &path).await else { panic!("it ends still") };
        assert!(message.contains("ending"), "{message}");
        end(&mut under_way).await
    };
    let (removed, answer) = tokio::join!(remove, finish);
    assert_eq!((removed, answer.as_str()), (Reply::Removed, "HTTP/1.1 404"));
    assert!(node.workers.pods().is_empty());
    assert_eq!(node.add(&world, &path).await, Reply::Enrolled, "back again");
}

/// A connection of which it is not known yet whether it is HTTP.
async fn begin(world: &World) -> TcpStream {
    let mut stream = dial(&world.peer, world, 80).await.expect("connected");
    stream.write_all(b"GE").await.expect("sent");
    tokio::time::sleep(Duration::from_millis(200)).await;
    stream
}

async fn end(stream: &mut TcpStream) -> String {
    stream.write_all(b"T / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    timeout(Duration::from_secs(5), stream.read_to_string(&mut answer))
        .await
        .expect("in time")
        .expect("closed");
    answer.chars().take(12).collect()
}
