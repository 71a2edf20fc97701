//! A first slice of Gateways: HTTP listeners in the namespaces of the Gateway's own pods, reached from outside.

use culvert_e2e::routes::{backend, route_to, service_parent};
use culvert_e2e::{Labelled, Mesh, SOON, Shared, Shop, binary, eventually};
use serde_json::{Value, json};
use std::time::Duration;

static MESH: Shared = Shared::new("gateways");

/// Starting a Gateway takes its Deployment, the image's pod, enrolment and reports.
const GATEWAY: Duration = Duration::from_secs(40);

fn document(value: &Value) -> String {
    format!("---\n{value}\n")
}

fn class() -> String {
    document(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "culvert"},
        "spec": {"controllerName": "culvert.dev/gateway-controller"},
    }))
}

fn gateway(namespace: &str, listeners: &Value) -> String {
    document(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": "edge", "namespace": namespace},
        "spec": {"gatewayClassName": "culvert", "listeners": listeners},
    }))
}

fn listener(name: &str, hostname: Option<&str>) -> Value {
    let mut listener = json!({"name": name, "port": 80, "protocol": "HTTP"});
    if let Some(hostname) = hostname {
        listener["hostname"] = json!(hostname);
    }
    listener
}

fn gateway_parent(section: Option<&str>) -> Value {
    let mut parent = json!({"name": "edge"});
    if let Some(section) = section {
        parent["sectionName"] = json!(section);
    }
    parent
}

fn route(namespace: &str, name: &str, parents: &[Value], hostnames: &[&str], to: &Value) -> String {
    let text = route_to("HTTPRoute", namespace, name, parents, &json!([{"backendRefs": [to]}]));
    let mut object: Value = serde_json::from_str(text.trim_start_matches("---\n").trim()).expect("JSON");
    object["spec"]["hostnames"] = json!(hostnames);
    document(&object)
}

fn condition(conditions: &Value, kind: &str) -> String {
    let found = conditions.as_array().into_iter().flatten().find(|one| one["type"] == kind);
    found.map_or_else(String::new, |one| format!("{}/{}", one["status"], one["reason"]).replace('"', ""))
}

/// A shop with versions, and a programmed Gateway; its address.
fn open(mesh: &Mesh, name: &str, listeners: &Value) -> String {
    let shop = Shop::new(name, Labelled::Yes);
    mesh.apply(&(shop.with_versions(&["v1", "v2"]) + &class() + &gateway(name, listeners)));
    eventually("the Gateway is programmed and has an address", GATEWAY, || {
        let gateway = mesh.get("gateway", Some(name), Some("edge"));
        let programmed = condition(&gateway["status"]["conditions"], "Programmed");
        let addresses = gateway["status"]["addresses"].as_array().cloned().unwrap_or_default();
        let v4 = addresses.iter().filter_map(|one| one["value"].as_str()).find(|value| value.contains('.'));
        match v4 {
            Some(address) if programmed.starts_with("True/") => Ok(address.to_owned()),
            _ => Err(gateway["status"].to_string()),
        }
    })
}

/// A request of a client outside the nodes.
fn ask(mesh: &Mesh, address: &str, host: &str, path: &str) -> Value {
    let echo = binary("culvert-echo").display().to_string();
    let (url, header) = (format!("http://{address}{path}"), format!("Host: {host}"));
    mesh.sandbox(&["exec", "outside", "--", &echo, "get", &url, "--header", &header, "--timeout", "3000"])
        .json()
}

fn app(report: &Value) -> &str {
    report["last"]["pod"].as_str().and_then(|pod| pod.split('-').next()).unwrap_or("nobody")
}

#[test]
fn listeners_are_reached_from_outside_and_chosen_by_host() {
    let mesh = MESH.beside();
    let name = "hosts";
    let listeners = json!([
        listener("any", None),
        listener("wild", Some("*.example.org")),
        listener("exact", Some("www.example.org")),
    ]);
    let address = open(&mesh, name, &listeners);
    mesh.apply(
        &(route(name, "any", &[gateway_parent(Some("any"))], &[], &backend("server"))
            + &route(name, "wild", &[gateway_parent(Some("wild"))], &[], &backend("v1"))
            + &route(name, "exact", &[gateway_parent(Some("exact"))], &["www.example.org"], &backend("v2"))),
    );
    for (host, expected) in [
        ("other.net", "server"),
        ("a.example.org", "v1"),
        ("a.b.example.org:8080", "v1"),
        ("www.example.org", "v2"),
        ("WWW.Example.Org", "v2"),
        ("example.org", "server"),
    ] {
        eventually(&format!("{host} is served"), SOON, || {
            let report = ask(&mesh, &address, host, "/");
            if app(&report) == expected { Ok(()) } else { Err(format!("{expected}: {report}")) }
        });
    }
    // The chosen listener has no route any more: no other takes its place.
    mesh.delete(&route(
        name,
        "exact",
        &[gateway_parent(Some("exact"))],
        &["www.example.org"],
        &backend("v2"),
    ));
    eventually("listeners are apart", SOON, || {
        let report = ask(&mesh, &address, "www.example.org", "/");
        if report["last_status"] == 404 { Ok(()) } else { Err(report.to_string()) }
    });
    let report = ask(&mesh, &address, "a.example.org", "/");
    let forwarded = report["last"]["headers"]["x-forwarded-for"][0].as_str().unwrap_or_default();
    assert!(!forwarded.is_empty(), "the client's address: {report}");
}

