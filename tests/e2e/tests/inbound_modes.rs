//! Who may reach an enrolled pod, and as what: mode × client, and the kubelet's probes.

use culvert_e2e::{Labelled, Mesh, Pod, SOON, Shared, Shop, eventually};
use serde_json::Value;

static MESH: Shared = Shared::new("inbound");

const PORT: u16 = 9000;

struct Scene {
    enrolled: Pod,
    stranger: Pod,
    server: Pod,
}

fn scene(mesh: &Mesh, shop: &Shop, name: &str) -> Scene {
    let (enrolled, server) = mesh.open(shop, name);
    let outside = format!("{name}-outside");
    let (stranger, _) = mesh.open(&Shop::new(&outside, Labelled::No), &outside);
    Scene { enrolled, stranger, server }
}

fn send(mesh: &Mesh, from: &Pod, target: &str, token: &str) -> Value {
    mesh.echo(from, &["tcp", "send", target, "--data", token, "--timeout", "3000"])
}

/// Sends a fresh token while the server pod's own interface is recorded: whether it came back, and was readable.
fn shown_by_capture(mesh: &Mesh, from: &Pod, server: &Pod, target: &str) -> (bool, bool) {
    let token = format!("token-{:032x}", rand::random::<u128>());
    let recording = mesh.record_pod(server);
    let report = send(mesh, from, target, &token);
    let summary = recording.finish(&token);
    (report["ok"] == true, !summary.token_seen.is_empty())
}

#[test]
fn permissive_takes_both_and_encrypts_what_it_can() {
    let mesh = MESH.beside();
    let Scene { enrolled, stranger, server } =
        scene(&mesh, &Shop::new("permissive", Labelled::Yes), "permissive");
    for target in [server.at(PORT), server.at_v6(PORT)] {
        assert_eq!(shown_by_capture(&mesh, &enrolled, &server, &target), (true, false), "enrolled, {target}");
        assert_eq!(shown_by_capture(&mesh, &stranger, &server, &target), (true, true), "stranger, {target}");
    }
}

#[test]
fn strict_refuses_plaintext_and_says_so() {
    let mesh = MESH.beside();
    let shop = Shop::new("strict", Labelled::Yes).setting("inbound-mode", "strict");
    let Scene { enrolled, stranger, server } = scene(&mesh, &shop, "strict");
    for target in [server.at(PORT), server.at_v6(PORT)] {
        assert_eq!(shown_by_capture(&mesh, &enrolled, &server, &target), (true, false), "enrolled, {target}");
        let report = send(&mesh, &stranger, &target, "plaintext");
        assert_eq!((&report["ok"], &report["error"]), (&false.into(), &"reset".into()), "{target}: {report}");
    }
    for target in [server.at(PORT), server.at_v6(PORT)] {
        mesh.access_log("node2", &["PlaintextRefused", &target]);
    }
}

#[test]
fn strict_lets_the_declared_probe_through_and_nothing_else_from_a_node() {
    let mesh = MESH.beside();
    let shop = Shop::new("probes", Labelled::Yes).setting("inbound-mode", "strict");
    let Scene { server, .. } = scene(&mesh, &shop, "probes");
    // The pod is ready, so the sandbox's own probe came through. The same from the server's node by hand:
    let get = |path: &str| {
        mesh.node_echo("node2", &["get", &format!("http://{}{path}", server.at(8080)), "--timeout", "2500"])
            .json()
    };
    assert_eq!(get("/ready")["ok"], 1, "the declared probe passes");
    assert_eq!(get("/other")["ok"], 0, "another path does not");
    let post = mesh
        .node_echo(
            "node2",
            &["get", &format!("http://{}/ready", server.at(8080)), "--method", "POST", "--timeout", "2500"],
        )
        .json();
    assert_eq!(post["ok"], 0, "another method does not: {post}");
    let tcp = mesh.node_echo("node2", &["tcp", "send", &server.at(PORT), "--timeout", "2500"]).json();
    assert_eq!(tcp["ok"], false, "another port does not: {tcp}");
    let other = mesh
        .node_echo("node1", &["get", &format!("http://{}/ready", server.at(8080)), "--timeout", "2500"])
        .json();
    assert_eq!(other["ok"], 0, "another node does not: {other}");
    // One good request does not open the connection for a second one of another kind.
    let smuggled = b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\nGET /other HTTP/1.1\r\nHost: x\r\n\r\n";
    let hex: String = smuggled.iter().map(|byte| format!("{byte:02x}")).collect();
    let raw = mesh.node_echo("node2", &["raw", &server.at(8080), "--hex", &hex, "--timeout", "2500"]).json();
    let answer = raw["answer"].as_str().unwrap_or_default();
    let text: String = answer
        .as_bytes()
        .chunks(2)
        .filter_map(|pair| std::str::from_utf8(pair).ok())
        .filter_map(|pair| u8::from_str_radix(pair, 16).ok())
        .map(char::from)
        .collect();
    assert!(!text.contains("/other"), "{text}");
}

