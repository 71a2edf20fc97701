//! One pod's noise in another pod's latency.

use culvert_e2e::{Labelled, Mesh, Shared, Shop};
use std::time::Duration;

static MESH: Shared = Shared::new("noise");

const PATIENCE: Duration = Duration::from_secs(90);
/// Of rounds each; the machine is shared, so medians count.
const ROUNDS: usize = 5;

/// A neighbour's 99th percentile in milliseconds, alone and beside a noisy pod: medians of [`ROUNDS`].
#[derive(Debug, Clone, Copy)]
struct P99 {
    quiet: f64,
    loud: f64,
}

impl P99 {
    fn raised(self) -> f64 {
        self.loud / self.quiet
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Four pods of a namespace: `client` asks `server` a hundred times a second while `noise` holds `connections` to `sink` and
/// sends it all it takes.
fn neighbour(mesh: &Mesh, name: &str, labelled: Labelled, connections: u64) -> P99 {
    let shop = Shop::new(name, labelled);
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
    // First, because thousands of connections are still being taken down long after they were closed.
    let quiet: Vec<f64> = (0..ROUNDS).map(|_| p99()).collect();
    let (held_at, bulk_at) = (sink.at(9000), sink.at(9004));
    let count = connections.to_string();
    let held = mesh.echo_session(&noise, &["hold", &held_at, "--connections", &count, "--timeout", "60000"]);
    let report = held.next(PATIENCE);
    assert_eq!(report["ok"], connections, "{report}");
    let loud = (0..ROUNDS)
        .map(|_| {
            let bulk = mesh.echo_session(
                &noise,
                &["bulk", &bulk_at, "--direction", "up", "--seconds", "8", "--streams", "4"],
            );
            let p99 = p99();
            assert!(bulk.next(PATIENCE)["bytes_sent"].as_u64().is_some_and(|bytes| bytes > 1_000_000));
            p99
        })
        .collect::<Vec<_>>();
    held.end(PATIENCE);
    println!("{name}: p99 alone {quiet:?} ms, beside {connections} connections and bulk traffic {loud:?} ms");
    P99 { quiet: median(quiet), loud: median(loud) }
}

/// At most twofold. Where the machine has too few cores for four bulk streams and the pods at both of their ends, the
/// neighbour's p99 is raised many times without any mesh; then at most twofold of that.
#[test]
fn a_noisy_pod_raises_its_neighbours_p99_at_most_twofold() {
    let mesh = MESH.alone();
    // An ordinary user's hard limit on descriptors may be lower than what a node has.
    let room = ["node1", "node2"].map(|node| mesh.metrics(node).sum("process_max_fds", &[]));
    let connections = (room[0].min(room[1]) as u64 - 1000).min(20_000);
    let bare = neighbour(&mesh, "bare", Labelled::No, connections);
    let meshed = neighbour(&mesh, "noisy", Labelled::Yes, connections);
    let (allowed, raised) = (2.0 * f64::max(1.0, bare.raised()), meshed.raised());
    println!("raised {raised:.1}-fold in the mesh {meshed:?}, {:.1}-fold without {bare:?}", bare.raised());
    assert!(
        raised <= allowed,
        "{raised:.1}-fold, allowed {allowed:.1}: in the mesh {meshed:?}, without {bare:?}"
    );
}
