//! HTTPRoutes on Services: which rule a request takes and what is done to it.

use culvert_e2e::routes::{backend, port_parent, route, route_to, rule, service_parent, weighted};
use culvert_e2e::{Labelled, Mesh, Pod, SOON, Shared, Shop, eventually};
use serde_json::{Value, json};
use std::time::Duration;

static MESH: Shared = Shared::new("http-routes");

const VERSIONS: [&str; 2] = ["v1", "v2"];

fn http(namespace: &str, name: &str, rules: &Value) -> String {
    route("HTTPRoute", namespace, name, &service_parent(namespace, "server"), rules)
}

/// One request; the client's report.
fn get(mesh: &Mesh, client: &Pod, path: &str, more: &[&str]) -> Value {
    let url = format!("http://server:8080{path}");
    mesh.echo(client, &[&["get", url.as_str()], more].concat())
}

/// The Deployment that answered.
fn app(report: &Value) -> &str {
    report["last"]["pod"].as_str().and_then(|pod| pod.split('-').next()).unwrap_or("nobody")
}

/// Waits until the client's node answers a request in this way.
fn until(mesh: &Mesh, client: &Pod, path: &str, more: &[&str], is_so: impl Fn(&Value) -> bool) {
    eventually(&format!("{path} is answered as the route says"), SOON, || {
        let report = get(mesh, client, path, more);
        if is_so(&report) { Ok(()) } else { Err(report.to_string()) }
    });
}

fn accepted(mesh: &Mesh, kind: &str, namespace: &str, name: &str) {
    eventually(&format!("{kind} {name} is accepted"), SOON, || {
        let route = mesh.get(kind, Some(namespace), Some(name));
        let conditions = &route["status"]["parents"][0]["conditions"];
        let is = |kind: &str| {
            conditions.as_array().is_some_and(|all| {
                all.iter().any(|one| {
                    one["type"] == kind
                        && one["status"] == "True"
                        && one["observedGeneration"] == route["metadata"]["generation"]
                })
            })
        };
        if is("Accepted") && is("ResolvedRefs") { Ok(()) } else { Err(route["status"].to_string()) }
    });
}

#[test]
fn every_match_and_the_order_of_rules() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("matches");
    let rules = json!([
        rule(&json!([{"path": {"type": "PathPrefix", "value": "/"}}]), "v1"),
        rule(&json!([{"path": {"type": "PathPrefix", "value": "/pre"}}]), "v2"),
        rule(&json!([{"path": {"type": "Exact", "value": "/pre/exact"}}]), "v1"),
        rule(&json!([{"path": {"type": "RegularExpression", "value": "/r/[0-9]+"}}]), "v2"),
        rule(&json!([{"method": "DELETE"}]), "v2"),
        rule(&json!([{"headers": [{"name": "X-Version", "value": "two"}]}]), "v2"),
        rule(
            &json!([{"headers": [{"type": "RegularExpression", "name": "x-user", "value": "be?ta.*"}]}]),
            "v2"
        ),
        rule(&json!([{"queryParams": [{"name": "v", "value": "2"}]}]), "v2"),
        rule(
            &json!([{"path": {"value": "/and"}, "method": "POST", "headers": [{"name": "a", "value": "b"}]}]),
            "v2"
        ),
    ]);
    mesh.apply(&http("matches", "all", &rules));
    accepted(&mesh, "httproute", "matches", "all");
    until(&mesh, &client, "/pre", &[], |report| app(report) == "v2");
    let cases: [(&str, &[&str], &str); 22] = [
        ("/", &[], "v1"),
        ("/other", &[], "v1"),
        ("/pre", &[], "v2"),
        ("/pre/", &[], "v2"),
        ("/pre/fix", &[], "v2"),
        ("/prefix", &[], "v1"),
        ("/PRE", &[], "v1"),
        ("/pre/exact", &[], "v1"),
        ("/pre/exact/", &[], "v2"),
        ("/pre/exact?a=b", &[], "v1"),
        ("/r/123", &[], "v2"),
        ("/r/123x", &[], "v1"),
        ("/x/r/123", &[], "v1"),
        ("/any", &["--method", "DELETE"], "v2"),
        ("/", &["--header", "x-version: two"], "v2"),
        ("/", &["--header", "x-version: Two"], "v1"),
        ("/", &["--header", "X-User: beta-tester"], "v2"),
        ("/", &["--header", "X-User: not-beta"], "v1"),
        ("/?v=2", &[], "v2"),
        ("/?v=3&v=2", &[], "v1"),
        ("/and", &["--method", "POST", "--header", "a: b"], "v2"),
        ("/and", &["--method", "POST"], "v1"),
    ];
    for http2 in [&[][..], &["--http2"]] {
        for (path, more, expected) in cases {
            let report = get(&mesh, &client, path, &[more, http2].concat());
            assert_eq!(app(&report), expected, "{path} {more:?} {http2:?}: {report}");
        }
    }
}

