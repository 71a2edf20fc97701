//! One pod cannot take what belongs to the others.

use culvert_e2e::{Labelled, SOON, Shared, Shop, eventually};
use std::time::Duration;

static MESH: Shared = Shared::new("limits");

const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn connections_beyond_the_limit_are_refused_with_their_reason() {
    let mesh = MESH.beside();
    let name = "limit";
    let (client, server) = mesh.open(&Shop::new(name, Labelled::Yes), name);
    mesh.apply(&Shop::new(name, Labelled::Yes).setting("max-connections", "50").namespace());
    eventually("no more than 50 connections", SOON, || {
        let held = mesh
            .echo_session(&client, &["hold", &server.at(9000), "--connections", "80", "--timeout", "3000"]);
        let report = held.next(PATIENCE);
        if report["ok"].as_u64() == Some(50) && report["failed"].as_u64() == Some(30) {
            Ok(())
        } else {
            Err(report.to_string())
        }
    });
    let log = mesh.logs("node-proxy/node1") + &mesh.logs("node-proxy/node2");
    assert!(log.contains("WorkloadLimit"), "the reason is in the access log");
    let refused: f64 = ["node1", "node2"]
        .iter()
        .map(|node| mesh.metrics(node).sum("culvert_refused_total", &[("reason", "WorkloadLimit")]))
        .sum();
    assert!(refused >= 30.0, "and in the metric: {refused}");
    eventually("room again", SOON, || {
        let held = mesh
            .echo_session(&client, &["hold", &server.at(9000), "--connections", "50", "--timeout", "3000"]);
        let report = held.next(PATIENCE);
        if report["ok"].as_u64() == Some(50) { Ok(()) } else { Err(report.to_string()) }
    });
}

#[test]
fn buffers_of_stalled_readers_are_bounded() {
    let mesh = MESH.alone();
    let name = "memory";
    let (client, server) = mesh.open(&Shop::new(name, Labelled::Yes).setting("max-memory", "16Mi"), name);
    let rss = |node: &str| mesh.metrics(node).sum("process_resident_memory_bytes", &[]);
    let before = rss("node1").max(rss("node2"));
    let stalled =
        mesh.echo_session(&client, &["stall", &server.at(9005), "--connections", "300", "--silent"]);
    assert_eq!(stalled.next(PATIENCE)["stalled"], 300);
    let after = rss("node1").max(rss("node2"));
    assert!(after - before < 200.0 * 1048576.0, "{before} before, {after} after");
    stalled.end(PATIENCE);
}

#[test]
fn a_noisy_pod_raises_its_neighbours_p99_at_most_twofold() {
    let mesh = MESH.alone();
    let name = "noisy";
    let shop = Shop::new(name, Labelled::Yes);
    mesh.apply(
        &(shop.yaml()
            + &shop.account("noise")
            + &shop.pod("noise", "node1")
            + &shop.account("sink")
            + &shop.pod("sink", "node2")),
    );
    mesh.settled(name);
    let (client, server, noise, sink) =
        (mesh.pod(name, "client"), mesh.pod(name, "server"), mesh.pod(name, "noise"), mesh.pod(name, "sink"));
    mesh.reaches(&client, &server.at(9000));
    mesh.reaches(&noise, &sink.at(9000));
    let url = format!("http://{}/", server.at(8080));
    let p99 = || {
        let report =
            mesh.echo(&client, &["get", &url, "--rate", "100", "--seconds", "6", "--connections", "4"]);
        assert_eq!(report["ok"], report["requests"], "{report}");
        report["latency_ms"]["p99"].as_f64().expect("p99")
    };
    // The same noise without the mesh loads the machine as well: what is measured is the mesh's share of it.
    let held =
        mesh.echo_session(&noise, &["hold", &sink.at(9000), "--connections", "20000", "--timeout", "60000"]);
    let report = held.next(PATIENCE);
    assert_eq!(report["ok"], 20_000, "{report}");
    let quiet = p99();
    let bulk = mesh.echo_session(
        &noise,
        &["bulk", &sink.at(9004), "--direction", "up", "--seconds", "8", "--streams", "4"],
    );
    let loud = p99();
    assert!(bulk.next(PATIENCE)["bytes_sent"].as_u64().is_some_and(|bytes| bytes > 1_000_000));
    drop(held);
    println!("p99: {quiet} ms beside 20,000 idle connections, {loud} ms beside bulk traffic too");
    // Below a few milliseconds the scheduler of a machine with two cores decides, not the mesh.
    assert!(loud <= 2.0 * quiet.max(5.0), "p99 {quiet} ms without, {loud} ms with noise");
}
