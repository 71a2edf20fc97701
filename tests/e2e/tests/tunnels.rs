//! HBONE on the wire: against a peer that shares no code with the node proxy, and between node proxies.

use culvert_e2e::{Exclusive, Labelled, Mesh, Pod, SOON, Session, Shared, Shop, eventually};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

static MESH: Shared = Shared::new("tunnels");

const PATIENCE: Duration = Duration::from_secs(20);

fn identity(namespace: &str, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}

fn send(mesh: &Mesh, from: &Pod, target: &str) -> Value {
    mesh.echo(from, &["tcp", "send", target, "--data", "word", "--timeout", "12000"])
}

#[test]
fn a_stock_client_reaches_an_enrolled_pod() {
    let mesh = MESH.beside();
    let (_, server) = mesh.open(&Shop::new("stock-in", Labelled::Yes), "stock-in");
    let (stranger, _) = mesh.open(&Shop::new("stock-out", Labelled::No), "stock-out");
    for (target, connect) in [(server.at(15008), server.at(9000)), (server.at_v6(15008), server.at_v6(9000))]
    {
        let report = mesh.hbone(
            &stranger,
            &identity("elsewhere", "stock"),
            &["--target", &target, "--connect", &connect],
        );
        assert_eq!(report["tls"], "ok", "{report}");
        assert_eq!(report["alpn"], "h2");
        assert_eq!(report["peer"], json!([identity("stock-in", "server")]));
        assert_eq!(
            report["streams"],
            json!([{"status": 200, "received": "hello", "ended": "closed"}]),
            "{report}"
        );
    }
    let many = mesh.hbone(
        &stranger,
        &identity("elsewhere", "stock"),
        &["--target", &server.at(15008), "--connect", &server.at(9000), "--streams", "50"],
    );
    let streams = many["streams"].as_array().expect("streams");
    assert!(streams.len() == 50 && streams.iter().all(|one| one["received"] == "hello"), "{many}");
}

#[test]
fn a_tunnel_leads_only_to_its_own_pod_and_only_by_connect() {
    let mesh = MESH.beside();
    let (client, server) = mesh.open(&Shop::new("astray", Labelled::Yes), "astray");
    let (stranger, other) = mesh.open(&Shop::new("astray-out", Labelled::No), "astray-out");
    let ask = |connect: &str, more: &[&str]| {
        let target = server.at(15008);
        let words = [&["--target", target.as_str(), "--connect", connect], more].concat();
        mesh.hbone(&stranger, &identity("elsewhere", "stock"), &words)["streams"][0].clone()
    };
    // Another pod, the loopback, the proxy's own ports, no address at all.
    for connect in [
        other.at(9000),
        client.at(9000),
        "127.0.0.1:9000".into(),
        server.at(15001),
        server.at(15006),
        server.at(15008),
    ] {
        let stream = ask(&connect, &[]);
        let status = stream["status"].as_u64().unwrap_or(0);
        assert!(status >= 400 || stream["ended"] != "closed", "{connect}: {stream}");
        assert_eq!(stream.get("received"), None, "{connect}: {stream}");
    }
    let stream = ask(&server.at(9000), &["--act", "get"]);
    assert_eq!(stream["status"], 400, "{stream}");
    mesh.access_log("node2", &["BadConnect", "inbound", &server.name]);
    let closed = ask(&server.at(1), &[]);
    assert_eq!(closed["status"], 503, "nobody listens there: {closed}");
}

/// The server's node proxy is gone, its rules are still there, and a stock far end listens in its place.
fn behind_a_stock_server<'a>(name: &str, conduct: &str) -> (Exclusive<'a>, Pod, Pod, Session) {
    let mesh = MESH.alone();
    let (client, server) = mesh.open(&Shop::new(name, Labelled::Yes), name);
    mesh.component("kill", "node-proxy/node2");
    let listen = server.at(15008);
    let session = mesh.hbone_server(
        &server,
        &identity(name, "server"),
        &["--listen", &listen, "--forward", "127.0.0.1:9000", "--conduct", conduct],
    );
    (mesh, client, server, session)
}

fn done(mesh: &Mesh, session: Session) {
    session.end(PATIENCE);
    mesh.component("start", "node-proxy/node2");
    mesh.node_ready("node2");
}