#[test]
fn headers_are_changed_at_rule_and_backend() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("headers");
    let edit = |tag: &str| {
        json!({"set": [{"name": "X-Set", "value": tag}], "add": [{"name": "X-Add", "value": tag}],
            "remove": [format!("x-remove-{tag}")]})
    };
    let filters = |tag: &str| {
        json!([{"type": "RequestHeaderModifier", "requestHeaderModifier": edit(tag)},
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": {
                "set": [{"name": "X-Set", "value": tag}], "add": [{"name": "X-Add", "value": tag}], "remove": ["x-echo-pod"]}}])
    };
    let mut to = backend("v1");
    to["filters"] = filters("backend");
    mesh.apply(&http("headers", "edit", &json!([{"filters": filters("rule"), "backendRefs": [to]}])));
    until(&mesh, &client, "/", &[], |report| app(report) == "v1");
    let headers = [
        "--header",
        "X-Set: client",
        "--header",
        "X-Add: client",
        "--header",
        "X-Remove-Rule: 1",
        "--header",
        "X-Remove-Backend: 1",
        "--header",
        "X-Keep: 1",
    ];
    let report = get(&mesh, &client, "/", &headers);
    let seen = &report["last"]["headers"];
    assert_eq!(seen["x-set"], json!(["backend"]), "{report}");
    assert_eq!(joined(&seen["x-add"]), "client,rule,backend", "{report}");
    assert_eq!(seen["x-keep"], json!(["1"]), "{report}");
    assert!(seen.get("x-remove-rule").is_none() && seen.get("x-remove-backend").is_none(), "{report}");
    let answered = &report["last_headers"];
    assert_eq!(answered["x-set"], "rule", "the rule's is applied after the backend's: {report}");
    assert!(answered.get("x-echo-pod").is_none(), "{report}");
    assert!(answered["x-add"].as_str().is_some_and(|all| all.contains("rule") && all.contains("backend")));
}

fn joined(values: &Value) -> String {
    let all: Vec<&str> = values.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    all.join(",").replace(", ", ",")
}

#[test]
fn redirects_of_every_kind() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("redirects");
    let redirect = |path: &str, to: Value| {
        json!({"matches": [{"path": {"type": "PathPrefix", "value": path}}],
            "filters": [{"type": "RequestRedirect", "requestRedirect": to}]})
    };
    let rules = json!([
        redirect("/plain", json!({"hostname": "example.org"})),
        redirect("/301", json!({"statusCode": 301, "hostname": "example.org"})),
        redirect("/303", json!({"statusCode": 303, "hostname": "example.org"})),
        redirect("/307", json!({"statusCode": 307, "port": 8443})),
        redirect("/308", json!({"statusCode": 308, "scheme": "https"})),
        redirect("/https", json!({"scheme": "https", "hostname": "example.org", "port": 443})),
        redirect("/full", json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/new"}})),
        redirect("/prefix", json!({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}})),
    ]);
    mesh.apply(&http("redirects", "all", &rules));
    until(&mesh, &client, "/plain", &[], |report| report["last_status"] == 302);
    for (path, status, location) in [
        ("/plain/x?q=1", 302, "http://example.org:8080/plain/x?q=1"),
        ("/301", 301, "http://example.org:8080/301"),
        ("/303", 303, "http://example.org:8080/303"),
        ("/307", 307, "http://server:8443/307"),
        ("/308", 308, "https://server/308"),
        ("/https", 302, "https://example.org/https"),
        ("/full/a/b?c", 302, "http://server:8080/new?c"),
        ("/prefix/a", 302, "http://server:8080/new/a"),
        ("/prefix", 302, "http://server:8080/new"),
    ] {
        let report = get(&mesh, &client, path, &[]);
        assert_eq!(report["last_status"], status, "{path}: {report}");
        assert_eq!(report["last_headers"]["location"], location, "{path}: {report}");
    }
}

