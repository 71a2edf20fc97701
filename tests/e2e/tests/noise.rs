//! One pod's noise in another pod's latency.

use culvert_e2e::{Labelled, Shared, Shop};
use std::time::Duration;

static MESH: Shared = Shared::new("noise");

const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn a_noisy_pod_raises_its_neighbours_p99_at_most_twofold() {
    let mesh = MESH.alone();
    let name = "noisy";
    let shop = Shop::new(name, Labelled::Yes);
    let others = shop.account("noise")
        + &shop.pod("noise", "node1")
        + &shop.account("sink")
        + &shop.pod("sink", "node2");
    mesh.apply(&(shop.yaml() + &others));
    mesh.settled(name);
    let [client, server, noise, sink] = ["client", "server", "noise", "sink"].map(|app| mesh.pod(name, app));
    mesh.reaches(&client, &server.at(9000));
    mesh.reaches(&noise, &sink.at(9000));
    let url = format!("http://{}/", server.at(8080));
    let p99 = || {
        let report =
            mesh.echo(&client, &["get", &url, "--rate", "100", "--seconds", "6", "--connections", "4"]);
        assert_eq!(report["ok"], report["requests"], "{report}");
        report["latency_ms"]["p99"].as_f64().expect("p99")
    };
    // An ordinary user's hard limit on descriptors may be lower than what a node has.
    let room = ["node1", "node2"].map(|node| mesh.metrics(node).sum("process_max_fds", &[]));
    let connections = (room[0].min(room[1]) as u64 - 1000).min(20_000);
    let sink_port = sink.at(9000);
    let count = connections.to_string();
    let hold = ["hold", sink_port.as_str(), "--connections", &count, "--timeout", "60000"];
    let (mut quiet, mut loud) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        quiet.push(p99());
        let held = mesh.echo_session(&noise, &hold);
        let report = held.next(PATIENCE);
        assert_eq!(report["ok"], connections, "{report}");
        let bulk = mesh.echo_session(
            &noise,
            &["bulk", &sink.at(9004), "--direction", "up", "--seconds", "9", "--streams", "4"],
        );
        loud.push(p99());
        assert!(bulk.next(PATIENCE)["bytes_sent"].as_u64().is_some_and(|bytes| bytes > 1_000_000));
        held.end(PATIENCE);
    }
    println!("p99 alone {quiet:?} ms, beside {connections} connections and bulk traffic {loud:?} ms");
    let median = |all: &mut Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (quiet, loud) = (median(&mut quiet), median(&mut loud));
    assert!(loud <= 2.0 * quiet, "p99 {quiet} ms alone, {loud} ms with noise");
}
