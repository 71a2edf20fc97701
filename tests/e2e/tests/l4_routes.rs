//! TCPRoutes and TLSRoutes at Services, and what `appProtocol` says of a port.

use culvert_e2e::routes::{port_parent, route, rule};
use culvert_e2e::{Labelled, Mesh, Pod, SOON, Shared, Shop, binary, eventually, run};
use serde_json::{Value, json};
use std::process::Command;

static MESH: Shared = Shared::new("l4-routes");

/// The port that says first who it is, and the one that does so over TLS.
const GREETS: u16 = 9001;
const TLS: u16 = 9443;

fn to(name: &str, port: u16, weight: u32) -> Value {
    json!({"name": name, "port": port, "weight": weight})
}

fn tls_route(namespace: &str, name: &str, hostnames: &[&str], backend: &str) -> String {
    let object = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "TLSRoute",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"parentRefs": [port_parent(namespace, "server", TLS)], "hostnames": hostnames,
                 "rules": [{"backendRefs": [to(backend, TLS, 1)]}]},
    });
    format!("---\n{object}\n")
}

fn greet(mesh: &Mesh, client: &Pod, target: &str, more: &[&str]) -> Value {
    mesh.echo(client, &[&["greet", target], more].concat())
}

/// How many connections the pods of an app have answered.
fn of(report: &Value, app: &str) -> u64 {
    let pods = report["pods"].as_object().cloned().unwrap_or_default();
    let prefix = format!("{app}-");
    pods.iter().filter(|(pod, _)| pod.starts_with(&prefix)).filter_map(|(_, count)| count.as_u64()).sum()
}

fn until(mesh: &Mesh, client: &Pod, target: &str, more: &[&str], is_so: impl Fn(&Value) -> bool) {
    eventually("connections go as the route says", SOON, || {
        let report = greet(mesh, client, target, more);
        if is_so(&report) { Ok(()) } else { Err(report.to_string()) }
    });
}

/// Waits for a condition of a route at its first parent, and gives its message.
fn condition(mesh: &Mesh, kind: &str, (namespace, name): (&str, &str), wanted: (&str, &str, &str)) -> String {
    eventually(&format!("{kind} {name}: {wanted:?}"), SOON, || {
        let route = mesh.get(kind, Some(namespace), Some(name));
        let conditions = route["status"]["parents"][0]["conditions"].as_array().cloned().unwrap_or_default();
        let (of_type, status, reason) = wanted;
        let is = |one: &&Value| one["type"] == of_type && one["status"] == status && one["reason"] == reason;
        let found =
            conditions.iter().find(is).map(|one| one["message"].as_str().unwrap_or_default().to_owned());
        found.ok_or_else(|| route["status"].to_string())
    })
}

#[test]
fn connections_are_shared_by_weight_and_the_log_names_route_and_backend() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("shares");
    let backends = json!([{"name": "by-weight", "backendRefs": [to("v1", GREETS, 7), to("v2", GREETS, 3)]}]);
    let parent = port_parent("shares", "server", GREETS);
    mesh.apply(&route("TCPRoute", "shares", "split", &parent, &backends));
    let target = format!("server:{GREETS}");
    until(&mesh, &client, &target, &["--count", "4"], |report| of(report, "server") == 0);
    let report = greet(&mesh, &client, &target, &["--count", "100"]);
    let shares = (of(&report, "v1"), of(&report, "v2"));
    assert!(shares.0.abs_diff(70) <= 1 && shares.0 + shares.1 == 100, "{report}");
    condition(&mesh, "tcproute", ("shares", "split"), ("Accepted", "True", "Accepted"));
    // Half of it goes nowhere, and keeps its weight.
    let half = json!([{"name": "half", "backendRefs": [to("v1", GREETS, 1), to("gone", GREETS, 1)]}]);
    mesh.apply(&route("TCPRoute", "shares", "split", &parent, &half));
    let said = ("ResolvedRefs", "False", "BackendNotFound");
    condition(&mesh, "tcproute", ("shares", "split"), said);
    until(&mesh, &client, &target, &["--count", "20"], |report| {
        let lost: u64 =
            report["errors"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum();
        of(report, "v2") == 0 && of(report, "v1").abs_diff(10) <= 1 && lost.abs_diff(10) <= 1
    });
    let line = mesh.access_log(&client.node, &["TCPRoute/shares/split", "InvalidBackend", "\"half\""]);
    assert_eq!((&line["rule"], &line["dst.service"]), (&json!("half"), &json!("shares/server")), "{line}");
    // Other ports of the Service are not routed.
    assert_eq!(of(&greet(&mesh, &client, "server:9001", &[]), "server"), 0);
    mesh.reaches(&client, "server:9000");
}

