//! The table of `docs/routing.md`: what is declared of a port, what is seen first on a connection, and what becomes of it.
//! One test per row; the columns are told by how two endpoints share the requests of one connection.

use culvert_e2e::routes::{port_parent, route_to};
use culvert_e2e::{Labelled, Mesh, Pod, SOON, Shared, Shop, eventually};
use serde_json::{Value, json};
use std::time::Duration;

static MESH: Shared = Shared::new("protocols");

/// Ports of the Service under test, by what is behind them.
const HTTP: u16 = 1080;
const ECHO: u16 = 1090;
const FIRST: u16 = 1091;

const TLS_HELLO: &str = "16 03 01 00 05 01 00 00 01 00";
const BINARY: &str = "00 01 02 03";

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    /// Each request to an endpoint of its own.
    Requests,
    /// All of it to one endpoint.
    Bytes,
    /// Reset, with `ProtocolMismatch` in the log.
    Mismatch,
}

struct Row {
    http1: Treatment,
    http2: Treatment,
    others: Treatment,
}

/// How the ports are declared: the `appProtocol` of all of them, if any.
fn open(mesh: &Mesh, name: &str, app_protocol: Option<&str>) -> Pod {
    let shop = Shop::new(name, Labelled::Yes).servers(2);
    let port = |port: u16, target: &str| {
        // A name that declares nothing.
        let mut port = json!({"name": format!("p{port}"), "port": port, "targetPort": target});
        if let Some(protocol) = app_protocol {
            port["appProtocol"] = json!(protocol);
        }
        port
    };
    let ports = json!({"ports": [port(HTTP, "http"), port(ECHO, "tcp"), port(FIRST, "tcp-first")]});
    let (client, _) = mesh.open(&shop, name);
    mesh.apply(&shop.service_for("row", "server", &ports));
    eventually("the new name is found", SOON, || {
        let done = mesh.exec(&client, &["getent", "hosts", "row"]);
        if done.code == 0 { Ok(()) } else { Err(done.said()) }
    });
    client
}

fn check(mesh: &Mesh, client: &Pod, row: &Row) {
    for (more, expected) in [(&[][..], row.http1), (&["--http2"], row.http2)] {
        let url = format!("http://row:{HTTP}/");
        let treatment = eventually("requests are answered", SOON, || {
            let report = mesh.echo(client, &[&["get", &url, "--count", "40"], more].concat());
            match report["pods"].as_object().map(serde_json::Map::len) {
                Some(1) if report["ok"] == 40 => Ok(Treatment::Bytes),
                Some(2) if report["ok"] == 40 => Ok(Treatment::Requests),
                _ => Err(report.to_string()),
            }
        });
        assert_eq!(treatment, expected, "{more:?}");
    }
    for bytes in [TLS_HELLO, BINARY] {
        let answer = raw(mesh, client, ECHO, bytes, 2000);
        let treatment = match answer["outcomes"].as_object() {
            Some(outcomes) if outcomes.contains_key("reset") => Treatment::Mismatch,
            _ if answer["answer"] == bytes.replace(' ', "") => Treatment::Bytes,
            _ => panic!("{bytes}: {answer}"),
        };
        assert_eq!(treatment, row.others, "{bytes}: {answer}");
        if treatment == Treatment::Mismatch {
            mesh.access_log("node1", &["ProtocolMismatch", &format!(":{ECHO}")]);
        }
    }
}

/// Bytes to a port of the Service, and what came back.
fn raw(mesh: &Mesh, client: &Pod, port: u16, bytes: &str, timeout: u32) -> Value {
    let (target, timeout) = (format!("row:{port}"), timeout.to_string());
    mesh.echo(client, &["raw", &target, "--hex", bytes, "--timeout", &timeout])
}

fn server_speaks_first(mesh: &Mesh, client: &Pod) {
    let target = format!("row:{FIRST}");
    let report = mesh.echo(client, &["tcp", "send", &target, "--until", "banner", "--timeout", "3000"]);
    assert!(report["banner"].as_str().is_some_and(|banner| banner.starts_with("220 ")), "{report}");
}

