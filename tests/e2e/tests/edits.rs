//! Routes that change all the time under traffic, and Deployments that roll.

use culvert_e2e::routes::{backend, route, service_parent};
use culvert_e2e::{Labelled, Mesh, Pod, SOON, Session, Shared, Shop, eventually};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

static MESH: Shared = Shared::new("edits");

const EDITS: usize = 300;
/// From one edit to the next at least: longer than what is allowed for one to be seen.
const PAUSE: Duration = Duration::from_millis(300);
/// After which edits the Deployments of both versions are rolled.
const ROLLED_AFTER: [usize; 3] = [EDITS / 4, EDITS / 2, EDITS * 3 / 4];
const SEEN_WITHIN: f64 = 200.0;
/// Requests per second of each of the two clients.
const RATE: &str = "510";

/// One answered request: when it ended, whose it was, and by which version.
struct Seen {
    millis: f64,
    client: String,
    version: String,
}

/// What came of the scenario.
struct Outcome {
    requests: u64,
    failed: u64,
    rps: f64,
    /// For every edit and client: milliseconds from before the edit was made until the last request that it did not
    /// reach; sorted.
    late: Vec<f64>,
    /// Edits that a client's requests did not reach before the next one.
    unseen: usize,
    reports: Vec<Value>,
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64() * 1000.0
}

/// What the node proxies say of the requests they carried.
fn seen(lines: &[String]) -> Vec<Seen> {
    let of = |line: &String| {
        let line: Value = serde_json::from_str(line).ok()?;
        let time = time::OffsetDateTime::parse(
            line["time"].as_str()?,
            &time::format_description::well_known::Rfc3339,
        );
        Some(Seen {
            millis: time.ok()?.unix_timestamp_nanos() as f64 / 1e6,
            client: line["src.workload"].as_str()?.to_owned(),
            version: line["backend"].as_str()?.to_owned(),
        })
    };
    lines.iter().filter_map(of).collect()
}

/// How late each edit was seen by each client's requests, and how often not at all.
fn lateness(edits: &[(f64, String)], seen: &[Seen], clients: &[Pod]) -> (Vec<f64>, usize) {
    let (mut late, mut unseen) = (Vec::new(), 0);
    for pair in edits.windows(2) {
        let ((began, version), (next, _)) = (&pair[0], &pair[1]);
        for client in clients {
            let here = seen.iter().filter(|one| one.client == client.name);
            let here = here.filter(|one| one.millis > *began && one.millis < *next);
            let (new, old): (Vec<&Seen>, Vec<&Seen>) = here.partition(|one| one.version == *version);
            unseen += usize::from(new.is_empty());
            late.push(old.iter().map(|one| one.millis - began).fold(0.0, f64::max));
        }
    }
    late.sort_by(f64::total_cmp);
    (late, unseen)
}

/// 300 edits that each change the chosen backend, and three rolled Deployments, under requests that take a moment and may
/// not be sent twice.
fn edits_and_rollouts(mesh: &Mesh, shop: &Shop, name: &str) -> Outcome {
    mesh.apply(&shop.with_versions(&["v1", "v2"]));
    // A client on the other node, too: every proxy has to follow.
    mesh.apply(&(shop.account("second") + &shop.pod("second", "node2")));
    mesh.settled(name);
    let clients = ["client", "second"].map(|app| mesh.pod(name, app));
    let to = |version: &str| {
        let rules = json!([{"backendRefs": [backend(version)]}]);
        route("HTTPRoute", name, "moving", &service_parent(name, "server"), &rules)
    };
    mesh.apply(&to("v1"));
    for client in &clients {
        mesh.reaches(client, "v2:9000");
        eventually("the route is in force", SOON, || {
            let report = mesh.echo(client, &["get", "http://server:8080/"]);
            let is = report["last"]["pod"].as_str().is_some_and(|pod| pod.starts_with("v1"));
            if is { Ok(()) } else { Err(report.to_string()) }
        });
    }
    let requests = Session::start(mesh.command(&["logs", "--requests", "--follow", "-o", "json"]));
    let seconds = (EDITS as f64 * (PAUSE.as_secs_f64() + 0.1) + 5.0).ceil().to_string();
    let load: Vec<Session> = clients
        .iter()
        .map(|client| {
            let what = ["get", "http://server:8080/?delay=10ms", "--method", "POST", "--body", "order"];
            let how = ["--rate", RATE, "--seconds", &seconds, "--connections", "8"];
            mesh.echo_session(client, &[&what[..], &how[..]].concat())
        })
        .collect();
    let mut edits = Vec::new();
    for edit in 0..EDITS {
        let version = ["v2", "v1"][edit % 2];
        edits.push((now(), format!("{name}/{version}:8080")));
        mesh.apply(&to(version));
        if let Some(round) = ROLLED_AFTER.iter().position(|after| *after == edit) {
            // New pods of both versions, while requests go there.
            let labels = format!("\"labels\":{{\"round\":\"{round}\",\"app\":\"v");
            mesh.apply(&shop.with_versions(&["v1", "v2"]).replace("\"labels\":{\"app\":\"v", &labels));
        }
        std::thread::sleep(PAUSE);
    }
    let reports: Vec<Value> = load.iter().map(|session| session.next(Duration::from_secs(300))).collect();
    let sum = |key: &str| reports.iter().filter_map(|report| report[key].as_u64()).sum::<u64>();
    let (late, unseen) = lateness(&edits, &seen(&requests.unread()), &clients);
    Outcome {
        requests: sum("requests"),
        failed: sum("requests") - sum("ok"),
        rps: reports.iter().filter_map(|report| report["rps"].as_f64()).sum(),
        late,
        unseen,
        reports,
    }
}

#[test]
fn three_hundred_edits_and_rollouts_fail_no_request_and_are_seen_at_once() {
    let mesh = MESH.alone();
    let name = "edits";
    let outcome = edits_and_rollouts(&mesh, &Shop::new(name, Labelled::Yes), name);
    let Outcome { requests, failed, rps, late, unseen, reports } = outcome;
    let p99 = late[late.len() * 99 / 100];
    println!(
        "{requests} requests, {rps:.0} per second, {failed} failed; an edit was seen after p50 {} ms, p99 {p99} ms",
        late[late.len() / 2]
    );
    assert_eq!(failed, 0, "{reports:?}");
    assert!(rps >= 1000.0, "{rps}");
    assert_eq!(unseen, 0, "edits that a proxy did not follow");
    assert!(p99 <= SEEN_WITHIN, "{late:?}");
}

/// The same without draining: what is under way to a pod that ends is lost.
#[test]
fn without_draining_the_same_edits_and_rollouts_fail_requests() {
    let mesh = MESH.alone();
    let name = "undrained";
    let shop = Shop::new(name, Labelled::Yes).setting("drain-timeout", "1ms");
    let outcome = edits_and_rollouts(&mesh, &shop, name);
    println!("{} of {} requests failed", outcome.failed, outcome.requests);
    assert!(outcome.failed > 0, "{:?}", outcome.reports);
    let bad_gateway =
        outcome.reports.iter().filter_map(|report| report["statuses"]["502"].as_u64()).sum::<u64>();
    assert_eq!(bad_gateway, outcome.failed, "each was told so: {:?}", outcome.reports);
    assert!(outcome.failed < 200, "only what was under way: {:?}", outcome.reports);
}