#[test]
fn rewrites_of_host_and_path() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("rewrites");
    let rewrite = |path: &str, to: Value| {
        json!({"matches": [{"path": {"type": "PathPrefix", "value": path}}],
            "filters": [{"type": "URLRewrite", "urlRewrite": to}], "backendRefs": [backend("v1")]})
    };
    let rules = json!([
        rewrite("/host", json!({"hostname": "one.example.org"})),
        rewrite("/full", json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/new"}})),
        rewrite("/prefix/", json!({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new/"}})),
        rewrite("/strip", json!({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": ""}})),
    ]);
    mesh.apply(&http("rewrites", "all", &rules));
    until(&mesh, &client, "/host", &[], |report| app(report) == "v1");
    for (path, host, seen) in [
        ("/host/x", "one.example.org", "/host/x"),
        ("/full/a?b=c", "server:8080", "/new?b=c"),
        ("/prefix/a/b", "server:8080", "/new/a/b"),
        ("/prefix", "server:8080", "/new"),
        ("/strip/a", "server:8080", "/a"),
        ("/strip", "server:8080", "/"),
    ] {
        let report = get(&mesh, &client, path, &[]);
        assert_eq!(report["last"]["path"], seen, "{path}: {report}");
        assert_eq!(report["last"]["headers"]["host"], json!([host]), "{path}: {report}");
    }
}

#[test]
fn own_answers_say_why() {
    let mesh = MESH.beside();
    let (shop, client) = mesh.open_versions("answers");
    mesh.apply(&shop.service_for("nobody", "no-such-app", &json!({})));
    let to = |path: &str, backends: Value| json!({"matches": [{"path": {"value": path}}], "backendRefs": backends});
    let mut unsupported = to("/unsupported", json!([backend("v1")]));
    unsupported["filters"] = json!([{"type": "ExtensionRef",
        "extensionRef": {"group": "example.org", "kind": "Magic", "name": "m"}}]);
    let rules = json!([
        to("/ok", json!([backend("v1")])),
        to("/none", json!([])),
        to("/zero", json!([weighted("v1", 0)])),
        to("/missing", json!([backend("no-such-service")])),
        to("/nobody", json!([backend("nobody")])),
        unsupported,
    ]);
    mesh.apply(&http("answers", "all", &rules));
    until(&mesh, &client, "/ok", &[], |report| app(report) == "v1");
    for (path, status, reason) in [
        ("/elsewhere", 404, "RouteNotFound"),
        ("/none", 500, "NoBackend"),
        ("/zero", 500, "NoBackend"),
        ("/missing", 500, "InvalidBackend"),
        ("/nobody", 503, "NoEndpoint"),
        ("/unsupported", 500, "RouteUnsupported"),
    ] {
        let report = get(&mesh, &client, path, &[]);
        assert_eq!(report["last_status"], status, "{path}: {report}");
        let said = report["last_headers"]["proxy-status"].as_str().unwrap_or_default();
        assert!(said.contains(reason), "{path}: {said}");
        let line = mesh.access_log("node1", &[&format!("\"{path}\""), reason]);
        assert_eq!(line["response_code"], status, "{line}");
    }
}

#[test]
fn timeouts_end_a_request_also_in_the_middle_of_a_body() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("timeouts");
    let timed = |path: &str, timeouts: Value| json!({"matches": [{"path": {"value": path}}], "timeouts": timeouts, "backendRefs": [backend("v1")]});
    let rules = json!([
        timed("/request", json!({"request": "300ms"})),
        timed("/backend", json!({"request": "2s", "backendRequest": "300ms"})),
        timed("/off", json!({"request": "0s"})),
    ]);
    mesh.apply(&http("timeouts", "all", &rules));
    until(&mesh, &client, "/off", &[], |report| app(report) == "v1");
    for (path, reason) in [("/request", "RequestTimeout"), ("/backend", "BackendTimeout")] {
        assert_eq!(app(&get(&mesh, &client, path, &[])), "v1", "in time");
        let report = get(&mesh, &client, &format!("{path}?delay=3000ms"), &[]);
        assert_eq!(report["last_status"], 504, "{path}: {report}");
        let said = report["last_headers"]["proxy-status"].as_str().unwrap_or_default();
        assert!(said.contains(reason), "{said}");
        let report = get(&mesh, &client, &format!("{path}?chunks=20&every=100"), &[]);
        assert_eq!(report["ok"], 0, "the body is cut: {report}");
        assert!(report["seconds"].as_f64() < Some(1.5), "{report}");
    }
    let report = get(&mesh, &client, "/off?delay=1000ms", &[]);
    assert_eq!(report["last_status"], 200, "0s is no limit: {report}");
}

#[test]
fn the_destination_decides_and_not_the_host_header() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("hosts");
    mesh.apply(&http("hosts", "to-two", &json!([{"backendRefs": [backend("v2")]}])));
    until(&mesh, &client, "/", &[], |report| app(report) == "v2");
    for host in ["v1", "v1.hosts.svc.cluster.local:8080", "example.org.", "EXAMPLE.org:1"] {
        let header = format!("Host: {host}");
        let report = mesh.echo(&client, &["get", "http://server:8080/", "--header", &header]);
        assert_eq!(app(&report), "v2", "{host}: {report}");
        let report = mesh.echo(&client, &["get", "http://v1:8080/", "--header", "Host: server"]);
        assert_eq!(app(&report), "v1", "the Service that was called has no route: {report}");
    }
    let server = mesh.pod("hosts", "server");
    let report = mesh.echo(&client, &["get", &format!("http://{}/", server.at(8080))]);
    assert_eq!(app(&report), "server", "routes do not apply to a pod's address: {report}");
}

#[test]
fn a_parent_may_be_one_port() {
    let mesh = MESH.beside();
    let (shop, client) = mesh.open_versions("ports");
    let ports = json!({"ports": [
        {"name": "one", "port": 81, "targetPort": "http"}, {"name": "two", "port": 82, "targetPort": "http"},
        {"name": "three", "port": 83, "targetPort": "http"}]});
    mesh.apply(&shop.service_for("many", "server", &ports));
    let rules = json!([{"backendRefs": [backend("v2")]}]);
    let named = json!({"group": "", "kind": "Service", "name": "many", "sectionName": "two"});
    let parents = [port_parent("ports", "many", 81), named];
    mesh.apply(&route_to("HTTPRoute", "ports", "some", &parents, &rules));
    let answers = |port: u16| {
        let report = mesh.echo(&client, &["get", &format!("http://many:{port}/")]);
        app(&report).to_owned()
    };
    eventually("ports 81 and 82 have the route", SOON, || {
        let found = [81, 82, 83].map(answers);
        if found == ["v2", "v2", "server"] { Ok(()) } else { Err(format!("{found:?}")) }
    });
    let both = json!({"group": "", "kind": "Service", "name": "many", "sectionName": "two", "port": 81});
    mesh.apply(&route_to("HTTPRoute", "ports", "some", &[both], &rules));
    eventually("a name and a number that do not belong together match nothing", SOON, || {
        let route = mesh.get("httproute", Some("ports"), Some("some"));
        let condition = &route["status"]["parents"][0]["conditions"][0];
        if condition["reason"] == "NoMatchingParent" && [81, 82, 83].map(answers) == ["server"; 3] {
            Ok(())
        } else {
            Err(route["status"].to_string())
        }
    });
}

#[test]
fn consumer_routes_replace_producer_routes_for_their_namespace_only() {
    let mesh = MESH.beside();
    let (_, producer_client) = mesh.open_versions("producer");
    let consumer = Shop::new("consumer", Labelled::Yes);
    mesh.apply(&consumer.with_versions(&VERSIONS));
    mesh.settled("consumer");
    let client = mesh.pod("consumer", "client");
    mesh.reaches(&client, "server.producer:9000");
    let ask =
        |client: &Pod, path: &str| mesh.echo(client, &["get", &format!("http://server.producer:8080{path}")]);
    let rules = json!([rule(&json!([{"path": {"value": "/p"}}]), "v1")]);
    mesh.apply(&http("producer", "made", &rules));
    eventually("the producer's route holds for everybody", SOON, || {
        let seen = [&producer_client, &client].map(|client| {
            let report = ask(client, "/p");
            (app(&report).to_owned(), report["last"]["namespace"].clone())
        });
        let is_v1 = |(app, namespace): &(String, Value)| app == "v1" && namespace == "producer";
        if seen.iter().all(is_v1) { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    assert_eq!(ask(&client, "/other")["last_status"], 404);
    // Its backend is named without a namespace: that of the route.
    let own = json!([rule(&json!([{"path": {"value": "/c"}}]), "v2")]);
    mesh.apply(&route("HTTPRoute", "consumer", "wanted", &service_parent("producer", "server"), &own));
    eventually("the consumer's route replaces it", SOON, || {
        let report = ask(&client, "/c");
        let is = app(&report) == "v2" && report["last"]["namespace"] == "consumer";
        if is { Ok(()) } else { Err(report.to_string()) }
    });
    assert_eq!(ask(&client, "/p")["last_status"], 404, "not merged");
    assert_eq!(app(&ask(&producer_client, "/p")), "v1");
    assert_eq!(ask(&producer_client, "/c")["last_status"], 404);
    accepted(&mesh, "httproute", "producer", "made");
    accepted(&mesh, "httproute", "consumer", "wanted");
    mesh.delete(&route("HTTPRoute", "consumer", "wanted", &service_parent("producer", "server"), &own));
    eventually("the producer's route is back", SOON, || {
        let report = ask(&client, "/p");
        if app(&report) == "v1" { Ok(()) } else { Err(report.to_string()) }
    });
}

#[test]
fn parents_that_cannot_be_are_refused_in_status() {
    let mesh = MESH.beside();
    let (shop, _) = mesh.open_versions("parents");
    mesh.apply(&shop.service_for("headless", "server", &json!({"clusterIP": "None"})));
    mesh.apply(
        "---\n{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"outside\", \"namespace\": \"parents\"}, \
         \"spec\": {\"type\": \"ExternalName\", \"externalName\": \"example.org\"}}\n",
    );
    let parents = ["headless", "outside", "missing"].map(|name| service_parent("parents", name));
    mesh.apply(&route_to(
        "HTTPRoute",
        "parents",
        "none",
        &parents,
        &json!([{"backendRefs": [backend("v1")]}]),
    ));
    eventually("every parent has its answer", SOON, || {
        let route = mesh.get("httproute", Some("parents"), Some("none"));
        let parents = route["status"]["parents"].as_array().cloned().unwrap_or_default();
        let refused = |index: usize| {
            parents.get(index).is_some_and(|parent| {
                parent["conditions"].as_array().is_some_and(|all| {
                    all.iter().any(|one| one["type"] == "Accepted" && one["status"] == "False")
                })
            })
        };
        if (0..3).all(refused) { Ok(()) } else { Err(route["status"].to_string()) }
    });
}

#[test]
fn edits_under_load_fail_no_request() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("edits");
    let to = |version: &str| http("edits", "moving", &json!([{"backendRefs": [backend(version)]}]));
    mesh.apply(&to("v1"));
    until(&mesh, &client, "/", &[], |report| app(report) == "v1");
    let load = mesh.echo_session(
        &client,
        &["get", "http://server:8080/", "--rate", "1000", "--seconds", "8", "--connections", "16"],
    );
    for round in 0..40 {
        mesh.apply(&to(VERSIONS[round % 2]));
    }
    let report = load.next(Duration::from_secs(60));
    assert_eq!(report["ok"], report["requests"], "{report}");
    let pods = report["pods"].as_object().cloned().unwrap_or_default();
    assert_eq!(pods.len(), 2, "both were used: {report}");
}