#[test]
fn what_goes_nowhere_is_reset_and_says_why() {
    let mesh = MESH.beside();
    let (shop, client) = mesh.open_versions("nowhere");
    mesh.apply(&shop.service_for("nobody", "no-such-app", &json!({})));
    let target = format!("server:{GREETS}");
    for (backends, reason) in [
        (json!([to("v1", GREETS, 0)]), "NoBackend"),
        (json!([to("v1", 1, 1)]), "InvalidBackend"),
        (json!([to("v1", 9002, 1)]), "InvalidBackend"),
        (json!([to("nobody", GREETS, 1)]), "NoEndpoint"),
    ] {
        let name = reason.to_lowercase();
        let parent = port_parent("nowhere", "server", GREETS);
        let yaml = route("TCPRoute", "nowhere", &name, &parent, &json!([{"backendRefs": backends}]));
        mesh.apply(&yaml);
        until(&mesh, &client, &target, &[], |report| report["ok"] == 0);
        mesh.access_log(&client.node, &[&format!("TCPRoute/nowhere/{name}"), reason]);
        mesh.delete(&yaml);
        until(&mesh, &client, &target, &[], |report| of(report, "server") == 1);
    }
}

#[test]
fn consumers_have_their_own_and_backends_may_be_elsewhere() {
    let mesh = MESH.beside();
    let (_, producer) = mesh.open_versions("made");
    let (_, consumer) = mesh.open_versions("used");
    let parent = port_parent("made", "server", GREETS);
    let target = format!("server.made:{GREETS}");
    let to_v1 = json!([{"backendRefs": [to("v1", GREETS, 1)]}]);
    mesh.apply(&route("TCPRoute", "made", "producer", &parent, &to_v1));
    for client in [&producer, &consumer] {
        until(&mesh, client, &target, &[], |report| of(report, "v1") == 1);
    }
    // Another namespace, another port: the one that says who it is only over TLS.
    let elsewhere = json!([{"backendRefs": [{"namespace": "made", "name": "v2", "port": TLS}]}]);
    mesh.apply(&route("TCPRoute", "used", "consumer", &parent, &elsewhere));
    until(&mesh, &consumer, &target, &["--tls", "any.example"], |report| of(report, "v2") == 1);
    until(&mesh, &producer, &target, &[], |report| of(report, "v1") == 1);
}

#[test]
fn one_kind_decides_on_a_port_and_the_winner_is_named() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("kinds");
    let parent = port_parent("kinds", "server", 8080);
    let to_app = |name: &str| json!([{"backendRefs": [{"name": name, "port": 8080}]}]);
    mesh.apply(&route("TCPRoute", "kinds", "bytes", &parent, &to_app("v1")));
    let get = || mesh.echo(&client, &["get", "http://server:8080/"]);
    let from = |app: &str| {
        eventually(&format!("{app} answers"), SOON, || {
            let report = get();
            let pod = report["last"]["pod"].as_str().unwrap_or_default().to_owned();
            if pod.starts_with(&format!("{app}-")) { Ok(()) } else { Err(report.to_string()) }
        });
    };
    from("v1");
    condition(&mesh, "tcproute", ("kinds", "bytes"), ("Accepted", "True", "Accepted"));
    let requests = route("HTTPRoute", "kinds", "requests", &parent, &to_app("v2"));
    mesh.apply(&requests);
    from("v2");
    let message = condition(&mesh, "tcproute", ("kinds", "bytes"), ("Accepted", "False", "Conflicted"));
    assert!(message.contains("taken by HTTPRoute kinds/requests"), "{message}");
    mesh.delete(&requests);
    from("v1");
    condition(&mesh, "tcproute", ("kinds", "bytes"), ("Accepted", "True", "Accepted"));
}

