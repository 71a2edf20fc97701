//! Node proxies replaced under load: one takes over from another.

use culvert_e2e::routes::{backend, port_parent, route};
use culvert_e2e::{Labelled, Mesh, Pod, SOON, Session, Shared, Shop, eventually, holds};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Nothing is cut by a deadline while a test runs.
static MESH: Shared = Shared::with("upgrade", &["--component-arg", "culvert-node-proxy=--drain=600"]);
static SHORT: Shared = Shared::with("upgraded", &["--component-arg", "culvert-node-proxy=--drain=15"]);

const PATIENCE: Duration = Duration::from_secs(60);

/// Replaces a node proxy; returns its process before and after.
fn upgrade(mesh: &Mesh, node: &str) -> (u64, u64) {
    let component = format!("node-proxy/{node}");
    let old = mesh.pid_of(&component);
    mesh.component("upgrade", &component);
    let new = mesh.pid_of(&component);
    assert_ne!(old, new);
    let log = mesh.logs(&component);
    assert!(log.contains("took over from the last node proxy"), "{log}");
    (old, new)
}

fn is_running(mesh: &Mesh, pid: u64) -> bool {
    mesh.node_exec("node1", &["kill", "-0", &pid.to_string()]).code == 0
}

/// Requests until its input ends: 300 a second on new connections, and as fast as they go on eight that are kept.
fn requests(mesh: &Mesh, client: &Pod, seconds: u32) -> [Session; 2] {
    let seconds = seconds.to_string();
    let common = ["get", "http://server:8080/", "--timeout", "20000", "--seconds", &seconds];
    let new = [&common[..], &["--rate", "300", "--connections", "8", "--new-connection"]].concat();
    let kept = [&common[..], &["--rate", "200", "--connections", "8"]].concat();
    [mesh.echo_session(client, &new), mesh.echo_session(client, &kept)]
}

fn hold(mesh: &Mesh, client: &Pod, connections: u32) -> Session {
    let held = mesh.echo_session(client, &["hold", "server:9000", "--connections", &connections.to_string()]);
    assert_eq!(held.next(PATIENCE)["ok"], connections);
    held
}