#[test]
fn an_enrolled_client_reaches_a_stock_server() {
    let (mesh, client, server, session) = behind_a_stock_server("stock-server", "serve");
    let report = send(&mesh, &client, &server.at(9000));
    assert_eq!(report["received"], "word", "{report}");
    let tunnel = session.next(PATIENCE);
    assert_eq!(tunnel["event"], "tunnel", "{tunnel}");
    assert_eq!(tunnel["peer"], json!([identity("stock-server", "client")]));
    let from = tunnel["from"].as_str().expect("an address");
    assert!(from.starts_with(&client.v4().to_string()), "from the client's own address: {tunnel}");
    let stream = session.next(PATIENCE);
    assert_eq!(stream["method"], "CONNECT");
    assert_eq!(stream["authority"], server.at(9000).as_str());
    let headers = &stream["headers"];
    assert!(
        headers["forwarded"].as_str().is_some_and(|value| value.contains(&client.v4().to_string())),
        "{stream}"
    );
    assert!(
        headers["baggage"].as_str().is_some_and(|value| value.contains("k8s.namespace.name=stock-server")),
        "{stream}"
    );
    assert!(headers["traceparent"].as_str().is_some_and(|value| value.len() == 55), "{stream}");
    // A second connection uses the same tunnel.
    assert_eq!(send(&mesh, &client, &server.at(9000))["ok"], true);
    assert_eq!(session.next(PATIENCE)["event"], "stream");
    done(&mesh, session);
}

#[test]
fn goaway_moves_new_connections_to_a_new_tunnel() {
    let (mesh, client, server, session) = behind_a_stock_server("goaway", "go-away");
    let mut held = mesh.echo_session(&client, &["hold", &server.at(9000), "--connections", "1"]);
    assert_eq!(held.next(PATIENCE)["ok"], 1);
    for _ in 0..3 {
        assert_eq!(send(&mesh, &client, &server.at(9000))["ok"], true);
    }
    assert_eq!(held.ask("after GOAWAY", PATIENCE)["ok"], 1, "the old tunnel serves what it has");
    held.end(PATIENCE);
    let events: Vec<Value> = (0..8).map(|_| session.next(PATIENCE)["event"].clone()).collect();
    assert_eq!(events.iter().filter(|event| **event == "tunnel").count(), 4, "{events:?}");
    done(&mesh, session);
}

#[test]
fn every_step_of_a_tunnel_has_a_deadline() {
    for (name, conduct) in
        [("late-tls", "stall-tls"), ("late-http2", "stall-http2"), ("late-connect", "stall-connect")]
    {
        let (mesh, client, server, session) = behind_a_stock_server(name, conduct);
        let report = send(&mesh, &client, &server.at(9000));
        assert_eq!(report["error"], "reset", "{conduct}: {report}");
        let millis = report["millis"].as_f64().expect("a time");
        assert!((4000.0..11_500.0).contains(&millis), "{conduct}: given up after the deadline: {report}");
        let word = if conduct == "stall-tls" { "TlsHandshake" } else { "Tunnel" };
        mesh.access_log("node1", &[word, &server.at(9000)]);
        done(&mesh, session);
    }
}

#[test]
fn a_refused_connect_and_a_reset_stream_reset_the_client() {
    for (name, conduct) in [("refused", "refuse"), ("cut", "reset-streams")] {
        let (mesh, client, server, session) = behind_a_stock_server(name, conduct);
        let report =
            mesh.echo(&client, &["tcp", "send", &server.at(9000), "--data", "word", "--until", "eof"]);
        assert_eq!(report["error"], "reset", "{conduct}: {report}");
        done(&mesh, session);
    }
}

#[test]
fn a_server_with_another_identity_gets_no_byte() {
    let mesh = MESH.alone();
    let name = "impostor";
    let (client, server) = mesh.open(&Shop::new(name, Labelled::Yes), name);
    mesh.component("kill", "node-proxy/node2");
    let listen = server.at(15008);
    // A perfectly valid certificate, of somebody else.
    let session = mesh.hbone_server(
        &server,
        &identity(name, "client"),
        &["--listen", &listen, "--forward", "127.0.0.1:9000"],
    );
    let report = send(&mesh, &client, &server.at(9000));
    assert_eq!(report["error"], "reset", "{report}");
    mesh.access_log("node1", &["PeerIdentity", &server.at(9000)]);
    let events = session.end(PATIENCE);
    assert!(!events.iter().any(|event| event.contains("\"stream\"")), "no request was sent: {events:?}");
    mesh.component("start", "node-proxy/node2");
    mesh.node_ready("node2");
}

