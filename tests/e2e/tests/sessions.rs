//! Sessions: by cookie and by header, over nodes, weights and endpoints that change; and what a client cannot make of them.

use culvert_e2e::routes::{backend, port_parent, route, weighted};
use culvert_e2e::{Labelled, Mesh, Pod, SOON, Shared, Shop, binary, eventually, run};
use serde_json::{Value, json};
use std::process::Command;

static MESH: Shared = Shared::new("sessions");

const PORT: u16 = 8080;
/// Requests that show where a client is led.
const MANY: &str = "12";

fn get(mesh: &Mesh, client: &Pod, path: &str, more: &[&str]) -> Value {
    mesh.echo(client, &[&["get", &format!("http://server:{PORT}{path}")], more].concat())
}

fn pod(report: &Value) -> String {
    report["last"]["pod"].as_str().unwrap_or_default().to_owned()
}

/// The pods that answered; all requests were.
fn pods(report: &Value) -> Vec<String> {
    assert_eq!(report["ok"], report["requests"], "{report}");
    report["pods"].as_object().into_iter().flatten().map(|(pod, _)| pod.clone()).collect()
}

fn set_cookie(report: &Value) -> Option<&str> {
    report["last_headers"]["set-cookie"].as_str()
}

/// `NAME=VALUE` of the cookie that an answer sets.
fn cookie(report: &Value) -> String {
    let line = set_cookie(report).unwrap_or_else(|| panic!("no cookie: {report}"));
    line.split(';').next().unwrap_or_default().to_owned()
}

/// Applies a route to `server`, and waits until the client's node answers by it: it sets a cookie that starts so.
fn keep(mesh: &Mesh, client: &Pod, namespace: &str, rules: &Value, path: &str, starts: &str) -> Value {
    mesh.apply(&route("HTTPRoute", namespace, "kept", &port_parent(namespace, "server", PORT), rules));
    await_cookie(mesh, client, path, starts)
}

fn await_cookie(mesh: &Mesh, client: &Pod, path: &str, starts: &str) -> Value {
    let mut found = Value::Null;
    eventually("sessions are kept", SOON, || {
        found = get(mesh, client, path, &[]);
        let is_so = set_cookie(&found).is_some_and(|line| line.starts_with(starts));
        if is_so { Ok(()) } else { Err(found.to_string()) }
    });
    found
}

fn with_cookie(mesh: &Mesh, client: &Pod, path: &str, cookie: &str) -> Value {
    get(mesh, client, path, &["--header", &format!("cookie: {cookie}"), "--count", MANY])
}

#[test]
fn a_client_stays_at_its_endpoint_whatever_comes_and_goes() {
    let mesh = MESH.beside();
    let namespace = "stays-at-home";
    let shop = Shop::new(namespace, Labelled::Yes).servers(3);
    let (client, _) = mesh.open(&shop, namespace);
    mesh.apply(&(shop.account("other") + &shop.pod("other", "node2")));
    mesh.settled(namespace);
    let other = mesh.pod(namespace, "other");
    let rules = json!([{"sessionPersistence": {"sessionName": "cart"}, "backendRefs": [backend("server")]}]);
    let first = keep(&mesh, &client, namespace, &rules, "/a", "cart=");
    let (home, shown) = (pod(&first), cookie(&first));
    let line = set_cookie(&first).unwrap_or_default();
    assert!(line.ends_with("; Path=/; HttpOnly; SameSite=Strict"), "{line}");
    for name in ["server", namespace, home.as_str()] {
        assert!(!line.contains(name), "says what it must not: {line}");
    }
    // Its own, and from a client on another node, by the keys that all node proxies share.
    eventually("the other node has the route", SOON, || {
        let report = with_cookie(&mesh, &other, "/a", &shown);
        if pods(&report) == [home.clone()] { Ok(()) } else { Err(report.to_string()) }
    });
    let report = with_cookie(&mesh, &client, "/b", &format!("x=1; {shown}; y=2"));
    assert_eq!(pods(&report), std::slice::from_ref(&home));
    assert_eq!(set_cookie(&report), None, "it has what it needs: {report}");
    let report = get(&mesh, &client, "/a", &["--cookies", "--count", MANY]);
    assert_eq!(pods(&report).len(), 1, "a client with cookies: {report}");
    eventually("clients without are balanced", SOON, || {
        let report = get(&mesh, &client, "/a", &["--count", "30"]);
        if pods(&report).len() > 1 { Ok(()) } else { Err(report.to_string()) }
    });
    // What a client makes up is no session.
    let mut forged = shown.clone().into_bytes();
    forged[20] = if forged[20] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).expect("ASCII");
    for made_up in [forged.as_str(), "cart=", "cart=\"\"", &format!("cart={home}"), "cart=....", &shown[..60]]
    {
        let report = with_cookie(&mesh, &client, "/a", made_up);
        assert_eq!(report["ok"], report["requests"], "{made_up}: {report}");
        assert!(set_cookie(&report).is_some(), "{made_up}: begun anew: {report}");
    }
    // More endpoints, then the session's own is gone.
    mesh.apply(&shop.clone().servers(4).yaml());
    mesh.settled(namespace);
    assert_eq!(pods(&with_cookie(&mesh, &client, "/a", &shown)), std::slice::from_ref(&home));
    mesh.sandbox(&["delete", "pod", &home, "-n", namespace]).ok();
    let mut moved = Value::Null;
    eventually("the session moves", SOON, || {
        moved = get(&mesh, &client, "/a", &["--header", &format!("cookie: {shown}")]);
        let is_so = moved["last_status"] == 200 && pod(&moved) != home && set_cookie(&moved).is_some();
        if is_so { Ok(()) } else { Err(moved.to_string()) }
    });
    assert_eq!(pods(&with_cookie(&mesh, &client, "/a", &cookie(&moved))), [pod(&moved)]);
}