fn silence_is_left_alone(mesh: &Mesh, client: &Pod) {
    let report = raw(mesh, client, ECHO, "", 1500);
    assert_eq!(report["outcomes"], json!({"timeout": 1}), "still open: {report}");
}

#[test]
fn a_routed_port_carries_requests_and_nothing_else() {
    let mesh = MESH.beside();
    let client = open(&mesh, "routed", Some("tcp"));
    let parents = [HTTP, ECHO, FIRST].map(|port| port_parent("routed", "row", port));
    let rules = json!([{"backendRefs": [{"name": "server", "port": 8080}]}]);
    mesh.apply(&route_to("HTTPRoute", "routed", "all", &parents, &rules));
    eventually("the route is in force", SOON, || {
        let report = raw(&mesh, &client, ECHO, BINARY, 2000);
        if report["outcomes"]["reset"] == 1 { Ok(()) } else { Err(report.to_string()) }
    });
    let row = Row { http1: Treatment::Requests, http2: Treatment::Requests, others: Treatment::Mismatch };
    check(&mesh, &client, &row);
    // Nobody is dialled before there is a request: the server cannot speak first, and silence has a deadline.
    let report = raw(&mesh, &client, FIRST, "", 30_000);
    assert_eq!(report["bytes_received"], 0, "{report}");
    assert!(report["outcomes"].get("timeout").is_none(), "{report}");
    let lasted = Duration::from_millis(report["longest_ms"].as_u64().unwrap_or(0));
    assert!((Duration::from_secs(5)..Duration::from_secs(20)).contains(&lasted), "{lasted:?}");
    mesh.access_log("node1", &["RequestHeaderTimeout", &format!(":{FIRST}")]);
}

#[test]
fn a_port_declared_http_carries_requests_and_falls_back_to_bytes() {
    let mesh = MESH.beside();
    let client = open(&mesh, "declared", Some("http"));
    let row = Row { http1: Treatment::Requests, http2: Treatment::Requests, others: Treatment::Bytes };
    check(&mesh, &client, &row);
    server_speaks_first(&mesh, &client);
    silence_is_left_alone(&mesh, &client);
}

#[test]
fn an_undeclared_port_carries_bytes_but_for_http2() {
    let mesh = MESH.beside();
    let client = open(&mesh, "undeclared", None);
    let row = Row { http1: Treatment::Bytes, http2: Treatment::Requests, others: Treatment::Bytes };
    check(&mesh, &client, &row);
    server_speaks_first(&mesh, &client);
    silence_is_left_alone(&mesh, &client);
}

#[test]
fn an_opaque_port_carries_bytes() {
    let mesh = MESH.beside();
    let client = open(&mesh, "opaque", Some("tcp"));
    let row = Row { http1: Treatment::Bytes, http2: Treatment::Bytes, others: Treatment::Bytes };
    check(&mesh, &client, &row);
    server_speaks_first(&mesh, &client);
    silence_is_left_alone(&mesh, &client);
}

#[test]
fn a_setting_makes_a_port_opaque() {
    let mesh = MESH.beside();
    let client = open(&mesh, "setting", Some("http"));
    let ports = format!("{HTTP},{ECHO},{FIRST}");
    mesh.apply(&Shop::new("setting", Labelled::Yes).setting("opaque-ports", &ports).namespace());
    eventually("the setting is in force", SOON, || {
        let url = format!("http://row:{HTTP}/");
        let report = mesh.echo(&client, &["get", &url, "--count", "40"]);
        if report["pods"].as_object().is_some_and(|pods| pods.len() == 1) {
            Ok(())
        } else {
            Err(report.to_string())
        }
    });
    let row = Row { http1: Treatment::Bytes, http2: Treatment::Bytes, others: Treatment::Bytes };
    check(&mesh, &client, &row);
}
