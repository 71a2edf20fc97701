//! Filters that send a request elsewhere beside its backend, or answer in a backend's place: mirrors and CORS.

use culvert_e2e::routes::{backend, port_parent, route};
use culvert_e2e::{Mesh, Pod, SOON, Shared, binary, eventually, run};
use serde_json::{Value, json};
use std::process::Command;

static MESH: Shared = Shared::new("filters");

const PORT: u16 = 8080;

fn http(namespace: &str, rules: &Value) -> String {
    route("HTTPRoute", namespace, "filters", &port_parent(namespace, "server", PORT), rules)
}

fn get(mesh: &Mesh, client: &Pod, path: &str, more: &[&str]) -> Value {
    let url = format!("http://server:{PORT}{path}");
    mesh.echo(client, &[&["get", url.as_str()], more].concat())
}

/// Waits until the route is in force: its rule for `/ready` leads to `v1`.
fn in_force(mesh: &Mesh, client: &Pod) {
    eventually("the route is in force", SOON, || {
        let report = get(mesh, client, "/ready", &[]);
        let by = report["last"]["pod"].as_str().unwrap_or_default();
        if by.starts_with("v1-") { Ok(()) } else { Err(report.to_string()) }
    });
}

fn explained(mesh: &Mesh, client: &Pod, more: &[&str]) -> Value {
    let mut command = Command::new(binary("culvert"));
    let from = format!("{}/{}", client.namespace, client.name);
    command.args(["explain", "-o", "json", "--name", mesh.name(), "--from", &from]).args(more);
    run(command, SOON).ok().json()
}

fn ready() -> Value {
    json!({"matches": [{"path": {"value": "/ready"}}], "backendRefs": [backend("v1")]})
}

fn mirror(to: &Value, share: &Value) -> Value {
    let mut of = json!({"backendRef": to});
    for (field, value) in share.as_object().into_iter().flatten() {
        of[field] = value.clone();
    }
    json!({"type": "RequestMirror", "requestMirror": of})
}