#[test]
fn a_route_of_a_gateway_and_a_service_has_a_status_for_each() {
    let mesh = MESH.beside();
    let name = "both";
    let address = open(&mesh, name, &json!([listener("web", None)]));
    let other = Shop::new("elsewhere", Labelled::Yes);
    let (_, _) = mesh.open(&other, "elsewhere");
    let to = json!({"name": "server", "namespace": "elsewhere", "port": 8080});
    let both = route(name, "both", &[gateway_parent(None), service_parent(name, "server")], &[], &to);
    mesh.apply(&both);
    let told = |index: usize, kind: &str| {
        let route = mesh.get("httproute", Some(name), Some("both"));
        condition(&route["status"]["parents"][index]["conditions"], kind)
    };
    eventually("each parent has its own answer", SOON, || {
        let found =
            [told(0, "Accepted"), told(0, "ResolvedRefs"), told(1, "Accepted"), told(1, "ResolvedRefs")];
        let wanted = ["True/Accepted", "False/RefNotPermitted", "True/Accepted", "True/ResolvedRefs"];
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    });
    let client = mesh.pod(name, "client");
    eventually("the Service's clients are sent there", SOON, || {
        let report = mesh.echo(&client, &["get", "http://server:8080/"]);
        if report["last"]["namespace"] == "elsewhere" { Ok(()) } else { Err(report.to_string()) }
    });
    eventually("the Gateway's are not", SOON, || {
        let report = ask(&mesh, &address, "any", "/");
        if report["last_status"] == 500 { Ok(()) } else { Err(report.to_string()) }
    });
    mesh.apply(&document(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
        "metadata": {"name": "both", "namespace": "elsewhere"},
        "spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": name}],
                 "to": [{"group": "", "kind": "Service"}]},
    })));
    eventually("a grant is enough", SOON, || {
        let report = ask(&mesh, &address, "any", "/");
        if report["last"]["namespace"] == "elsewhere" && told(0, "ResolvedRefs") == "True/ResolvedRefs" {
            Ok(())
        } else {
            Err(report.to_string())
        }
    });
}

#[test]
fn what_a_gateway_asks_beyond_gets_an_honest_condition() {
    let mesh = MESH.beside();
    let name = "beyond";
    let listeners = json!([
        listener("web", None),
        {"name": "tcp", "port": 9000, "protocol": "TCP"},
        {"name": "twice", "port": 80, "protocol": "HTTP"},
    ]);
    mesh.apply(&(Shop::new(name, Labelled::Yes).yaml() + &class() + &gateway(name, &listeners)));
    eventually("every listener has its answer", GATEWAY, || {
        let gateway = mesh.get("gateway", Some(name), Some("edge"));
        let of = |listener: &str, kind: &str| {
            let all = gateway["status"]["listeners"].as_array().cloned().unwrap_or_default();
            let one = all.into_iter().find(|one| one["name"] == listener).unwrap_or_default();
            condition(&one["conditions"], kind)
        };
        let honest = of("tcp", "Accepted") == "False/UnsupportedProtocol"
            && of("web", "Conflicted").starts_with("True/")
            && of("twice", "Conflicted").starts_with("True/");
        if honest { Ok(()) } else { Err(gateway["status"].to_string()) }
    });
}

#[test]
fn listeners_come_and_go_without_a_failed_request() {
    let mesh = MESH.beside();
    let name = "moving";
    let address = open(&mesh, name, &json!([listener("web", None)]));
    mesh.apply(&route(name, "web", &[gateway_parent(Some("web"))], &[], &backend("server")));
    eventually("it is served", SOON, || {
        let report = ask(&mesh, &address, "any", "/");
        if app(&report) == "server" { Ok(()) } else { Err(report.to_string()) }
    });
    let echo = binary("culvert-echo").display().to_string();
    let url = format!("http://{address}/");
    let load = culvert_e2e::Session::start(mesh.command(&[
        "exec",
        "outside",
        "--",
        &echo,
        "get",
        &url,
        "--rate",
        "200",
        "--seconds",
        "6",
        "--connections",
        "8",
    ]));
    for round in 0..3 {
        let listeners = if round % 2 == 0 {
            json!([listener("web", None), {"name": "more", "port": 8081, "protocol": "HTTP"}])
        } else {
            json!([listener("web", None)])
        };
        mesh.apply(&gateway(name, &listeners));
        std::thread::sleep(Duration::from_secs(1));
    }
    let report = load.next(Duration::from_secs(30));
    assert_eq!(report["ok"], report["requests"], "{report}");
}
