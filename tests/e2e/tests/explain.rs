//! `culvert explain` says what happens.

use culvert_e2e::routes::{backend, route, service_parent, weighted};
use culvert_e2e::{Done, Labelled, Mesh, Pod, SOON, Shared, Shop, binary, eventually, run};
use rand::seq::IndexedRandom;
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

static MESH: Shared = Shared::new("explain");

fn explain(mesh: &Mesh, from: &str, more: &[&str]) -> Done {
    let mut command = Command::new(binary("culvert"));
    command.args(["explain", "--name", mesh.name(), "--from", from]).args(more);
    run(command, Duration::from_secs(30))
}

fn explained(mesh: &Mesh, from: &str, more: &[&str]) -> Value {
    explain(mesh, from, &[&["-o", "json"], more].concat()).ok().json()
}

/// What a request got: its status, and which Deployment gave it.
fn outcome(report: &Value) -> (u64, String) {
    let pod = report["last"]["pod"].as_str().unwrap_or_default();
    (report["last_status"].as_u64().unwrap_or(0), pod.split('-').next().unwrap_or_default().to_owned())
}

/// What `explain` expects: status and Deployment of every outcome with a share.
fn expected(explanation: &Value) -> Vec<(u64, String)> {
    let outcomes = explanation["outcomes"].as_array().cloned().unwrap_or_default();
    let of = |outcome: &Value| {
        let status = outcome["status"].as_u64().unwrap_or(200);
        let service = outcome["backend"].as_str().unwrap_or_default();
        let name = service.split('/').next_back().and_then(|name| name.split(':').next()).unwrap_or_default();
        (status, if status == 200 { name.to_owned() } else { String::new() })
    };
    outcomes.iter().filter(|outcome| outcome["share"].as_f64() != Some(0.0)).map(of).collect()
}

#[test]
fn it_agrees_with_what_happens() {
    let mesh = MESH.beside();
    let name = "agree";
    let (shop, client) = mesh.open_versions(name);
    mesh.apply(&shop.service_for("nobody", "no-such-app", &json!({})));
    let rule = |path: &str, method: Option<&str>, header: Option<&str>, to: Value| {
        let mut matched = json!({"path": {"value": path}});
        if let Some(method) = method {
            matched["method"] = json!(method);
        }
        if let Some(value) = header {
            matched["headers"] = json!([{"name": "x-v", "value": value}]);
        }
        json!({"matches": [matched], "backendRefs": to})
    };
    let rules = json!([
        rule("/a", None, None, json!([weighted("v1", 1), weighted("v2", 1)])),
        rule("/a/b", None, None, json!([backend("v2")])),
        rule("/a", Some("POST"), None, json!([backend("server")])),
        rule("/a", None, Some("2"), json!([backend("v2")])),
        rule("/none", None, None, json!([])),
        rule("/gone", None, None, json!([backend("no-such-service")])),
        rule("/nobody", None, None, json!([backend("nobody")])),
    ]);
    mesh.apply(&route("HTTPRoute", name, "all", &service_parent(name, "server"), &rules));
    eventually("the routes are in force", SOON, || {
        let report = mesh.echo(&client, &["get", "http://server:8080/a/b"]);
        if outcome(&report) == (200, "v2".to_owned()) { Ok(()) } else { Err(report.to_string()) }
    });
    let from = format!("{name}/{}", client.name);
    let paths =
        ["/", "/a", "/a/", "/a/b", "/a/bc", "//a/./b", "/a/x/../b", "/none", "/gone/x", "/nobody", "/zzz"];
    let mut random = rand::rng();
    let mut seen = std::collections::BTreeMap::<u64, usize>::new();
    for _ in 0..120 {
        let url = format!("http://server:8080{}", paths.choose(&mut random).expect("paths"));
        let method = *["GET", "POST", "PUT"].choose(&mut random).expect("methods");
        let mut arguments = vec!["--method", method];
        if rand::random() {
            arguments.extend(["--header", "x-v: 2"]);
        }
        let explanation = explained(&mesh, &from, &[&[url.as_str()], arguments.as_slice()].concat());
        let report = mesh.echo(&client, &[&["get", url.as_str()], arguments.as_slice()].concat());
        let happened = outcome(&report);
        let (allowed, is_error) = (expected(&explanation), happened.0 != 200);
        let happened = if is_error { (happened.0, String::new()) } else { happened };
        assert!(
            allowed.contains(&happened),
            "{method} {url} {arguments:?}: {happened:?}, explained {explanation}"
        );
        *seen.entry(happened.0).or_default() += 1;
    }
    for status in [200, 404, 500, 503] {
        assert!(seen.get(&status) > Some(&3), "{seen:?}");
    }
}

#[test]
fn it_says_why_routes_do_not_apply() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("why");
    let server = mesh.pod("why", "server");
    let rules = json!([{"backendRefs": [backend("v1")]}]);
    mesh.apply(&route("HTTPRoute", "why", "made", &service_parent("why", "server"), &rules));
    let reader = Shop::new("reader", Labelled::Yes);
    let (consumer, _) = mesh.open(&reader, "reader");
    mesh.apply(&route("HTTPRoute", "reader", "own", &service_parent("why", "server"), &rules));
    let stranger = Shop::new("stranger", Labelled::No);
    let (outsider, _) = mesh.open(&stranger, "stranger");
    let from = |pod: &Pod| format!("{}/{}", pod.namespace, pod.name);

    let text = explain(&mesh, &from(&client), &["http://server:8080/"]).ok().stdout;
    assert!(text.contains("why/made") && text.contains("v1"), "{text}");
    let pod_address = format!("http://{}/", server.at(8080));
    for (pod, url, word) in [
        (&client, pod_address.as_str(), "pod"),
        (&outsider, "http://server.why:8080/", "enrolled"),
        (&consumer, "http://server.why:8080/", "replace"),
    ] {
        let explanation = explained(&mesh, &from(pod), &[url]);
        let said =
            (explanation["not_applied"].to_string() + &explanation["group"].to_string()).to_lowercase();
        assert!(said.contains(word), "{url}: {explanation}");
    }
    let missing = explain(&mesh, "why/no-such-pod", &["http://server:8080/"]);
    assert!(missing.code != 0 && missing.said().contains("no-such-pod"), "{}", missing.said());
}
