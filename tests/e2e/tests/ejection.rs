//! Endpoints that fail are passed over, and tried again.

use culvert_e2e::routes::{backend, port_parent, route};
use culvert_e2e::{Labelled, Mesh, Pod, SOON, Session, Shared, Shop, binary, eventually, run};
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

static MESH: Shared = Shared::new("ejection");

/// For thousands of requests on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const HTTP: u16 = 8080;
const TCP: u16 = 9000;

/// Two servers that work behind the Service `web`, and one that serves otherwise; and a client on another node.
fn open(mesh: &Mesh, shop: &Shop, namespace: &str, otherwise: &[&str]) -> Pod {
    let mut all = shop.namespace() + &shop.account("client");
    all += &shop.deployment("client", 1, Some("node1"), &[]);
    all += &shop.part("web", "good", "node2", 2, &["--http", "8080", "--tcp", "9000"]);
    if !otherwise.is_empty() {
        all += &shop.part("web", "bad", "node2", 1, otherwise);
    }
    mesh.apply(&(all + &shop.parted_service("web", &json!({}))));
    mesh.settled(namespace);
    mesh.pod(namespace, "client")
}

/// A path that is answered with this status by an endpoint with `--script`, and 200 by one with `--http`.
fn scripted(status: &str) -> String {
    let answer = format!("HTTP/1.1 {status} Whatever\r\ncontent-length: 0\r\n\r\n");
    let hex: String = answer.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("/?hex={hex}&keep=1")
}

/// Requests in a row; how many failed.
fn requests(session: &mut Session, count: u64, path: &str, more: &[&str]) -> u64 {
    let (url, times) = (format!("http://web:{HTTP}{path}"), count.to_string());
    let words = [&["get", url.as_str(), "--count", times.as_str()], more].concat();
    let report = session.ask(&json!(words).to_string(), PATIENCE);
    assert_eq!(report["requests"], count, "{report}");
    count - report["ok"].as_u64().expect("a number")
}

/// Connections in a row; how many failed.
fn connections(session: &mut Session, count: u64) -> u64 {
    let target = format!("web:{TCP}");
    let line = json!(["tcp", "send", target]).to_string();
    (0..count).map(|_| u64::from(session.ask(&line, PATIENCE)["ok"] != true)).sum()
}

/// What the client's node passes over for the Service `web` of a namespace.
fn ejected(mesh: &Mesh, namespace: &str) -> Vec<Value> {
    let config: Value = serde_json::from_str(&mesh.admin("node1", "/config?only=ejected")).expect("JSON");
    let all = config["ejected"].as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|one| one["service"] == format!("{namespace}/web")).collect()
}

/// Sends until the endpoint that fails is ejected.
fn until_ejected(mesh: &Mesh, namespace: &str, mut send: impl FnMut()) {
    eventually("the endpoint that fails is ejected", SOON, || {
        send();
        match &ejected(mesh, namespace)[..] {
            [one] if one["workload"].as_str().is_some_and(|name| name.contains("/bad-")) => Ok(()),
            others => Err(format!("{others:?}")),
        }
    });
}

fn assert_few(failed: u64, of: u64) {
    assert!(failed * 100 < of, "{failed} of {of} failed");
}

#[test]
fn of_requests_to_one_of_three_that_answers_503_less_than_a_hundredth_fail() {
    let mesh = MESH.beside();
    let namespace = "answers";
    let client = open(&mesh, &Shop::new(namespace, Labelled::Yes), namespace, &["--script", "8080"]);
    let (bad, good) = (scripted("503"), scripted("200"));
    let mut session = mesh.echo_session(&client, &["each"]);
    until_ejected(&mesh, namespace, || {
        requests(&mut session, 20, &bad, &[]);
    });
    assert_few(requests(&mut session, 2000, &bad, &[]), 2000);
    // Those that may not be sent twice are trials, too.
    assert_few(requests(&mut session, 2000, &bad, &["--method", "POST", "--body", "x"]), 2000);
    is_shown(&mesh, namespace, &client);
    eventually("what answers again is used again", SOON, || {
        requests(&mut session, 20, &good, &[]);
        match &ejected(&mesh, namespace)[..] {
            [] => Ok(()),
            others => Err(format!("{others:?}")),
        }
    });
}

/// Everywhere where people look for it.
fn is_shown(mesh: &Mesh, namespace: &str, client: &Pod) {
    let service = [("destination_service_name", "web"), ("destination_service_namespace", namespace)];
    let metrics = mesh.metrics("node1");
    assert_eq!(metrics.sum("culvert_ejected_endpoints", &service), 1.0);
    assert!(metrics.sum("culvert_ejections_total", &[("step", "answer")]) >= 1.0);
    let status = mesh.sandbox(&["status", "-o", "json"]).ok().json();
    let of_it = |one: &&Value| one["service"] == format!("{namespace}/web") && one["node"] == "node1";
    let shown = status["ejected"].as_array().into_iter().flatten().find(of_it);
    assert!(shown.is_some_and(|one| one["port"] == HTTP && one["carried"] == "requests"), "{status}");
    assert!(mesh.sandbox(&["status"]).ok().stdout.contains("EJECTED BY"));
    let mut explain = Command::new(binary("culvert"));
    let from = format!("{namespace}/{}", client.name);
    explain.args(["explain", "-o", "json", "--name", mesh.name(), "--from", &from]);
    explain.arg(format!("http://web:{HTTP}/"));
    let explained = run(explain, SOON).ok().json();
    let endpoints = explained["backends"][0]["endpoints"].as_array().cloned().unwrap_or_default();
    let (out, rest): (Vec<Value>, Vec<Value>) =
        endpoints.into_iter().partition(|one| one["ejected"].is_object());
    assert_eq!((out.len(), rest.len()), (1, 2), "{explained}");
    assert!(out[0]["workload"].as_str().is_some_and(|name| name.contains("/bad-")), "{explained}");
}