#[test]
fn of_two_routes_about_connections_the_other_has_nothing_and_says_so() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("twice");
    let parent = port_parent("twice", "server", GREETS);
    let target = format!("server:{GREETS}");
    let to_app = |name: &str| json!([{"backendRefs": [to(name, GREETS, 1)]}]);
    let first = route("TCPRoute", "twice", "first", &parent, &to_app("v1"));
    mesh.apply(&first);
    until(&mesh, &client, &target, &[], |report| of(report, "v1") == 1);
    mesh.apply(&route("TCPRoute", "twice", "second", &parent, &to_app("v2")));
    let message = condition(&mesh, "tcproute", ("twice", "second"), ("Accepted", "False", "Conflicted"));
    assert!(message.contains("taken by TCPRoute twice/first;"), "{message}");
    let report = greet(&mesh, &client, &target, &["--count", "10"]);
    assert_eq!((of(&report, "v1"), &report["ok"]), (10, &json!(10)), "{report}");
    let mut command = Command::new(binary("culvert"));
    command.args(["explain", "--name", mesh.name(), "--from", "twice/deploy/client"]);
    command.arg(format!("tcp://server.twice:{GREETS}"));
    let text = run(command, SOON).ok().stdout;
    assert!(text.contains("TCPRoute twice/second") && text.contains("Conflicted"), "{text}");
    mesh.delete(&first);
    until(&mesh, &client, &target, &["--count", "10"], |report| of(report, "v2") == 10);
    condition(&mesh, "tcproute", ("twice", "second"), ("Accepted", "True", "Accepted"));
    mesh.apply(&tls_route("twice", "a", &["cart.shop.example"], "v1"));
    mesh.apply(&tls_route("twice", "b", &["cart.shop.example", "pay.shop.example"], "v2"));
    let message = condition(&mesh, "tlsroute", ("twice", "b"), ("Accepted", "True", "Accepted"));
    assert!(message.contains("cart.shop.example at port 9443 by TLSRoute twice/a"), "{message}");
}