#[test]
fn mirrors_get_their_share_of_copies_and_change_nothing() {
    let mesh = MESH.beside();
    let namespace = "mirrors";
    let (_, client) = mesh.open_versions(namespace);
    let filters = json!([
        mirror(&backend("v2"), &json!({"percent": 20})),
        mirror(&backend("server"), &json!({"fraction": {"numerator": 1, "denominator": 2}})),
        {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/inner"}}},
    ]);
    mesh.apply(&http(namespace, &json!([ready(), {"filters": filters, "backendRefs": [backend("v1")]}])));
    in_force(&mesh, &client);
    let copies = |service: &str| {
        mesh.metrics("node1").sum(
            "istio_requests_total",
            &[
                ("reporter", "mirror"),
                ("destination_service_name", service),
                ("destination_service_namespace", namespace),
                ("response_code", "200"),
            ],
        )
    };
    let report = get(&mesh, &client, "/outer", &["--count", "100"]);
    assert_eq!((&report["last"]["path"], &report["ok"]), (&json!("/inner"), &json!(100)), "{report}");
    eventually("every copy is answered", SOON, || {
        let found = (copies("v2"), copies("server"));
        if found == (20.0, 50.0) { Ok(()) } else { Err(format!("{found:?}")) }
    });
    // Only failures are logged: the query makes all of them fail, at the backend and at the mirrors.
    get(&mesh, &client, "/fails?status=503", &["--count", "10"]);
    let server = format!("{namespace}/server:{PORT}");
    let line = mesh.access_log("node1", &["\"mirror\":true", "/fails", &server]);
    assert_eq!(
        (line["response_code"].as_u64(), line["dst.namespace"].as_str()),
        (Some(503), Some(namespace))
    );
    let explained = explained(&mesh, &client, &[&format!("http://server:{PORT}/outer")]);
    for (index, name, share) in [(0, "mirrors/v2:8080", 0.2), (1, "mirrors/server:8080", 0.5)] {
        let mirror = &explained["mirrors"][index];
        assert_eq!((mirror["mirror"].as_str(), mirror["share"].as_f64()), (Some(name), Some(share)));
        assert_eq!(mirror["request"]["path"], "/outer", "{mirror}");
        assert_eq!(mirror["endpoints"].as_array().map(Vec::len), Some(1), "{mirror}");
    }
}

#[test]
fn a_mirror_that_leads_nowhere_is_told_in_the_status_and_the_rule_goes_on() {
    let mesh = MESH.beside();
    let namespace = "no-mirror";
    let (shop, client) = mesh.open_versions(namespace);
    mesh.apply(&shop.service_for("nobody", "no-such-app", &json!({})));
    let filters =
        json!([mirror(&backend("no-such-service"), &json!({})), mirror(&backend("nobody"), &json!({}))]);
    mesh.apply(&http(namespace, &json!([ready(), {"filters": filters, "backendRefs": [backend("v1")]}])));
    in_force(&mesh, &client);
    eventually("the status tells of the reference", SOON, || {
        let route = mesh.get("httproute", Some(namespace), Some("filters"));
        let conditions = route["status"]["parents"][0]["conditions"].clone();
        let says = |kind: &str, status: &str, words: &str| {
            conditions.as_array().is_some_and(|all| {
                all.iter().any(|one| {
                    let told = one["message"].as_str().unwrap_or_default();
                    one["type"] == kind && one["status"] == status && told.contains(words)
                })
            })
        };
        let told = says("Accepted", "True", "")
            && says(
                "ResolvedRefs",
                "False",
                "rules[1].filters[0].requestMirror.backendRef: there is no Service",
            );
        if told { Ok(()) } else { Err(conditions.to_string()) }
    });
    let report = get(&mesh, &client, "/any", &["--count", "10"]);
    assert_eq!((&report["ok"], &report["last_status"]), (&json!(10), &json!(200)), "{report}");
    mesh.access_log("node1", &["\"mirror\":true", "\"NoEndpoint\"", "/any"]);
}

#[test]
fn preflights_are_answered_and_responses_say_who_may_read_them() {
    let mesh = MESH.beside();
    let namespace = "cors";
    let (_, client) = mesh.open_versions(namespace);
    let cors = json!([{"type": "CORS", "cors": {"allowOrigins": ["https://*.example.com"], "allowMethods": ["PUT"],
        "allowHeaders": ["*"], "exposeHeaders": ["x-total"], "allowCredentials": true, "maxAge": 60}}]);
    mesh.apply(&http(namespace, &json!([ready(), {"filters": cors, "backendRefs": [backend("v1")]}])));
    in_force(&mesh, &client);
    let preflight = |origin: &str| {
        let origin = format!("origin: {origin}");
        let asked = ["access-control-request-method: PUT", "access-control-request-headers: x-token"];
        let more = ["--method", "OPTIONS", "--header", &origin, "--header", asked[0], "--header", asked[1]];
        let url = format!("http://server:{PORT}/a");
        (get(&mesh, &client, "/a", &more), explained(&mesh, &client, &[&more[..], &[&url]].concat()))
    };
    for versions in [&[][..], &["--http2"]] {
        let origin = "https://app.example.com";
        let more =
            [&["--method", "PUT", "--header", "origin: https://app.example.com"][..], versions].concat();
        let report = get(&mesh, &client, "/a?header=access-control-allow-origin:*&header=x-total:7", &more);
        let said = &report["last_headers"];
        assert_eq!(said["access-control-allow-origin"], origin, "the backend's own does not count: {report}");
        assert_eq!(said["access-control-expose-headers"], "x-total", "{report}");
    }
    let (granted, explained) = preflight("https://app.example.com");
    assert_eq!(granted["last_status"], 204, "{granted}");
    for (name, value) in [
        ("access-control-allow-origin", "https://app.example.com"),
        ("access-control-allow-methods", "PUT"),
        ("access-control-allow-headers", "x-token"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "60"),
    ] {
        assert_eq!(granted["last_headers"][name], value, "{granted}");
    }
    assert_eq!(explained["outcomes"][0]["outcome"], "preflight", "{explained}");
    let (refused, explained) = preflight("https://example.org");
    assert_eq!(refused["last_status"], 403, "{refused}");
    assert!(refused["last_headers"].get("access-control-allow-origin").is_none(), "{refused}");
    assert_eq!(explained["outcomes"][0]["reason"], "OriginNotAllowed", "{explained}");
    mesh.access_log("node1", &["\"OriginNotAllowed\"", "\"response_code\":403"]);
}