#[test]
fn a_session_outlives_weights_and_a_restart_and_not_its_backend() {
    let mesh = MESH.alone();
    let namespace = "split";
    let (_, client) = mesh.open_versions(namespace);
    let rules = |name: &str, backends: Value| {
        json!([{"name": "split", "sessionPersistence": {"sessionName": name, "type": "Cookie"},
            "backendRefs": backends}])
    };
    let only_v1 = rules("one", json!([weighted("v1", 1), weighted("v2", 0)]));
    let first = keep(&mesh, &client, namespace, &only_v1, "/", "one=");
    assert!(pod(&first).starts_with("v1-"), "{first}");
    let shown = cookie(&first);
    // Another canary split: new clients go by it, old ones stay, even where nobody else goes.
    let only_v2 = rules("one", json!([weighted("v2", 1), weighted("v1", 0)]));
    mesh.apply(&route("HTTPRoute", namespace, "kept", &port_parent(namespace, "server", PORT), &only_v2));
    eventually("new clients go to v2", SOON, || {
        let report = get(&mesh, &client, "/", &[]);
        if pod(&report).starts_with("v2-") { Ok(()) } else { Err(report.to_string()) }
    });
    assert_eq!(pods(&with_cookie(&mesh, &client, "/", &shown)), [pod(&first)]);
    // The keys are kept.
    mesh.component("restart", "controller");
    mesh.component("restart", "node-proxy/node1");
    mesh.node_ready("node1");
    eventually("the session goes on", SOON, || {
        let report = get(&mesh, &client, "/", &["--header", &format!("cookie: {shown}")]);
        let is_so = pod(&report) == pod(&first) && set_cookie(&report).is_none();
        if is_so { Ok(()) } else { Err(report.to_string()) }
    });
    let without_v1 = rules("one", json!([weighted("v2", 1)]));
    mesh.apply(&route("HTTPRoute", namespace, "kept", &port_parent(namespace, "server", PORT), &without_v1));
    eventually("the session moves with its backend gone", SOON, || {
        let report = get(&mesh, &client, "/", &["--header", &format!("cookie: {shown}")]);
        let is_so = pod(&report).starts_with("v2-") && set_cookie(&report).is_some();
        if is_so { Ok(()) } else { Err(report.to_string()) }
    });
}