#[test]
fn tcp_and_exec_probes_pass_under_strict_too() {
    let mesh = MESH.beside();
    let shop = Shop::new("kinds", Labelled::Yes).setting("inbound-mode", "strict");
    let tcp = shop
        .pod("tcp-probe", "node2")
        .replace("{\"httpGet\":{\"path\":\"/ready\",\"port\":\"http\"}", "{\"tcpSocket\":{\"port\":9000}");
    let exec = shop.pod("exec-probe", "node1").replace(
        "{\"httpGet\":{\"path\":\"/ready\",\"port\":\"http\"}",
        "{\"exec\":{\"command\":[\"true\"]}",
    );
    assert!(tcp.contains("tcpSocket") && exec.contains("exec"), "the manifests say so");
    let accounts = shop.account("tcp-probe") + &shop.account("exec-probe");
    mesh.apply(&(shop.namespace() + &accounts + &tcp + &exec));
    mesh.settled("kinds");
}

#[test]
fn modes_hold_per_port() {
    let mesh = MESH.beside();
    let shop = Shop::new("ports", Labelled::Yes).setting("inbound-mode-ports", "9000=strict,9001=permissive");
    let Scene { enrolled, stranger, server } = scene(&mesh, &shop, "ports");
    assert_eq!(send(&mesh, &stranger, &server.at(9000), "x")["ok"], false);
    assert_eq!(send(&mesh, &enrolled, &server.at(9000), "x")["ok"], true);
    assert_eq!(mesh.echo(&stranger, &["tcp", "send", &server.at(9001), "--until", "banner"])["ok"], true);
    assert_eq!(mesh.echo(&stranger, &["get", &format!("http://{}/", server.at(8080))])["ok"], 1);
}

#[test]
fn the_most_specific_setting_wins_and_follows_edits() {
    let mesh = MESH.beside();
    let strict = Shop::new("layers", Labelled::Yes).setting("inbound-mode", "strict");
    let shop = strict.clone().server_setting("inbound-mode", "permissive");
    let Scene { stranger, server, enrolled } = scene(&mesh, &shop, "layers");
    assert_eq!(send(&mesh, &stranger, &server.at(PORT), "x")["ok"], true, "the pod's own mode wins");
    assert_eq!(
        send(&mesh, &stranger, &enrolled.at(PORT), "x")["ok"],
        false,
        "the namespace's holds elsewhere"
    );
    mesh.apply(&Shop::new("layers", Labelled::Yes).setting("inbound-mode", "permissive").namespace());
    eventually("an edit takes effect on running pods", SOON, || {
        let report = send(&mesh, &stranger, &enrolled.at(PORT), "x");
        if report["ok"] == true { Ok(()) } else { Err(report.to_string()) }
    });
}

#[test]
fn the_application_sees_the_clients_address() {
    let mesh = MESH.beside();
    let Scene { enrolled, stranger, server } = scene(&mesh, &Shop::new("source", Labelled::Yes), "source");
    for client in [&enrolled, &stranger] {
        for (url, own) in [
            (format!("http://{}/", server.at(8080)), client.v4().to_string()),
            (format!("http://{}/", server.at_v6(8080)), format!("[{}]", client.v6())),
        ] {
            let report = mesh.echo(client, &["get", &url]);
            let remote = report["last"]["remote"].as_str().unwrap_or_default().to_owned();
            assert!(remote.starts_with(&format!("{own}:")), "{url} from {own}: {report}");
        }
    }
}
