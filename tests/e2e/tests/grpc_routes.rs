//! GRPCRoutes on Services, and gRPC without any route.

use culvert_e2e::routes::{route, service_parent};
use culvert_e2e::{Labelled, Mesh, Pod, SOON, Shared, Shop, eventually};
use serde_json::{Value, json};

static MESH: Shared = Shared::new("grpc-routes");

const CART: &str = "shop.v1.Cart";

fn to(name: &str) -> Value {
    json!([{"name": name, "port": 9003}])
}

fn call(mesh: &Mesh, client: &Pod, more: &[&str]) -> Value {
    mesh.echo(client, &[&["grpc", "server:9003"], more].concat())
}

fn app(report: &Value) -> &str {
    report["pod"].as_str().and_then(|pod| pod.split('-').next()).unwrap_or("nobody")
}

fn until(mesh: &Mesh, client: &Pod, more: &[&str], is_so: impl Fn(&Value) -> bool) {
    eventually("calls go as the route says", SOON, || {
        let report = call(mesh, client, more);
        if is_so(&report) { Ok(()) } else { Err(report.to_string()) }
    });
}

#[test]
fn service_method_and_headers_decide() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("methods");
    let method = |service: Option<&str>, method: Option<&str>| {
        let mut matched = json!({});
        if let Some(service) = service {
            matched["service"] = json!(service);
        }
        if let Some(method) = method {
            matched["method"] = json!(method);
        }
        matched
    };
    let rules = json!([
        {"matches": [{"method": method(Some(CART), None)}], "backendRefs": to("v1")},
        {"matches": [{"method": method(Some(CART), Some("Special"))}], "backendRefs": to("v2")},
        {"matches": [{"method": method(None, Some("Anywhere"))}], "backendRefs": to("v2")},
        {"matches": [{"method": {"type": "RegularExpression", "service": "other\\.v[0-9]+\\.S", "method": ".*"}}],
         "backendRefs": to("v2")},
        {"matches": [{"headers": [{"name": "version", "value": "two"}]}], "backendRefs": to("v2")},
    ]);
    mesh.apply(&route("GRPCRoute", "methods", "all", &service_parent("methods", "server"), &rules));
    until(&mesh, &client, &["--service", CART, "--method", "Get"], |report| app(report) == "v1");
    for (more, expected) in [
        (&["--service", CART, "--method", "Get"][..], "v1"),
        (&["--service", CART, "--method", "Special"], "v2"),
        (&["--service", "x.y.Z", "--method", "Anywhere"], "v2"),
        (&["--service", "other.v12.S", "--method", "M"], "v2"),
        (&["--service", "x.y.Z", "--method", "M", "--header", "version: two"], "v2"),
        (&["--service", CART, "--method", "Get", "--header", "version: two"], "v1"),
    ] {
        let report = call(&mesh, &client, more);
        assert_eq!((app(&report), report["status"].as_i64()), (expected, Some(0)), "{more:?}: {report}");
    }
    for service in ["x.y.Z", "other.v12.Sx", "another.v12.S"] {
        let report = call(&mesh, &client, &["--service", service, "--method", "M"]);
        assert_eq!(report["status"], 12, "Unimplemented: {report}");
        let said = report["last_headers"]["proxy-status"].as_str().unwrap_or_default();
        assert!(said.contains("RouteNotFound"), "{report}");
    }
}

#[test]
fn own_answers_have_a_grpc_status() {
    let mesh = MESH.beside();
    let (shop, client) = mesh.open_versions("answers");
    mesh.apply(&shop.service_for("nobody", "no-such-app", &json!({})));
    let rule = |method: &str, backends: Value| json!({"matches": [{"method": {"service": "s", "method": method}}], "backendRefs": backends});
    let rules = json!([
        rule("Ok", to("v1")),
        rule("None", json!([])),
        rule("Missing", to("no-such-service")),
        rule("Nobody", to("nobody")),
    ]);
    mesh.apply(&route("GRPCRoute", "answers", "all", &service_parent("answers", "server"), &rules));
    until(&mesh, &client, &["--service", "s", "--method", "Ok"], |report| app(report) == "v1");
    for (method, status, reason) in
        [("None", 13, "NoBackend"), ("Missing", 13, "InvalidBackend"), ("Nobody", 14, "NoEndpoint")]
    {
        let report = call(&mesh, &client, &["--service", "s", "--method", method]);
        assert_eq!(report["status"], status, "{method}: {report}");
        let said = report["last_headers"]["proxy-status"].as_str().unwrap_or_default();
        assert!(said.contains(reason), "{method}: {report}");
    }
    // What a server says is passed on, also when it is nothing but a status.
    let report = call(&mesh, &client, &["--service", "s", "--method", "Ok", "--code", "7"]);
    assert_eq!(report["status"], 7, "{report}");
}

#[test]
fn calls_are_balanced_one_by_one_on_declared_and_undeclared_ports() {
    let mesh = MESH.beside();
    let name = "balanced";
    let shop = Shop::new(name, Labelled::Yes).servers(3);
    let (client, _) = mesh.open(&shop, name);
    let ports = json!({"ports": [{"name": "any", "port": 1, "targetPort": "grpc"}]});
    mesh.apply(&shop.service_for("undeclared", "server", &ports));
    for target in ["server:9003", "undeclared:1"] {
        eventually(&format!("{target} uses every endpoint"), SOON, || {
            let report = mesh.echo(&client, &["grpc", target, "--count", "60"]);
            let pods = report["pods"].as_object().cloned().unwrap_or_default();
            if report["ok"] == 60 && pods.len() == 3 { Ok(()) } else { Err(report.to_string()) }
        });
    }
}

#[test]
fn streams_pass_as_they_come() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("streams");
    let rules = json!([{"backendRefs": to("v2")}]);
    mesh.apply(&route("GRPCRoute", "streams", "all", &service_parent("streams", "server"), &rules));
    until(&mesh, &client, &[], |report| app(report) == "v2");
    let report = call(&mesh, &client, &["--call", "stream", "--count", "20", "--interval", "20"]);
    assert_eq!(report["status"], 0, "{report}");
    assert_eq!(report["ok"], 20, "{report}");
}

#[test]
fn a_grpc_route_takes_the_port_from_an_http_route() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("kinds");
    let parent = service_parent("kinds", "server");
    mesh.apply(&route("HTTPRoute", "kinds", "http", &parent, &json!([{"backendRefs": to("v1")}])));
    until(&mesh, &client, &[], |report| app(report) == "v1");
    mesh.apply(&route("GRPCRoute", "kinds", "grpc", &parent, &json!([{"backendRefs": to("v2")}])));
    until(&mesh, &client, &[], |report| app(report) == "v2");
    eventually("the HTTPRoute is told", SOON, || {
        let route = mesh.get("httproute", Some("kinds"), Some("http"));
        let conditions = route["status"]["parents"][0]["conditions"].as_array().cloned().unwrap_or_default();
        let told = conditions.iter().any(|one| {
            one["type"] == "Accepted" && one["status"] == "False" && one["reason"] == "Conflicted"
        });
        if told { Ok(()) } else { Err(route["status"].to_string()) }
    });
}
