//! What strangers and greedy clients do to the node proxy: bytes without meaning, stalls, resets, too many connections.

use culvert_e2e::{Labelled, SOON, Shared, Shop, eventually};
use std::time::Duration;

static MESH: Shared = Shared::new("abuse");

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn garbage_on_every_port_of_the_proxy_is_survived() {
    let mesh = MESH.beside();
    let (client, server) = mesh.open(&Shop::new("garbage", Labelled::Yes), "garbage");
    let (stranger, _) = mesh.open(&Shop::new("garbage-out", Labelled::No), "garbage-out");
    let pids = || ["node-proxy/node1", "node-proxy/node2"].map(|name| mesh.pid_of(name));
    let before = pids();
    for port in [15001, 15006, 15008] {
        for family in [server.at(port), server.at_v6(port)] {
            let report = mesh.echo(
                &stranger,
                &["raw", &family, "--random", "4096", "--connections", "30", "--timeout", "7000"],
            );
            assert_eq!(
                report["outcomes"].get("timeout"),
                None,
                "{family}: every connection is ended: {report}"
            );
        }
        // From inside the pod itself, too.
        let own = mesh.echo(
            &server,
            &[
                "raw",
                &format!("127.0.0.1:{port}"),
                "--random",
                "4096",
                "--connections",
                "10",
                "--timeout",
                "7000",
            ],
        );
        assert_eq!(own["outcomes"].get("timeout"), None, "127.0.0.1:{port}: {own}");
    }
    assert_eq!(mesh.send(&client, "server:9000")["ok"], true);
    assert_eq!(pids(), before, "no node proxy was lost");
}

#[test]
fn slow_loris_in_tls_and_http2_is_ended() {
    let mesh = MESH.beside();
    let (client, server) = mesh.open(&Shop::new("loris", Labelled::Yes), "loris");
    let (stranger, _) = mesh.open(&Shop::new("loris-out", Labelled::No), "loris-out");
    // A ClientHello that never gets finished: one byte every 200 ms, for 30 s if nobody ends it.
    let hello = "16030102000100".to_owned() + &"00".repeat(150);
    let tls = mesh.echo(
        &stranger,
        &[
            "raw",
            &server.at(15008),
            "--hex",
            &hello,
            "--drip",
            "200",
            "--connections",
            "20",
            "--timeout",
            "20000",
        ],
    );
    assert_eq!(tls["outcomes"].get("timeout"), None, "{tls}");
    assert!(tls["longest_ms"].as_u64().is_some_and(|millis| millis < 15_000), "{tls}");
    // A handshake that is finished, and then silence.
    let identity = "spiffe://cluster.local/ns/elsewhere/sa/stock";
    let http2 = mesh.hbone(
        &stranger,
        identity,
        &[
            "--target",
            &server.at(15008),
            "--connect",
            &server.at(9000),
            "--act",
            "silence",
            "--timeout",
            "20000",
        ],
    );
    assert_ne!(http2["streams"][0]["ended"], "timeout", "{http2}");
    assert_eq!(mesh.send(&client, "server:9000")["ok"], true);
}

#[test]
fn ten_thousand_connections_opened_and_dropped() {
    let mesh = MESH.alone();
    let (client, server) = mesh.open(&Shop::new("many", Labelled::Yes), "many");
    let descriptors = || ["node1", "node2"].map(|node| mesh.metrics(node).sum("process_open_fds", &[]));
    let before = descriptors();
    let report = mesh.echo(
        &client,
        &[
            "storm",
            "server:9000",
            "--total",
            "10000",
            "--parallel",
            "256",
            "--close",
            "reset",
            "--timeout",
            "20000",
        ],
    );
    assert_eq!(report["ok"], 10_000, "{report}");
    eventually("descriptors are given back", SOON, || {
        let now = descriptors();
        let back = (0..2).all(|node| now[node] <= before[node] + 10.0);
        if back { Ok(()) } else { Err(format!("{before:?} before, {now:?} now")) }
    });
    assert_eq!(mesh.send(&client, &server.at(9000))["ok"], true);
}

