//! Waves of faults under traffic.

use culvert_e2e::{Labelled, Shared, Shop};
use std::sync::atomic::{AtomicBool, Ordering};

static MESH: Shared = Shared::new("waves");

#[test]
fn ten_waves_of_faults_and_never_plaintext() {
    let mesh = MESH.alone();
    let name = "waves";
    let shop = Shop::new(name, Labelled::Yes).servers(3);
    let (client, _) = mesh.open(&shop, name);
    let marker = "GET /marker-of-the-waves";
    let recording = mesh.record("node1");
    let over = AtomicBool::new(false);
    let (asked, answered) = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let (mut asked, mut answered) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                let report = mesh.echo(
                    &client,
                    &[
                        "get",
                        "http://server:8080/marker-of-the-waves",
                        "--seconds",
                        "5",
                        "--rate",
                        "50",
                        "--connections",
                        "4",
                        "--new-connection",
                        "--timeout",
                        "5000",
                    ],
                );
                asked += report["requests"].as_u64().unwrap_or(0);
                answered += report["ok"].as_u64().unwrap_or(0);
            }
            (asked, answered)
        });
        for wave in 0..10 {
            for component in ["controller", "ca", "node-proxy/node2", "node-proxy/node1"] {
                mesh.component("crash", component);
                mesh.node_ready("node1");
                mesh.node_ready("node2");
            }
            let pods = mesh.pods(name, "server");
            let pod = &pods[wave % pods.len().max(1)];
            mesh.sandbox(&["delete", "pod", &pod.name, "-n", name]).ok();
            mesh.settled(name);
        }
        over.store(true, Ordering::Relaxed);
        traffic.join().expect("traffic")
    });
    let summary = recording.finish(marker);
    println!("{answered} of {asked} requests answered");
    assert!(summary.token_seen.is_empty(), "{:?}", summary.token_seen);
    assert!(answered * 10 >= asked * 8, "{answered} of {asked} requests answered");
    mesh.reaches(&client, "server:9000");
    let report = mesh.echo(&client, &["get", "http://server:8080/", "--count", "500", "--timeout", "5000"]);
    assert_eq!(report["ok"], 500, "{report}");
    let idle = mesh.metrics("node1").sum("process_open_fds", &[]);
    assert!(idle < 500.0, "{idle} descriptors");
}
