//! Pods that nobody hands over: found by their processes, and believed by their addresses.

use std::os::unix::fs::symlink;
use std::process::{Child, Command};

use culvert_node_proxy::intercept::Netns;
use culvert_node_proxy::pods::Phase;
use culvert_node_proxy::state::model::Enrolment;
use futures::FutureExt;

use crate::node::{Home, Node, POD_UID, settings, snapshot};
use crate::traffic::{Connection, Server, assert_closed};
use crate::world::World;

pub const ALL: &[(&str, crate::Case)] = &[
    ("a_pod_that_ran_before_is_found", |world| a_pod_that_ran_before_is_found(world).boxed()),
    ("a_namespace_without_the_pods_address_is_refused", |world| {
        a_namespace_without_the_pods_address_is_refused(world).boxed()
    }),
    ("of_two_with_the_address_the_bound_one_is_it", |world| {
        of_two_with_the_address_the_bound_one_is_it(world).boxed()
    }),
];

/// A process in a pod's network namespace, shown in the proc directory of a test with control groups of its choice: the real
/// ones need rights over those of the machine (tests/process has them).
struct Process(Child);

impl Process {
    fn start(home: &Home, netns: &Netns, cgroup: &str) -> Self {
        let sleep = || Command::new("sleep").arg("600").spawn();
        let child = netns.run(sleep).expect("entering").expect("sleep runs");
        let real = std::path::Path::new("/proc").join(child.id().to_string());
        let shown = home.path("proc").join(child.id().to_string());
        std::fs::create_dir(&shown).expect("a directory");
        std::fs::copy(real.join("stat"), shown.join("stat")).expect("its start");
        symlink(real.join("ns"), shown.join("ns")).expect("its namespaces");
        std::fs::write(shown.join("cgroup"), format!("0::{cgroup}\n")).expect("its groups");
        Self(child)
    }

    fn netns(&self, home: &Home) -> String {
        home.path("proc").join(self.0.id().to_string()).join("ns/net").display().to_string()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // What cannot be killed any more is gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn of_the_pod() -> String {
    format!("/kubepods/burstable/pod{POD_UID}/0a1b")
}

/// Where the list of pods says that the namespace can be opened again.
fn kept_path(home: &Home) -> String {
    let list = std::fs::read_to_string(home.path("state/pods.json")).expect("the list of pods");
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    list[0]["netns_path"].as_str().unwrap_or_default().to_owned()
}

async fn a_pod_that_ran_before_is_found(world: World) {
    let home = Home::new().await;
    let path = home.bind(&world.pod, "netns/cni-0a1b");
    let _application = Server::start(&world.pod, world.pod_at(8080));
    let mut before = Connection::open(&world.peer, world.pod_at(8080)).await.expect("before");
    let _other = Process::start(&home, &world.peer, "/kubepods/burstable/pod77777777/0a1b");
    let process = Process::start(&home, &world.pod, &of_the_pod());
    let mut node = Node::start(&home, &world, snapshot(&world, Enrolment::Enrolled, settings()));
    assert_eq!(node.phase(Phase::Enrolled).await.uncaptured_connections, 1);
    let mut captured = Connection::open(&world.peer, world.pod_at(8080)).await.expect("captured");
    captured.check("captured").await;
    assert_eq!(node.carried(), 1);
    assert_eq!(kept_path(&home), path.display().to_string(), "the runtime's own name for it");
    node.kill().await;
    assert_closed(&world.peer, world.pod_at(8080), "while the node proxy is down").await;

    std::fs::remove_file(home.path("state/pods.json")).expect("the list is lost");
    let mut node = Node::start(&home, &world, snapshot(&world, Enrolment::Enrolled, settings()));
    node.phase(Phase::Enrolled).await;
    Connection::open(&world.peer, world.pod_at(8080)).await.expect("captured again").check("again").await;
    before.check("older than everything").await;
    node.kill().await;

    // A runtime may bind nothing.
    std::fs::remove_file(home.path("state/pods.json")).expect("the list is lost");
    Home::unbind(&path);
    let mut node = Node::start(&home, &world, snapshot(&world, Enrolment::Enrolled, settings()));
    node.phase(Phase::Enrolled).await;
    assert_eq!(kept_path(&home), process.netns(&home));
    let another = Process::start(&home, &world.pod, &of_the_pod());
    drop(process);
    node.reported("known by another process", |report| {
        report.phase == Phase::Enrolled && kept_path(&home) == another.netns(&home)
    })
    .await;
    captured = Connection::open(&world.peer, world.pod_at(8080)).await.expect("captured");
    captured.check("after its first process").await;
    node.kill().await;
}

async fn a_namespace_without_the_pods_address_is_refused(world: World) {
    let home = Home::new().await;
    let mut node = Node::start(&home, &world, snapshot(&world, Enrolment::Enrolled, settings()));
    let report =
        node.reported("nobody", |report| report.message.contains("no process of the pod is seen")).await;
    assert_eq!(report.phase, Phase::Waiting, "{}", report.message);
    let wrong = Process::start(&home, &world.peer, &of_the_pod());
    let report = node.reported("refused", |report| report.phase == Phase::Failed).await;
    let named = [world.pod_ip.to_string(), world.peer_ip.to_string(), wrong.netns(&home)];
    assert!(named.iter().all(|name| report.message.contains(name)), "{}", report.message);
    drop(wrong);
    let own = Process::start(&home, &Netns::home().expect("home"), &of_the_pod());
    node.reported("the node's own", |report| report.message.contains("node's own network namespace")).await;
    drop(own);
    let _right = Process::start(&home, &world.pod, &of_the_pod());
    node.phase(Phase::Enrolled).await;
}

async fn of_two_with_the_address_the_bound_one_is_it(world: World) {
    let home = Home::new().await;
    let again = crate::world::new_netns();
    crate::world::sh(&again, &format!("ip link set lo up; ip addr add {} dev lo", world.pod_ip));
    let _processes =
        [&*world.pod, &again].map(|netns| Process::start(&home, netns, &format!("/kubepods/pod{POD_UID}/c")));
    let mut node = Node::start(&home, &world, snapshot(&world, Enrolment::Enrolled, settings()));
    node.reported("refused", |report| report.message.contains("several namespaces")).await;
    let path = home.bind(&world.pod, "netns/cni-0a1b");
    node.phase(Phase::Enrolled).await;
    assert_eq!(kept_path(&home), path.display().to_string());
}