#[test]
fn resets_at_every_stage_leave_nothing_behind() {
    let mesh = MESH.alone();
    let (client, server) = mesh.open(&Shop::new("resets", Labelled::Yes), "resets");
    let (stranger, _) = mesh.open(&Shop::new("resets-out", Labelled::No), "resets-out");
    let open = |node: &str| mesh.metrics(node).sum("process_open_fds", &[]);
    let before = (open("node1"), open("node2"));
    for stage in ["connected", "hello", "sent", "answered", "midstream"] {
        for (from, target) in
            [(&client, "server:9000".to_owned()), (&stranger, server.at(9000)), (&stranger, server.at(15008))]
        {
            if target.ends_with(":15008") && matches!(stage, "answered" | "midstream") {
                continue;
            }
            let report = mesh.echo(from, &["reset", &target, "--stage", stage, "--count", "100"]);
            assert!(
                report["reset"].as_u64().is_some_and(|count| count >= 95),
                "{stage} at {target}: {report}"
            );
        }
    }
    let identity = "spiffe://cluster.local/ns/elsewhere/sa/stock";
    for act in ["reset-stream", "reset-tunnel"] {
        let words = ["--target", &server.at(15008), "--connect", &server.at(9000), "--act", act];
        let report = mesh.hbone(&stranger, identity, &words);
        assert_eq!(report["streams"][0]["ended"], "reset", "{act}: {report}");
    }
    let own_reset = mesh.echo(&client, &["storm", "server:9007", "--total", "100"]);
    assert_eq!(own_reset["errors"]["reset"], 100, "the server's resets arrive as such: {own_reset}");
    eventually("descriptors are given back", SOON, || {
        let now = (open("node1"), open("node2"));
        let back = now.0 <= before.0 + 10.0 && now.1 <= before.1 + 10.0;
        if back { Ok(()) } else { Err(format!("{before:?} before, {now:?} now")) }
    });
    assert_eq!(mesh.send(&client, "server:9000")["ok"], true);
}

#[test]
fn descriptors_exhausted_and_recovered() {
    let mesh = MESH.alone();
    let (client, server) = mesh.open(&Shop::new("exhausted", Labelled::Yes), "exhausted");
    let (neighbour, _) = mesh.open(&Shop::new("exhausted-too", Labelled::Yes), "exhausted-too");
    let (_, plain) = mesh.open(&Shop::new("exhausted-out", Labelled::No), "exhausted-out");
    let pid = mesh.pid_of("node-proxy/node1").to_string();
    // Only the soft limit: it can be put back without privileges.
    let limit = |soft: u64| {
        mesh.node_exec("node1", &["prlimit", "--pid", &pid, &format!("--nofile={soft}:")]).ok();
    };
    let metric = |name: &str| mesh.metrics("node1").sum(name, &[]);
    let (open, most) = (metric("process_open_fds"), metric("process_max_fds"));
    limit(open as u64 + 60);
    let words = ["hold", &server.at(9000), "--connections", "300", "--timeout", "3000"];
    let held = mesh.echo_session(&client, &words);
    let report = held.next(PATIENCE);
    assert!(report["failed"].as_u64().is_some_and(|failed| failed > 0), "it did run out: {report}");
    assert!(report["ok"].as_u64().is_some_and(|ok| ok > 0), "what there was is used: {report}");
    drop(held);
    // Here every connection takes a socket of its own, accepted before the other is opened.
    let held =
        mesh.echo_session(&client, &["hold", &plain.at(9000), "--connections", "300", "--timeout", "3000"]);
    assert!(held.next(PATIENCE)["failed"].as_u64() > Some(0));
    mesh.access_log("node1", &["Local", "connection failed", &plain.at(9000)]);
    drop(held);
    mesh.reaches(&client, "server:9000");
    mesh.reaches(&neighbour, "server:9000");
    limit(most as u64);
    let held = mesh.echo_session(&client, &words);
    assert_eq!(held.next(PATIENCE)["ok"], 300, "all of them fit again");
    assert_eq!(mesh.pid_of("node-proxy/node1").to_string(), pid, "the same process");
    held.end(PATIENCE);
}