#[test]
fn an_endpoint_that_refuses_connections_fails_nothing() {
    let mesh = MESH.beside();
    let namespace = "refuses";
    let client = open(&mesh, &Shop::new(namespace, Labelled::Yes), namespace, &["--udp", "5353"]);
    let mut session = mesh.echo_session(&client, &["each"]);
    until_ejected(&mesh, namespace, || {
        requests(&mut session, 5, "/", &[]);
    });
    assert_few(requests(&mut session, 1000, "/", &[]), 1000);
    let of_connections = |one: &Value| one["carried"] == "connections";
    eventually("it is ejected for connections, too", SOON, || {
        connections(&mut session, 5);
        let all = ejected(&mesh, namespace);
        if all.iter().any(of_connections) { Ok(()) } else { Err(format!("{all:?}")) }
    });
    assert_few(connections(&mut session, 500), 500);
}

#[test]
fn of_connections_to_one_of_three_that_resets_less_than_a_hundredth_fail() {
    let mesh = MESH.beside();
    let namespace = "resets";
    let client = open(&mesh, &Shop::new(namespace, Labelled::Yes), namespace, &["--reset", "9000"]);
    let mut session = mesh.echo_session(&client, &["each"]);
    until_ejected(&mesh, namespace, || {
        connections(&mut session, 10);
    });
    assert_few(connections(&mut session, 1000), 1000);
}

#[test]
fn of_requests_to_one_of_three_that_hangs_less_than_a_hundredth_fail() {
    let mesh = MESH.beside();
    let namespace = "hangs";
    let client = open(&mesh, &Shop::new(namespace, Labelled::Yes), namespace, &["--silent", "8080"]);
    let rules = json!([{"timeouts": {"request": "3s"}, "backendRefs": [backend("web")]}]);
    mesh.apply(&route("HTTPRoute", namespace, "limit", &port_parent(namespace, "web", HTTP), &rules));
    let mut session = mesh.echo_session(&client, &["each"]);
    eventually("the route is in force", SOON, || {
        let mut command = Command::new(binary("culvert"));
        let from = format!("{namespace}/{}", client.name);
        command.args(["explain", "-o", "json", "--name", mesh.name(), "--from", &from]);
        let explained = run_json(command, HTTP);
        if explained["rule"]["request_timeout_ms"] == 3000 { Ok(()) } else { Err(explained.to_string()) }
    });
    // What is slow is avoided long before it has failed often enough to be ejected.
    requests(&mut session, 200, "/", &[]);
    assert_few(requests(&mut session, 2000, "/", &[]), 2000);
}

fn run_json(mut command: Command, port: u16) -> Value {
    command.arg(format!("http://web:{port}/"));
    run(command, SOON).ok().json()
}

#[test]
fn an_endpoint_that_flaps_does_not_take_the_service_down() {
    let mesh = MESH.beside();
    let namespace = "flaps";
    let client = open(&mesh, &Shop::new(namespace, Labelled::Yes), namespace, &["--script", "8080"]);
    let mut session = mesh.echo_session(&client, &["each"]);
    let paths = [scripted("503"), scripted("200")];
    let post = ["--method", "POST", "--body", "x"];
    let failed: u64 = (0..20_usize).map(|phase| requests(&mut session, 200, &paths[phase % 2], &post)).sum();
    // Ten bad phases, each of them at most five failures in a row and a few trials: 4000 requests, a third would be 667.
    assert!(failed <= 160, "{failed} of 4000 failed");
    assert_eq!(requests(&mut session, 100, "/", &[]), 0);
}

#[test]
fn when_all_fail_all_are_used() {
    let mesh = MESH.beside();
    let namespace = "all";
    let client = open(&mesh, &Shop::new(namespace, Labelled::Yes), namespace, &[]);
    let mut session = mesh.echo_session(&client, &["each"]);
    assert_eq!(requests(&mut session, 300, "/?status=503", &[]), 300);
    let report = mesh.echo(&client, &["get", &format!("http://web:{HTTP}/?status=503")]);
    assert_eq!(report["last_status"], 503, "{report}");
    assert!(report["last_headers"].get("proxy-status").is_none(), "the endpoint's own: {report}");
    assert!(ejected(&mesh, namespace).len() <= 1, "at most half of two");
    assert_eq!(requests(&mut session, 100, "/", &[]), 0, "no outage is left behind");
}

#[test]
fn where_it_is_switched_off_endpoints_are_used_whatever_they_answer() {
    let mesh = MESH.beside();
    let namespace = "disabled";
    let shop = Shop::new(namespace, Labelled::Yes).setting("ejection", "disabled");
    let client = open(&mesh, &shop, namespace, &["--script", "8080"]);
    let mut session = mesh.echo_session(&client, &["each"]);
    // A third of them, on average; five would be the most if it was ejected.
    let failed = requests(&mut session, 300, &scripted("503"), &["--method", "POST", "--body", "x"]);
    assert!(failed >= 20, "{failed} of 300 failed");
    assert!(ejected(&mesh, namespace).is_empty());
}