#[test]
fn half_close_and_reset_go_through() {
    let mesh = MESH.beside();
    let (client, server) = mesh.open(&Shop::new("ends", Labelled::Yes), "ends");
    let report = mesh.echo(
        &client,
        &["tcp", "send", "server:9000", "--data", "last words", "--until", "eof", "--idle", "300"],
    );
    assert_eq!(report["received"], "last words", "what came before the half-close is echoed: {report}");
    let counted = mesh.echo(&client, &["tcp", "send", "server:9004", "--data", "12345", "--until", "eof"]);
    assert_eq!(counted["received"], "5\n", "the server answers after the client's end: {counted}");
    let reset = mesh.echo(&client, &["tcp", "send", &server.at(9007)]);
    assert_eq!(reset["error"], "reset", "the server's reset arrives as one: {reset}");
    for stage in ["connected", "sent", "answered", "midstream"] {
        let resets = mesh.echo(&client, &["reset", "server:9000", "--stage", stage, "--count", "20"]);
        assert_eq!(resets["reset"], 20, "{stage}: {resets}");
    }
    assert_eq!(send(&mesh, &client, "server:9000")["ok"], true);
}

#[test]
fn a_half_closed_connection_that_is_silent_ends() {
    let mesh = MESH.beside();
    let shop = Shop::new("half", Labelled::Yes).setting("half-closed-idle-timeout", "500ms");
    let (client, server) = mesh.open(&shop, "half");
    // Bytes to the proxy: the client ends its side, and the server takes its time.
    let request = "GET /?delay=20s HTTP/1.1\r\nHost: a\r\n\r\n";
    let words = ["tcp", "send", &server.at(8080), "--data", request, "--until", "eof", "--timeout", "15000"];
    let report = mesh.echo(&client, &words);
    assert_eq!(report["received"], "", "{report}");
    assert!(report["millis"].as_f64() < Some(12_000.0), "it did not wait for the server: {report}");
    // The end reached both proxies with the request, so they have waited equally long.
    mesh.access_log_of_one(&["node1", "node2"], &["IdleTimeout", &server.at(8080)]);
}

#[test]
fn tunnels_per_pair_of_pods_are_few() {
    let mesh = MESH.alone();
    let (client, server) = mesh.open(&Shop::new("few", Labelled::Yes), "few");
    let recording = mesh.record("node1");
    let mut held = mesh.echo_session(&client, &["hold", &server.at(9000), "--connections", "500"]);
    assert_eq!(held.next(PATIENCE)["ok"], 500);
    assert_eq!(held.ask("again", PATIENCE)["ok"], 500);
    let summary = recording.finish("");
    held.end(PATIENCE);
    let pair = [client.v4(), server.v4()];
    let tunnels: BTreeSet<_> =
        summary.between(&pair).filter(|one| one.server.port() == 15008).map(|one| one.client).collect();
    assert!(!tunnels.is_empty() && tunnels.len() <= 20, "500 connections in {} tunnels", tunnels.len());
}

#[test]
fn ten_stalled_readers_do_not_delay_an_eleventh_connection() {
    let mesh = MESH.alone();
    let (client, server) = mesh.open(&Shop::new("stalled", Labelled::Yes), "stalled");
    let stalled = mesh.echo_session(&client, &["stall", &server.at(9000), "--connections", "10"]);
    let report = stalled.next(Duration::from_secs(60));
    assert_eq!(report["stalled"], 10, "{report}");
    let url = format!("http://{}/", server.at(8080));
    let neighbour = mesh.echo(&client, &["get", &url, "--count", "200"]);
    assert_eq!(neighbour["ok"], 200, "{neighbour}");
    let p99 = neighbour["latency_ms"]["p99"].as_f64().expect("p99");
    assert!(p99 < 250.0, "{neighbour}");
    let bytes = mesh.echo(&client, &["get", &format!("{url}?size=20000000")]);
    assert_eq!(bytes["bytes"], 20_000_000, "{bytes}");
    stalled.end(PATIENCE);
}

#[test]
fn tunnels_go_with_their_endpoint() {
    let mesh = MESH.beside();
    let name = "uid";
    let shop = Shop::new(name, Labelled::Yes);
    let (client, server) = mesh.open(&shop, name);
    mesh.sandbox(&["delete", "pod", &server.name, "-n", name]).ok();
    eventually("another pod answers by the Service", SOON, || {
        let report = mesh.echo(&client, &["get", "http://server:8080/", "--timeout", "3000"]);
        if report["ok"] == 1 && report["last"]["pod"] != server.name.as_str() {
            Ok(())
        } else {
            Err(report.to_string())
        }
    });
    let config = mesh.config("node1").to_string();
    eventually("the old pod is forgotten", SOON, || {
        let config = mesh.config("node1").to_string();
        if config.contains(&server.uid) { Err(config) } else { Ok(()) }
    });
    drop(config);
}