#[test]
fn rules_have_sessions_of_their_own_and_an_end() {
    let mesh = MESH.beside();
    let namespace = "rules";
    let (_, client) = mesh.open_versions(namespace);
    let kept = |path: &str, to: &str, more: Value| {
        let mut session = json!({"sessionName": "s"});
        for (field, value) in more.as_object().into_iter().flatten() {
            session[field] = value.clone();
        }
        json!({"matches": [{"path": {"value": path}}], "sessionPersistence": session, "backendRefs": [backend(to)]})
    };
    let permanent = json!({"cookieConfig": {"lifetimeType": "Permanent"}, "absoluteTimeout": "2s"});
    let rules = json!([
        kept("/a/", "v1", json!({})),
        kept("/b", "v2", permanent),
        {"matches": [{"path": {"value": "/unnamed"}}], "sessionPersistence": {}, "backendRefs": [backend("v1")]},
        kept("/wrong", "v1", json!({"cookieConfig": {"lifetimeType": "Permanent"}})),
    ]);
    let of_a = keep(&mesh, &client, namespace, &rules, "/a/x", "s=");
    assert!(set_cookie(&of_a).unwrap_or_default().contains("; Path=/a; "), "{of_a}");
    let of_b = get(&mesh, &client, "/b", &[]);
    let line = set_cookie(&of_b).unwrap_or_default();
    assert!(line.ends_with("; Path=/b; Max-Age=2; HttpOnly; SameSite=Strict"), "{of_b}");
    assert_eq!(pod(&of_b).split('-').next(), Some("v2"));
    // The session of one rule is none of another's, and both stand side by side in one cookie.
    let both = get(&mesh, &client, "/b", &["--header", &format!("cookie: {}", cookie(&of_a))]);
    assert!(pod(&both).starts_with("v2-"), "{both}");
    let both = cookie(&both);
    let shown = cookie(&of_a);
    let token = shown.strip_prefix("s=").expect("a cookie");
    assert!(both.ends_with(&format!(".{token}")), "{both}");
    assert_eq!(set_cookie(&with_cookie(&mesh, &client, "/a/", &both)), None);
    eventually("a session ends after its absolute timeout", SOON, || {
        let report = get(&mesh, &client, "/b", &["--header", &format!("cookie: {both}")]);
        if set_cookie(&report).is_some() { Ok(()) } else { Err(report.to_string()) }
    });
    let unnamed = get(&mesh, &client, "/unnamed", &[]);
    assert!(set_cookie(&unnamed).is_some_and(|line| line.starts_with("culvert-session-")), "{unnamed}");
    let wrong = get(&mesh, &client, "/wrong", &[]);
    assert_eq!(wrong["last_status"], 500, "{wrong}");
    await_status(&mesh, "httproute", namespace, "rules[3].sessionPersistence.absoluteTimeout");
    let mut command = Command::new(binary("culvert"));
    let from = format!("{namespace}/{}", client.name);
    command.args(["explain", "-o", "json", "--name", mesh.name(), "--from", &from]);
    command.arg(format!("http://server:{PORT}/b"));
    let explained: Value = run(command, SOON).ok().json();
    let expected = json!({"by": "cookie", "name": "s", "path": "/b", "absolute_timeout_ms": 2000});
    assert_eq!(explained["rule"]["session"], expected, "{explained}");
}

#[test]
fn headers_and_calls_have_sessions_too() {
    let mesh = MESH.beside();
    let namespace = "headers";
    let shop = Shop::new(namespace, Labelled::Yes).servers(3);
    let (client, _) = mesh.open(&shop, namespace);
    let by_header = json!({"sessionName": "X-Session", "type": "Header", "absoluteTimeout": "1h"});
    let http = json!([{"sessionPersistence": by_header, "backendRefs": [backend("server")]}]);
    let grpc = json!([{"sessionPersistence": by_header, "backendRefs": [{"name": "server", "port": 9003}]}]);
    mesh.apply(
        &(route("HTTPRoute", namespace, "http", &port_parent(namespace, "server", PORT), &http)
            + &route("GRPCRoute", namespace, "grpc", &port_parent(namespace, "server", 9003), &grpc)),
    );
    let given = |report: &Value| report["last_headers"]["x-session"].as_str().map(str::to_owned);
    let mut first = Value::Null;
    eventually("a session is begun", SOON, || {
        first = get(&mesh, &client, "/", &[]);
        if given(&first).is_some() { Ok(()) } else { Err(first.to_string()) }
    });
    let shown = format!("x-session: {}", given(&first).unwrap_or_default());
    let report = get(&mesh, &client, "/", &["--header", &shown, "--count", MANY]);
    assert_eq!((pods(&report), given(&report)), (vec![pod(&first)], None));
    let call = |more: &[&str]| mesh.echo(&client, &[&["grpc", "server:9003"], more].concat());
    let mut first = Value::Null;
    eventually("a call begins a session", SOON, || {
        first = call(&[]);
        if given(&first).is_some() { Ok(()) } else { Err(first.to_string()) }
    });
    let shown = format!("x-session: {}", given(&first).unwrap_or_default());
    let report = call(&["--header", &shown, "--count", MANY]);
    let home = first["pod"].as_str().unwrap_or_default();
    assert_eq!(report["pods"], json!({home: 12}), "{report}");
}

/// Waits until the status of the object `kept` says so: it is written after what it speaks of is in force.
fn await_status(mesh: &Mesh, kind: &str, namespace: &str, says: &str) {
    eventually(says, SOON, || {
        let status = mesh.get(kind, Some(namespace), Some("kept"))["status"].to_string();
        if status.contains(says) { Ok(()) } else { Err(status) }
    });
}

