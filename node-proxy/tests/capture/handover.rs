//! One node proxy takes over from another: sockets, what waits in them, and who looks after the pod.

use std::time::Duration;

use culvert_api::enrolment::{Reply, Request};
use culvert_node_proxy::pods::Phase;
use culvert_node_proxy::state::model::Enrolment;
use futures::FutureExt;

use crate::node::{Home, Node, Successor, gateway_snapshot, pod_ref, settings, snapshot};
use crate::traffic::{Connection, Server, connect};
use crate::world::World;

pub const ALL: &[(&str, crate::Case)] = &[
    ("nobody_who_waits_is_lost", |world| nobody_who_waits_is_lost(world).boxed()),
    ("a_successor_that_dies_changes_nothing", |world| a_successor_that_dies_changes_nothing(world).boxed()),
    ("the_successor_looks_after_the_pod", |world| the_successor_looks_after_the_pod(world).boxed()),
    ("ports_of_a_gateway_are_handed_over", |world| ports_of_a_gateway_are_handed_over(world).boxed()),
    ("certificates_are_there_before_the_pods", |world| certificates_are_there_before_the_pods(world).boxed()),
];

async fn enrolled(home: &Home, world: &World) -> Node {
    let path = home.bind(&world.pod, "pod");
    let node = Node::start(home, world, snapshot(world, Enrolment::Enrolled, settings()));
    node.give(home);
    assert_eq!(node.add(world, &path).await, Reply::Enrolled);
    node
}

async fn nobody_who_waits_is_lost(world: World) {
    let home = Home::new().await;
    let old = enrolled(&home, &world).await;
    let outside = Server::start(&world.peer, world.peer_at(9000));
    let mut before = Connection::open(&world.pod, world.peer_at(9000)).await.expect("captured");
    let mut new = Successor::start(&home, &world, snapshot(&world, Enrolment::Enrolled, settings()));
    let taking = new.take(&home).await;
    // The old process serves until it is told otherwise.
    let mut meanwhile = Connection::open(&world.pod, world.peer_at(9000)).await.expect("captured");
    assert_eq!(old.carried(), 2);
    taking.confirm(new.last_gone.clone()).await.expect("handed over");
    let waiting: Vec<_> =
        (0..50).map(|_| connect(&world.pod, world.peer_at(9000)).expect("a socket")).collect();
    // Established by the kernel, and nobody's yet: neither process accepts.
    let waiting = futures::future::try_join_all(waiting).await.expect("connections are taken by the kernel");
    assert_eq!((old.carried(), outside.count()), (2, 2));
    let node = new.begin();
    for stream in waiting {
        let mut connection = Connection::greeted(stream).await.expect("served by the new process");
        connection.check("waited").await;
    }
    before.check("accepted before").await;
    meanwhile.check("accepted by the old process while it was being asked").await;
    assert_eq!(old.carried(), 2);
    let after = Connection::open(&world.pod, world.peer_at(9000)).await.expect("captured");
    assert!(node.carried() >= 1);
    drop((before, meanwhile, after));
}

async fn a_successor_that_dies_changes_nothing(world: World) {
    let home = Home::new().await;
    let mut old = enrolled(&home, &world).await;
    let _outside = Server::start(&world.peer, world.peer_at(9000));
    for _ in 0..2 {
        let mut new = Successor::start(&home, &world, snapshot(&world, Enrolment::Enrolled, settings()));
        let taking = new.take(&home).await;
        drop((taking, new));
        let mut open = Connection::open(&world.pod, world.peer_at(9000)).await.expect("captured");
        open.check("the old process serves").await;
        assert_eq!(old.carried(), 1);
        drop(open);
        old.idle().await;
    }
    world.flush();
    old.repaired().await;
    let call = Request::Remove { pod: pod_ref() };
    assert_eq!(old.call(call, None).await, Reply::Removed, "and the enrolment socket is its own");
    old.forgotten().await;
}

async fn the_successor_looks_after_the_pod(world: World) {
    let home = Home::new().await;
    let old = enrolled(&home, &world).await;
    let _outside = Server::start(&world.peer, world.peer_at(9000));
    let mut before = Connection::open(&world.pod, world.peer_at(9000)).await.expect("captured");
    let mut new = Successor::start(&home, &world, snapshot(&world, Enrolment::Enrolled, settings()));
    let taking = new.take(&home).await;
    taking.confirm(new.last_gone.clone()).await.expect("handed over");
    let mut node = new.begin();
    // As it says by itself, not what it found.
    node.reported("enrolled", |report| report.phase == Phase::Enrolled && report.message.is_empty()).await;
    let kept = std::fs::metadata(home.path("state").join("pods.json")).expect("pods.json");
    world.flush();
    node.repaired().await;
    assert_eq!(old.repairs(), 0, "rules are the new process's");
    before.check("carried by the old one").await;
    // What is wanted of the pod is followed by both, and only one acts.
    for enrolment in [Enrolment::Leaving, Enrolment::NotEnrolled] {
        for of in [&old, &node] {
            of.snapshots.publish(snapshot(&world, enrolment, settings()));
        }
        node.phase(Phase::Leaving).await;
    }
    node.reported("draining", |report| report.message.contains("ending")).await;
    before.check("the rules stay for what the old process carries").await;
    drop(before);
    old.idle().await;
    old.kill().await;
    node.phase(Phase::NotEnrolled).await;
    let now = std::fs::metadata(home.path("state").join("pods.json")).expect("pods.json");
    assert!(now.modified().expect("a time") >= kept.modified().expect("a time"));
}

async fn ports_of_a_gateway_are_handed_over(world: World) {
    let home = Home::new().await;
    let path = home.bind(&world.pod, "pod");
    let with = || gateway_snapshot(&world, Enrolment::Enrolled, &[("a", 80), ("b", 8000)]);
    let mut old = Node::start(&home, &world, with());
    old.give(&home);
    assert_eq!(old.add(&world, &path).await, Reply::Enrolled);
    old.reported("open", |report| {
        report.listeners.len() == 2 && report.listeners.values().all(Option::is_none)
    })
    .await;
    let mut new = Successor::start(&home, &world, with());
    let taking = new.take(&home).await;
    taking.confirm(new.last_gone.clone()).await.expect("handed over");
    let waiting =
        connect(&world.peer, world.pod_at(8000)).expect("a socket").await.expect("taken by the kernel");
    let mut node = new.begin();
    let answered = tokio::time::timeout(Duration::from_secs(10), crate::gateway::status_on(waiting));
    assert_eq!(answered.await.expect("an answer"), Some(404));
    node.reported("open", |report| {
        report.listeners.len() == 2 && report.listeners.values().all(Option::is_none)
    })
    .await;
}

async fn certificates_are_there_before_the_pods(world: World) {
    use std::sync::atomic::Ordering;
    let home = Home::new().await;
    let old = enrolled(&home, &world).await;
    home.ca.up.store(false, Ordering::Relaxed);
    let new = Successor::start(&home, &world, snapshot(&world, Enrolment::Enrolled, settings()));
    let predecessor = new.find(&home).await;
    let patience = Duration::from_secs(4);
    let without = tokio::time::timeout(patience, predecessor.certificates(new.certificates())).await;
    assert!(without.is_err(), "the old process stays in charge");
    let _outside = Server::start(&world.peer, world.peer_at(9000));
    drop(Connection::open(&world.pod, world.peer_at(9000)).await.expect("and serves"));
    home.ca.up.store(true, Ordering::Relaxed);
    let leases = predecessor.certificates(new.certificates()).await.expect("certificates");
    assert_eq!(leases.len(), 1);
    drop(old);
}
