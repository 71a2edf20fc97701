//! The life of a pod, from the enrolment socket to its end.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use culvert_api::enrolment::{Reply, Request, recv_packet, send_packet};
use culvert_node_proxy::pods::Phase;
use culvert_node_proxy::state::model::{Enrolment, PortRange};
use futures::FutureExt;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::node::{Home, Node, pod_ref, settings, snapshot, without_pod};
use crate::traffic::{Connection, Server, assert_closed};
use crate::world::{World, new_netns};

pub const ALL: &[(&str, crate::Case)] = &[
    ("an_add_is_answered_when_it_is_decided", |world| an_add_is_answered_when_it_is_decided(world).boxed()),
    ("without_a_certificate_the_pod_waits", |world| without_a_certificate_the_pod_waits(world).boxed()),
    ("labels_come_and_go_on_a_running_pod", |world| labels_come_and_go_on_a_running_pod(world).boxed()),
    ("a_label_that_comes_back_ends_the_leaving", |world| {
        a_label_that_comes_back_ends_the_leaving(world).boxed()
    }),
    ("a_restart_finds_the_pod_again", |world| a_restart_finds_the_pod_again(world).boxed()),
    ("flushed_rules_come_back_and_settings_change", |world| {
        flushed_rules_come_back_and_settings_change(world).boxed()
    }),
    ("many_connections_survive_a_flush", |world| many_connections_survive_a_flush(world).boxed()),
    ("pods_go_with_and_without_a_word", |world| pods_go_with_and_without_a_word(world).boxed()),
    ("nonsense_is_answered_as_such", |world| nonsense_is_answered_as_such(world).boxed()),
];

async fn an_add_is_answered_when_it_is_decided(world: World) {
    let home = Home::new().await;
    let path = home.bind(&world.pod, "pod");
    let mut node = Node::start(&home, &world, without_pod());
    let answer = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        node.snapshots.publish(snapshot(&world, Enrolment::NotEnrolled, settings()));
    };
    let (reply, ()) = tokio::join!(node.add(&world, &path), answer);
    assert_eq!(reply, Reply::NotEnrolled);
    node.phase(Phase::NotEnrolled).await;

    node.snapshots.publish(snapshot(&world, Enrolment::Enrolled, settings()));
    assert_eq!(
        node.phase(Phase::Enrolled).await.identity,
        "spiffe://cluster.local/ns/shop/sa/cart".parse().ok()
    );
    assert_eq!(node.add(&world, &path).await, Reply::Enrolled, "the same again");

    let _application = Server::start(&world.pod, world.pod_at(8080));
    let mut inbound = Connection::open(&world.peer, world.pod_at(8080)).await.expect("permissive");
    assert_eq!(inbound.greeting, format!("client {}", world.peer_ip));
    inbound.check("inbound").await;
    assert_eq!(node.carried(), 1);
}

async fn without_a_certificate_the_pod_waits(world: World) {
    let home = Home::new().await;
    let path = home.bind(&world.pod, "pod");
    home.ca.up.store(false, Ordering::Relaxed);
    let mut node = Node::start(&home, &world, snapshot(&world, Enrolment::Enrolled, settings()));
    let Reply::Wait { component, message, .. } = node.add(&world, &path).await else {
        panic!("the pod may not start")
    };
    assert_eq!(component, "culvert-ca");
    assert!(message.contains("the CA of the test is down"), "{message}");
    node.phase(Phase::Waiting).await;
    home.ca.up.store(true, Ordering::Relaxed);
    assert_eq!(node.add(&world, &path).await, Reply::Enrolled);

    let unknown = Node::start(&Home::new().await, &world, without_pod());
    let Reply::Wait { component, .. } = unknown.add(&world, &path).await else {
        panic!("nobody knows the pod")
    };
    assert_eq!(component, "culvert-controller");
}