#[test]
fn tls_goes_by_server_name_to_its_own_end() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("names");
    mesh.apply(&tls_route("names", "exact", &["cart.shop.example"], "v1"));
    mesh.apply(&tls_route("names", "wild", &["*.shop.example", "shop.example"], "v2"));
    let target = format!("server:{TLS}");
    let asking = |name: &str| greet(&mesh, &client, &target, &["--tls", name]);
    until(&mesh, &client, &target, &["--tls", "cart.shop.example"], |report| of(report, "v1") == 1);
    until(&mesh, &client, &target, &["--tls", "shop.example"], |report| of(report, "v2") == 1);
    for (name, app) in [
        ("cart.shop.example", "v1"),
        ("pay.shop.example", "v2"),
        ("a.b.shop.example", "v2"),
        ("shop.example", "v2"),
    ] {
        let report = asking(name);
        assert_eq!((of(&report, app), &report["ok"]), (1, &json!(1)), "{name}: {report}");
    }
    for name in ["example", "elsewhere.org", "-"] {
        let report = asking(name);
        assert_eq!(
            (&report["ok"], &report["errors"]["ended-on-the-way"]),
            (&json!(0), &Value::Null),
            "{name}: {report}"
        );
    }
    let line = mesh.access_log(&client.node, &["RouteNotFound", "elsewhere.org", "names/server"]);
    assert_eq!(line["server_name"], "elsewhere.org", "{line}");
    // Bytes that are no TLS.
    let report = mesh.echo(&client, &["raw", &target, "--text", "GET / HTTP/1.1\\r\\n\\r\\n"]);
    assert_eq!((&report["outcomes"]["reset"], &report["bytes_received"]), (&json!(1), &json!(0)), "{report}");
    mesh.access_log(&client.node, &["ProtocolMismatch", "names/server", "not TLS"]);
    condition(&mesh, "tlsroute", ("names", "exact"), ("Accepted", "True", "Accepted"));
    for (more, expected) in [
        (&["--server-name", "pay.shop.example"][..], "is carried to names/v2:9443"),
        (&["--server-name", "elsewhere.org"], "RouteNotFound"),
    ] {
        let url = format!("tls://server.names:{TLS}");
        let mut command = Command::new(binary("culvert"));
        command.args(["explain", "--name", mesh.name(), "--from", "names/deploy/client"]).args(more).arg(url);
        let text = run(command, SOON).ok().stdout;
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn app_protocol_says_what_a_port_is_used_for() {
    let mesh = MESH.beside();
    let (shop, client) = mesh.open_versions("declared");
    // One Service for each, over the same pods: what is declared of them is all that differs.
    let declared = [
        ("http", "http", "http"),
        ("h2c", "http", "kubernetes.io/h2c"),
        ("grpc", "grpc", "grpc"),
        ("ws", "http", "kubernetes.io/ws"),
        ("wss", "tls", "kubernetes.io/wss"),
        ("https", "tls", "https"),
        ("tcp", "tcp-first", "tcp"),
        ("tls", "tls", "tls"),
        ("unknown", "http", "example.com/own"),
    ];
    for (name, target, protocol) in declared {
        let ports = json!([{"name": "port", "port": 80, "targetPort": target, "appProtocol": protocol}]);
        mesh.apply(&shop.service_for(name, "v1", &json!({"ports": ports})));
    }
    let works = |name: &str| match name {
        "grpc" => mesh.echo(&client, &["grpc", "grpc:80"])["status"] == 0,
        "ws" => mesh.echo(&client, &["ws", "http://ws:80/ws"])["status"] == 101,
        "wss" | "https" | "tls" => {
            greet(&mesh, &client, &format!("{name}:80"), &["--tls", "a.example"])["ok"] == 1
        }
        "tcp" => greet(&mesh, &client, "tcp:80", &[])["ok"] == 1,
        _ => mesh.echo(&client, &["get", &format!("http://{name}:80/")])["last_status"] == 200,
    };
    // Without a route.
    for (name, ..) in declared {
        eventually(&format!("{name} works without a route"), SOON, || {
            if works(name) { Ok(()) } else { Err("it does not") }
        });
    }
    // As backends of one HTTPRoute: those that carry HTTP in the clear, and not the others.
    let rules: Vec<Value> = declared
        .iter()
        .map(|(name, ..)| {
            let mut rule = rule(&json!([{"path": {"value": format!("/{name}")}}]), name);
            rule["backendRefs"][0]["port"] = json!(80);
            rule
        })
        .collect();
    mesh.apply(&route(
        "HTTPRoute",
        "declared",
        "all",
        &port_parent("declared", "server", 8080),
        &json!(rules),
    ));
    let message =
        condition(&mesh, "httproute", ("declared", "all"), ("ResolvedRefs", "False", "UnsupportedProtocol"));
    for (index, (name, _, protocol)) in declared.iter().enumerate() {
        let refused = ["wss", "https", "tcp", "tls"].contains(name);
        let says = message.contains(&format!("rules[{index}].backendRefs[0]"));
        assert_eq!(says, refused, "{name} ({protocol}): {message}");
        let expected = match (refused, *name) {
            (true, _) => (500, "no version"),
            (false, "h2c") => (200, "HTTP/2.0"),
            // These servers say something else to such a request.
            (false, "grpc" | "ws") => continue,
            (false, _) => (200, "HTTP/1.1"),
        };
        eventually(&format!("{name} behind a route"), SOON, || {
            let report = mesh.echo(&client, &["get", &format!("http://server:8080/{name}")]);
            let is =
                report["last_status"] == expected.0 && (refused || report["last"]["protocol"] == expected.1);
            if is { Ok(()) } else { Err(report.to_string()) }
        });
    }
    let report = mesh.echo(&client, &["ws", "http://server:8080/ws"]);
    assert_eq!(
        (&report["status"], &report["closed"]),
        (&json!(101), &json!(true)),
        "a WebSocket by a route: {report}"
    );
}

#[test]
fn a_route_for_requests_lets_no_tls_pass_and_one_for_tls_no_requests() {
    let mesh = MESH.beside();
    let shop = Shop::new("crossed", Labelled::Yes);
    let (client, _) = mesh.open(&shop, "crossed");
    let own = json!([{"backendRefs": [{"name": "server", "port": TLS}]}]);
    mesh.apply(&route("HTTPRoute", "crossed", "requests", &port_parent("crossed", "server", TLS), &own));
    let target = format!("server:{TLS}");
    until(&mesh, &client, &target, &["--tls", "a.example"], |report| report["ok"] == 0);
    let accepted = condition(&mesh, "httproute", ("crossed", "requests"), ("Accepted", "True", "Accepted"));
    assert!(accepted.contains("declared to carry no HTTP"), "{accepted}");
    mesh.access_log(&client.node, &["ProtocolMismatch", "crossed/server", "not HTTP"]);
}