/// Replaces both node proxies twice under load: nothing fails, nothing that is open is cut.
fn costs_nothing(mesh: &Mesh, client: &Pod) {
    let traffic = requests(mesh, client, 25);
    let mut held = hold(mesh, client, 5);
    let bulk = mesh.echo_session(client, &["bulk", "server:9000", "--seconds", "25", "--direction", "both"]);
    let mut replaced = Vec::new();
    for node in ["node1", "node2", "node1", "node2"] {
        replaced.push((node, upgrade(mesh, node).0));
        let report = held.ask("open ones go on", PATIENCE);
        assert_eq!(report["ok"], 5, "{node}: {report}");
    }
    for session in traffic {
        let report = session.next(PATIENCE);
        assert_eq!(report["ok"], report["requests"], "{report}");
        assert!(report["ok"].as_u64() > Some(100), "{report}");
    }
    let report = bulk.next(PATIENCE);
    assert!(report["errors"].as_object().is_some_and(serde_json::Map::is_empty), "{report}");
    assert!(report["bytes_received"].as_u64() > Some(1 << 20), "{report}");
    assert_eq!(held.ask("through four replacements", PATIENCE)["ok"], 5);
    for (node, pid) in &replaced[..2] {
        assert!(is_running(mesh, *pid), "{node}: the first process carries what it accepted");
    }
    held.end(PATIENCE);
    eventually("they end with their last connection", SOON, || {
        let left: Vec<_> = replaced.iter().filter(|(_, pid)| is_running(mesh, *pid)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

#[test]
fn a_node_proxy_is_replaced_under_load_of_connections() {
    let mesh = MESH.alone();
    let (client, _) = mesh.open(&Shop::new("bytes", Labelled::Yes).servers(2), "bytes");
    costs_nothing(&mesh, &client);
}

#[test]
fn a_node_proxy_is_replaced_under_load_of_routed_requests() {
    let mesh = MESH.alone();
    let name = "requests";
    let (_shop, client) = mesh.open_versions(name);
    let rules = json!([{"backendRefs": [backend("v1"), backend("v2")]}]);
    mesh.apply(&route("HTTPRoute", name, "split", &port_parent(name, "server", 8080), &rules));
    eventually("the route is in force", SOON, || {
        let report = mesh.echo(&client, &["get", "http://server:8080/", "--count", "20", "--new-connection"]);
        let pods = report["pods"].to_string();
        if pods.contains("v1") && pods.contains("v2") { Ok(()) } else { Err(report.to_string()) }
    });
    costs_nothing(&mesh, &client);
}

#[test]
fn what_is_open_is_cut_at_the_drain_deadline_and_not_before() {
    let mesh = SHORT.alone();
    let (client, _) = mesh.open(&Shop::new("cut", Labelled::Yes), "cut");
    let mut held = hold(&mesh, &client, 5);
    let (old, _) = upgrade(&mesh, "node1");
    let told = Instant::now();
    assert_eq!(held.ask("draining", PATIENCE)["ok"], 5);
    mesh.reaches(&client, "server:9000");
    eventually("the old process ends at its deadline", PATIENCE, || {
        if is_running(&mesh, old) { Err("it runs") } else { Ok(()) }
    });
    assert!(told.elapsed() > Duration::from_secs(10), "{:?}", told.elapsed());
    let report = held.ask("after the deadline", PATIENCE);
    assert_eq!((&report["ok"], &report["failed"]), (&json!(0), &json!(5)), "{report}");
    mesh.reaches(&client, "server:9000");
}

#[test]
fn the_new_process_is_the_one_that_looks_after_pods() {
    let mesh = MESH.alone();
    let name = "after";
    let shop = Shop::new(name, Labelled::Yes);
    let (client, server) = mesh.open(&shop, name);
    let mut held = hold(&mesh, &client, 2);
    let (old, new) = upgrade(&mesh, "node2");
    assert!(is_running(&mesh, old), "it carries two connections");
    // Enrolment socket.
    mesh.apply(&(shop.account("late") + &shop.pod("late", "node2") + &shop.service("late", &json!({}))));
    mesh.settled(name);
    mesh.reaches(&client, "late:9000");
    let (arrived, readable) = mesh.on_the_link(&client, "late:9000");
    assert!(arrived && !readable, "arrived {arrived}, readable {readable}");
    // Rules.
    let repairs = || mesh.metrics("node2").sum("culvert_rule_repairs_total", &[]);
    let before = repairs();
    mesh.exec(&server, &["sh", "-c", "PATH=$PATH:/usr/sbin nft flush ruleset"]).ok();
    eventually("the new process repairs the rules", SOON, || {
        let now = repairs();
        if now > before { Ok(()) } else { Err(format!("{now}")) }
    });
    holds("and they stay", Duration::from_secs(3), || {
        let report = mesh.send(&client, "server:9000");
        if report["ok"] == true { Ok(()) } else { Err(report.to_string()) }
    });
    assert_eq!(held.ask("all the while", PATIENCE)["ok"], 2);
    // A pod that leaves.
    mesh.sandbox(&["delete", "pod", "late", "-n", name]).ok();
    eventually("it is gone", SOON, || {
        if mesh.pods(name, "late").is_empty() { Ok(()) } else { Err("still there") }
    });
    // The new one dies while the old one drains: the next one starts without a predecessor.
    mesh.component("crash", "node-proxy/node2");
    eventually("another one serves", PATIENCE, || {
        let now = mesh.pid_of("node-proxy/node2");
        if now != new && now != old { Ok(()) } else { Err(now.to_string()) }
    });
    mesh.node_ready("node2");
    mesh.reaches(&client, "server:9000");
    assert_eq!(held.ask("the old one still carries them", PATIENCE)["ok"], 2);
    held.end(PATIENCE);
}

#[test]
fn components_that_cannot_hand_over_say_so() {
    let mesh = MESH.alone();
    let refused: Value = {
        let done = mesh.sandbox(&["component", "upgrade", "ca", "-o", "json"]);
        assert_ne!(done.code, 0);
        json!(done.stderr)
    };
    assert!(refused.as_str().is_some_and(|said| said.contains("only node proxies")), "{refused}");
}