async fn labels_come_and_go_on_a_running_pod(world: World) {
    let home = Home::new().await;
    let path = home.bind(&world.pod, "pod");
    let _application = Server::start(&world.pod, world.pod_at(8080));
    let outside = Server::start(&world.peer, world.peer_at(9000));
    let mut node = Node::start(&home, &world, snapshot(&world, Enrolment::NotEnrolled, settings()));
    assert_eq!(node.add(&world, &path).await, Reply::NotEnrolled);
    let mut old_in = Connection::open(&world.peer, world.pod_at(8080)).await.expect("before");
    let old_out = Connection::open(&world.pod, world.peer_at(9000)).await.expect("before");

    node.snapshots.publish(snapshot(&world, Enrolment::Enrolled, settings()));
    let report = node.phase(Phase::Enrolled).await;
    assert_eq!(report.uncaptured_connections, 2);
    old_in.check("older than the label").await;
    let mut inbound = Connection::open(&world.peer, world.pod_at(8080)).await.expect("captured");
    let mut outbound = Connection::open(&world.pod, world.peer_at(9000)).await.expect("captured");
    assert_eq!(node.carried(), 2);
    assert_eq!(outside.count(), 2, "passed through");
    drop(old_out);
    node.reported("one has ended", |report| report.uncaptured_connections == 1).await;

    node.snapshots.publish(snapshot(&world, Enrolment::Leaving, settings()));
    node.phase(Phase::Leaving).await;
    let during = Connection::open(&world.pod, world.peer_at(9000)).await.expect("captured still");
    assert_eq!(node.carried(), 3);
    drop(during);
    node.snapshots.publish(snapshot(&world, Enrolment::NotEnrolled, settings()));
    node.reported("draining", |report| report.message.contains("ending")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let direct = Connection::open(&world.pod, world.peer_at(9000)).await.expect("not captured");
    assert!(node.carried() <= 2, "a new connection is not captured");
    for (connection, what) in [(&mut inbound, "captured in"), (&mut outbound, "captured out")] {
        connection.check(what).await;
    }
    drop((inbound, outbound));
    node.phase(Phase::NotEnrolled).await;
    old_in.check("older than all").await;
    drop(direct);
    let again = Connection::open(&world.peer, world.pod_at(8080)).await.expect("not captured");
    assert_eq!((again.greeting, node.carried()), (format!("client {}", world.peer_ip), 0));
}

async fn a_label_that_comes_back_ends_the_leaving(world: World) {
    let home = Home::new().await;
    let path = home.bind(&world.pod, "pod");
    let _application = Server::start(&world.pod, world.pod_at(8080));
    let mut node = Node::start(&home, &world, snapshot(&world, Enrolment::Enrolled, settings()));
    assert_eq!(node.add(&world, &path).await, Reply::Enrolled);
    let mut captured = Connection::open(&world.peer, world.pod_at(8080)).await.expect("captured");
    for state in [Enrolment::Leaving, Enrolment::NotEnrolled] {
        node.snapshots.publish(snapshot(&world, state, settings()));
        node.phase(Phase::Leaving).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.snapshots.publish(snapshot(&world, Enrolment::Enrolled, settings()));
        node.phase(Phase::Enrolled).await;
        captured.check("through the change of mind").await;
        let before = node.carried();
        let _new = Connection::open(&world.peer, world.pod_at(8080)).await.expect("captured");
        assert_eq!(node.carried(), before + 1);
    }
}

async fn a_restart_finds_the_pod_again(world: World) {
    let home = Home::new().await;
    let path = home.bind(&world.pod, "pod");
    let application = Server::start(&world.pod, world.pod_at(8080));
    let mut before = Connection::open(&world.peer, world.pod_at(8080)).await.expect("before");
    let node = Node::start(&home, &world, snapshot(&world, Enrolment::Enrolled, settings()));
    assert_eq!(node.add(&world, &path).await, Reply::Enrolled);
    Connection::open(&world.peer, world.pod_at(8080)).await.expect("captured");
    node.kill().await;
    let seen = application.count();
    assert_closed(&world.peer, world.pod_at(8080), "while the node proxy is down").await;
    assert_eq!(application.count(), seen);

    home.ca.up.store(false, Ordering::Relaxed);
    let mut node = Node::start(&home, &world, without_pod());
    let report = node.phase(Phase::Enrolled).await;
    assert_eq!(report.uncaptured_connections, 1, "peers are not told plaintext meanwhile");
    assert_closed(&world.peer, world.pod_at(8080), "before the kept state is there").await;
    node.snapshots.publish(snapshot(&world, Enrolment::Enrolled, settings()));
    home.ca.up.store(true, Ordering::Relaxed);
    node.reported("certified again", |report| report.phase == Phase::Enrolled && report.identity.is_some())
        .await;
    let again = Connection::open(&world.peer, world.pod_at(8080)).await.expect("captured again");
    assert_eq!((again.greeting.clone(), node.carried()), (format!("client {}", world.peer_ip), 1));
    before.check("older than everything").await;
}

async fn flushed_rules_come_back_and_settings_change(world: World) {
    let home = Home::new().await;
    let path = home.bind(&world.pod, "pod");
    let outside = Server::start(&world.peer, world.peer_at(9000));
    let node = Node::start(&home, &world, snapshot(&world, Enrolment::Enrolled, settings()));
    assert_eq!(node.add(&world, &path).await, Reply::Enrolled);
    let mut captured = Connection::open(&world.pod, world.peer_at(9000)).await.expect("captured");
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.flush();
    tokio::time::sleep(Duration::from_millis(200)).await;
    captured.check("captured before the flush").await;
    let again = Connection::open(&world.pod, world.peer_at(9000)).await.expect("captured again");
    assert_eq!(node.carried(), 2);
    let metrics = node.telemetry.scrape().expect("metrics");
    let repairs =
        metrics.lines().find(|line| line.starts_with("culvert_rule_repairs_total{result=\"success\"}"));
    assert!(repairs.is_some_and(|line| !line.ends_with(" 0")), "{repairs:?}");

    let mut excluding = settings();
    excluding.exclude_outbound_ports = vec![PortRange { first: 9000, last: 9000 }];
    node.snapshots.publish(snapshot(&world, Enrolment::Enrolled, excluding));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let direct = Connection::open(&world.pod, world.peer_at(9000)).await.expect("excluded");
    assert_eq!(node.carried(), 2, "not captured");
    captured.check("captured before the exclusion").await;
    assert_eq!(outside.count(), 3);
    drop((again, direct));
}

async fn many_connections_survive_a_flush(world: World) {
    let home = Home::new().await;
    let path = home.bind(&world.pod, "pod");
    let _application = Server::start(&world.pod, world.pod_at(8080));
    let _outside = Server::start(&world.peer, world.peer_at(9000));
    let node = Node::start(&home, &world, snapshot(&world, Enrolment::Enrolled, settings()));
    assert_eq!(node.add(&world, &path).await, Reply::Enrolled);
    let mut connections = Vec::new();
    for _ in 0..200 {
        connections.push(Connection::open(&world.pod, world.peer_at(9000)).await.expect("captured"));
        connections.push(Connection::open(&world.peer, world.pod_at(8080)).await.expect("captured"));
    }
    assert_eq!(node.carried(), 400);
    for _ in 0..2 {
        for connection in &mut connections {
            connection.check("one of many").await;
        }
        // Packets that are under way while the rules are missing go astray: let the last acknowledgements pass.
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.flush();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    for connection in &mut connections {
        connection.check("one of many, after the flushes").await;
    }
}

async fn pods_go_with_and_without_a_word(mut world: World) {
    let home = Home::new().await;
    let path = home.bind(&world.pod, "pod");
    let mut node = Node::start(&home, &world, snapshot(&world, Enrolment::Enrolled, settings()));
    assert_eq!(node.add(&world, &path).await, Reply::Enrolled);
    let remove = Request::Remove { pod: pod_ref() };
    assert_eq!(node.call(remove.clone(), None).await, Reply::Removed);
    assert!(node.workers.pods().is_empty());
    assert_eq!(node.call(remove, None).await, Reply::Removed, "unknown pods are no error");

    assert_eq!(node.add(&world, &path).await, Reply::Enrolled, "back again");
    let old = std::mem::replace(&mut world.pod, std::sync::Arc::new(new_netns()));
    let second = home.bind(&world.pod, "second");
    assert_eq!(node.add(&world, &second).await, Reply::Enrolled, "the same pod in another namespace");
    assert_eq!(node.workers.pods().len(), 1);
    drop(old);

    node.snapshots.publish(without_pod());
    Home::unbind(&second);
    node.forgotten().await;
    assert!(node.workers.pods().is_empty());
    let kept = std::fs::read_to_string(home.path("state/pods.json")).expect("the kept list");
    assert_eq!(kept, "[]");
}

async fn nonsense_is_answered_as_such(world: World) {
    let home = Home::new().await;
    let path = home.bind(&world.pod, "pod");
    let node = Node::start(&home, &world, snapshot(&world, Enrolment::NotEnrolled, settings()));
    let add =
        |path: &std::path::Path| Request::Add { pod: pod_ref(), netns_path: path.into(), addresses: vec![] };
    let is_invalid = |reply: Reply| matches!(reply, Reply::Invalid { .. });
    assert!(is_invalid(node.call(add(&path), None).await), "no descriptor");
    assert!(
        is_invalid(node.call(add(&path), Some(world.peer.clone())).await),
        "another namespace than the path's"
    );
    let own = culvert_node_proxy::intercept::Netns::home().expect("home");
    let own_path = home.bind(&own, "own");
    assert!(is_invalid(node.call(add(&own_path), Some(own.into())).await), "the proxy's own namespace");

    let path_of_socket = home.path("enrolment.sock");
    let talk = move || {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .expect("a socket");
        rustix::net::connect(&socket, &SocketAddrUnix::new(&path_of_socket).expect("a path"))
            .expect("connected");
        let file = std::fs::File::open("/dev/null").expect("a file");
        for packet in [&b"{"[..], b"[]", br#"{"op":"dance"}"#, &[b' '; 16 * 1024]] {
            send_packet(socket.as_fd(), packet, Some(file.as_fd())).expect("sent");
            let (reply, _) = recv_packet(socket.as_fd()).expect("an answer");
            let reply: Reply = serde_json::from_slice(&reply).expect("a reply");
            assert!(matches!(reply, Reply::Invalid { .. }), "{reply:?}");
        }
        let too_long = rustix::net::send(&socket, &[b' '; 20 * 1024], rustix::net::SendFlags::empty());
        assert_eq!(too_long, Ok(20 * 1024));
        let (reply, _) = recv_packet(socket.as_fd()).expect("an answer");
        assert!(String::from_utf8_lossy(&reply).contains("invalid"));
    };
    tokio::task::spawn_blocking(talk).await.expect("the talk ends");
    assert_eq!(node.add(&world, &path).await, Reply::NotEnrolled, "it still works");
}
