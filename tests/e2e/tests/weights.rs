//! Weights are kept to the request, through one worker and through many, also while other routes change.

use culvert_e2e::routes::{port_parent, route_to, service_parent, weighted};
use culvert_e2e::{Labelled, Mesh, Pod, SOON, Session, Shared, Shop, eventually};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

static MESH: Shared = Shared::new("weights");

const PATIENCE: Duration = Duration::from_secs(60);
const ROUNDS: usize = 10;
const REQUESTS: u64 = 500;
/// Twenty edits a second.
const EDIT_EVERY: Duration = Duration::from_millis(50);

/// Splits what is sent to `server` between `v1` and `v2`, and waits until the clients' nodes do.
fn split(mesh: &Mesh, namespace: &str, clients: &[&Pod], weights: [u32; 2]) {
    let rules = json!([{"name": format!("{}-{}", weights[0], weights[1]),
        "backendRefs": [weighted("v1", weights[0]), weighted("v2", weights[1])]}]);
    let parent = [service_parent(namespace, "server")];
    mesh.apply(&route_to("HTTPRoute", namespace, "split", &parent, &rules));
    let name = format!("{}-{}", weights[0], weights[1]);
    let requests = Session::start(mesh.command(&["logs", "--requests", "--follow", "-o", "json"]));
    for client in clients {
        let is_so = |line: &String| {
            serde_json::from_str::<Value>(line).is_ok_and(|line| {
                line["rule"] == name.as_str() && line["src.workload"] == client.name.as_str()
            })
        };
        eventually("the weights are in force", SOON, || {
            mesh.echo(client, &["get", "http://server:8080/"]);
            if requests.unread().iter().any(is_so) { Ok(()) } else { Err("not yet") }
        });
    }
}

/// How many answers of a report are by `v2`; every request was answered.
fn second(report: &Value, requests: u64) -> u64 {
    assert_eq!(report["ok"], requests, "{report}");
    let pods = report["pods"].as_object().cloned().unwrap_or_default();
    pods.iter().filter(|(pod, _)| pod.starts_with("v2")).filter_map(|(_, count)| count.as_u64()).sum()
}

/// Rounds of requests, each on one connection and so through one worker.
fn rounds(mesh: &Mesh, client: &Pod) -> Vec<u64> {
    let mut session = mesh.echo_session(client, &["each"]);
    let count = REQUESTS.to_string();
    let line = json!(["get", "http://server:8080/", "--count", count]).to_string();
    (0..ROUNDS).map(|_| second(&session.ask(&line, PATIENCE), REQUESTS)).collect()
}

/// Edits another route twenty times a second while something goes on; how often.
fn while_edited<T>(mesh: &Mesh, namespace: &str, work: impl FnOnce() -> T) -> (T, usize) {
    let (is_over, edits) = (AtomicBool::new(false), AtomicUsize::new(0));
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut due = Instant::now();
            while !is_over.load(Ordering::Relaxed) {
                let edit = edits.fetch_add(1, Ordering::Relaxed);
                let rules = json!([{"matches": [{"path": {"value": format!("/{edit}")}}],
                    "backendRefs": [weighted("v2", 1)]}]);
                let parent = [port_parent(namespace, "v1", 8080)];
                mesh.apply(&route_to("HTTPRoute", namespace, "other", &parent, &rules));
                due += EDIT_EVERY;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        let result = work();
        is_over.store(true, Ordering::Relaxed);
        result
    });
    (result, edits.into_inner())
}

#[test]
fn of_five_hundred_requests_each_backend_gets_its_share_ten_times_out_of_ten() {
    let mesh = MESH.beside();
    let name = "rounds";
    let (_, client) = mesh.open_versions(name);
    for (weights, allowed) in [([99, 1], 4..=6), ([70, 30], 135..=165)] {
        split(&mesh, name, &[&client], weights);
        let quiet = rounds(&mesh, &client);
        assert!(quiet.iter().all(|second| allowed.contains(second)), "{weights:?}: {quiet:?}");
        let began = Instant::now();
        let (edited, edits) = while_edited(&mesh, name, || rounds(&mesh, &client));
        println!("{weights:?}: {quiet:?}, {edited:?} with {edits} edits in {:?}", began.elapsed());
        assert!(edited.iter().all(|second| allowed.contains(second)), "{weights:?}, edited: {edited:?}");
        assert!(edits >= ROUNDS, "{edits} edits");
    }
}

#[test]
fn a_thousand_clients_with_one_request_each_keep_the_share() {
    let mesh = MESH.beside();
    let name = "clients";
    let shop = Shop::new(name, Labelled::Yes);
    let others = ["second", "third", "fourth"].map(|other| shop.account(other)).concat();
    let pods = shop.pod("second", "node1") + &shop.pod("third", "node2") + &shop.pod("fourth", "node2");
    mesh.apply(&(shop.with_versions(&["v1", "v2"]) + &others + &pods));
    mesh.settled(name);
    let clients = ["client", "second", "third", "fourth"].map(|app| mesh.pod(name, app));
    for client in &clients {
        for server in ["server", "v1", "v2"] {
            mesh.reaches(client, &format!("{server}:9000"));
        }
    }
    split(&mesh, name, &clients.each_ref(), [99, 1]);
    // Each a new connection, from four pods on both nodes.
    let each = 1000 / clients.len() as u64;
    let count = each.to_string();
    let words = ["get", "http://server:8080/", "--count", &count, "--new-connection", "--connections", "4"];
    for _ in 0..3 {
        let running: Vec<Session> = clients.iter().map(|client| mesh.echo_session(client, &words)).collect();
        let canary: u64 = running.iter().map(|session| second(&session.next(PATIENCE), each)).sum();
        assert!((3..=17).contains(&canary), "1 % of 1000 clients: {canary}");
    }
}

#[test]
fn weight_0_gets_none() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("none");
    split(&mesh, "none", &[&client], [1, 0]);
    let report = mesh.echo(&client, &["get", "http://server:8080/", "--count", "500"]);
    assert_eq!(second(&report, 500), 0, "{report}");
}
