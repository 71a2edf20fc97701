//! Routes that change all the time under traffic.

use culvert_e2e::routes::{backend, route, service_parent};
use culvert_e2e::{Labelled, SOON, Session, Shared, Shop, eventually};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

static MESH: Shared = Shared::new("edits");

const EDITS: usize = 300;
/// Between two edits: longer than what is allowed for one to be seen.
const PAUSE: Duration = Duration::from_millis(250);
const SEEN_WITHIN: f64 = 200.0;

/// One answered request: when, and by which version.
struct Seen {
    millis: f64,
    version: String,
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
        let millis = time.ok()?.unix_timestamp_nanos() as f64 / 1e6;
        Some(Seen { millis, version: line["backend"].as_str()?.to_owned() })
    };
    lines.iter().filter_map(of).collect()
}

#[test]
fn three_hundred_edits_and_a_rollout_fail_no_request_and_are_seen_at_once() {
    let mesh = MESH.alone();
    let name = "edits";
    let shop = Shop::new(name, Labelled::Yes);
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
            let url = "http://server:8080/";
            mesh.echo_session(
                client,
                &["get", url, "--rate", "500", "--seconds", &seconds, "--connections", "8"],
            )
        })
        .collect();
    let mut edits = Vec::new();
    for edit in 0..EDITS {
        let version = ["v2", "v1"][edit % 2];
        mesh.apply(&to(version));
        edits.push((now(), format!("{name}/{version}:8080")));
        if edit == EDITS / 2 {
            // New pods of both versions, while requests go there.
            let rolled = shop
                .with_versions(&["v1", "v2"])
                .replace("\"labels\":{\"app\":\"v", "\"labels\":{\"round\":\"2\",\"app\":\"v");
            mesh.apply(&rolled);
        }
        std::thread::sleep(PAUSE);
    }
    for session in load {
        let report = session.next(Duration::from_secs(120));
        assert_eq!(report["ok"], report["requests"], "{report}");
        assert!(report["requests"].as_u64() > Some(10_000), "{report}");
    }
    let seen = seen(&requests.unread());
    let mut late: Vec<f64> = edits
        .windows(2)
        .map(|pair| {
            let ((done, version), (next, _)) = (&pair[0], &pair[1]);
            let others = seen.iter().filter(|one| one.millis > *done && one.millis < next - 60.0);
            let last = others.filter(|one| one.version != *version).map(|one| one.millis - done);
            last.fold(0.0, f64::max)
        })
        .collect();
    late.sort_by(f64::total_cmp);
    let p99 = late[late.len() * 99 / 100];
    println!(
        "{} requests seen; an edit was seen by all after p50 {} ms, p99 {p99} ms",
        seen.len(),
        late[late.len() / 2]
    );
    assert!(seen.len() > 20_000, "{}", seen.len());
    assert!(p99 <= SEEN_WITHIN, "{late:?}");
}