#[test]
fn a_policy_keeps_sessions_of_rules_that_say_nothing() {
    let mesh = MESH.beside();
    let namespace = "policy";
    let (shop, client) = mesh.open_versions(namespace);
    let policy = json!({"apiVersion": "gateway.networking.x-k8s.io/v1alpha1", "kind": "XBackendTrafficPolicy",
        "metadata": {"name": "kept", "namespace": namespace},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "v1"}],
            "sessionPersistence": {"sessionName": "of-policy"}}});
    let rules = json!([
        {"matches": [{"path": {"value": "/own"}}], "sessionPersistence": {"sessionName": "own"},
         "backendRefs": [backend("v1")]},
        {"matches": [{"path": {"value": "/sticky"}}], "sessionPersistence": {}, "backendRefs": [backend("by-address")]},
        {"backendRefs": [weighted("v2", 0), weighted("v1", 1)]},
    ]);
    mesh.apply(&shop.service_for("by-address", "v1", &json!({"sessionAffinity": "ClientIP"})));
    mesh.apply(&format!("---\n{policy}\n"));
    keep(&mesh, &client, namespace, &rules, "/own", "own=");
    let by_policy = await_cookie(&mesh, &client, "/other/path", "of-policy=");
    let line = set_cookie(&by_policy).unwrap_or_default();
    assert!(line.ends_with("; HttpOnly; SameSite=Strict") && !line.contains("Path="), "{line}");
    let report = with_cookie(&mesh, &client, "/elsewhere", &cookie(&by_policy));
    assert_eq!((pods(&report), set_cookie(&report)), (vec![pod(&by_policy)], None));
    await_status(&mesh, "xbackendtrafficpolicy", namespace, "rules that say nothing of sessions keep them");
    // Two ways to stay at an endpoint do not go together (GEP-1619).
    let report = get(&mesh, &client, "/sticky", &[]);
    assert_eq!(report["last_status"], 500, "{report}");
    await_status(&mesh, "httproute", namespace, "sessionAffinity ClientIP");
}

#[test]
fn a_policy_keeps_sessions_without_a_route_where_requests_are_seen() {
    let mesh = MESH.beside();
    let namespace = "unrouted";
    let shop = Shop::new(namespace, Labelled::Yes).servers(3);
    let (client, _) = mesh.open(&shop, namespace);
    let policy = json!({"apiVersion": "gateway.networking.x-k8s.io/v1alpha1", "kind": "XBackendTrafficPolicy",
        "metadata": {"name": "kept", "namespace": namespace},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "kept"}],
            "sessionPersistence": {"sessionName": "of-policy", "absoluteTimeout": "1h"}}});
    let ports = json!([
        {"name": "a", "port": 80, "targetPort": "http", "appProtocol": "http"},
        {"name": "b", "port": 81, "targetPort": "http", "appProtocol": "http"},
        {"name": "c", "port": 82, "targetPort": "http"},
    ]);
    mesh.apply(&shop.service_for("kept", "server", &json!({"ports": ports})));
    mesh.apply(&format!("---\n{policy}\n"));
    let get = |port: u16, more: &[&str]| {
        let url = format!("http://kept:{port}/any");
        mesh.echo(&client, &[&["get", &url], more].concat())
    };
    let mut first = Value::Null;
    eventually("a session is begun", SOON, || {
        first = get(80, &[]);
        let is_so = set_cookie(&first).is_some_and(|line| line.starts_with("of-policy="));
        if is_so { Ok(()) } else { Err(first.to_string()) }
    });
    let line = set_cookie(&first).unwrap_or_default();
    assert!(line.ends_with("; HttpOnly; SameSite=Strict") && !line.contains("Path="), "{line}");
    let shown = format!("cookie: {}", cookie(&first));
    let kept = |port: u16, more: &[&str]| get(port, &[&["--header", &shown, "--count", MANY], more].concat());
    // At the other port of the Service it is the same pod; where nothing is declared, HTTP/2 is seen.
    for (port, more) in [(80, &[][..]), (81, &[]), (82, &["--http2"])] {
        let report = kept(port, more);
        assert_eq!((pods(&report), set_cookie(&report)), (vec![pod(&first)], None), "port {port}: {report}");
    }
    // HTTP/1 is not, there.
    let report = get(82, &[]);
    assert_eq!((&report["last_status"], set_cookie(&report)), (&json!(200), None), "{report}");
    await_status(&mesh, "xbackendtrafficpolicy", namespace, "(82): declare appProtocol, or attach a route");
    let mut command = Command::new(binary("culvert"));
    let from = format!("{namespace}/{}", client.name);
    command.args(["explain", "-o", "json", "--name", mesh.name(), "--from", &from, "http://kept:80/any"]);
    let explained: Value = run(command, SOON).ok().json();
    let expected = json!({"by": "cookie", "name": "of-policy", "absolute_timeout_ms": 3_600_000});
    assert_eq!((&explained["session"], &explained["rule"]), (&expected, &Value::Null), "{explained}");
    // Its home goes, and the session with it.
    mesh.sandbox(&["delete", "pod", &pod(&first), "-n", namespace]).ok();
    eventually("the session moves", SOON, || {
        let report = get(80, &["--header", &shown]);
        let is_so =
            report["last_status"] == 200 && pod(&report) != pod(&first) && set_cookie(&report).is_some();
        if is_so { Ok(()) } else { Err(report.to_string()) }
    });
}
