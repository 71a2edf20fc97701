//! A million short connections.

use culvert_e2e::{Labelled, Shared, Shop};
use std::time::Duration;

static MESH: Shared = Shared::new("soak");

#[test]
fn a_million_short_connections_leave_memory_and_descriptors_as_they_were() {
    const TOTAL: u64 = 1_000_000;
    const SETTLED: u64 = 100_000;
    let mesh = MESH.alone();
    let (client, _) = mesh.open(&Shop::new("soak", Labelled::Yes).servers(2), "soak");
    let (total, step) = (TOTAL.to_string(), SETTLED.to_string());
    let storm = mesh.echo_session(
        &client,
        &[
            "storm",
            "server:9000",
            "--total",
            &total,
            "--parallel",
            "32",
            "--close",
            "mixed",
            "--progress",
            &step,
            "--timeout",
            "30000",
        ],
    );
    let reading = |what: &str| ["node1", "node2"].map(|node| mesh.metrics(node).sum(what, &[]));
    let patience = Duration::from_secs(1800);
    assert_eq!(storm.next(patience)["done"], SETTLED);
    let (memory, descriptors) = (reading("process_resident_memory_bytes"), reading("process_open_fds"));
    let mut done = SETTLED;
    while done < TOTAL {
        done = storm.next(patience)["done"].as_u64().expect("progress");
        println!(
            "{done}: resident {:?}, descriptors {:?}",
            reading("process_resident_memory_bytes"),
            reading("process_open_fds")
        );
    }
    let report = storm.next(patience);
    println!("{report}");
    assert_eq!(report["ok"], TOTAL, "{report}");
    let (memory_now, descriptors_now) =
        (reading("process_resident_memory_bytes"), reading("process_open_fds"));
    for node in 0..2 {
        assert!(memory_now[node] <= memory[node] * 1.05, "resident: {memory:?} then, {memory_now:?} now");
        assert!(
            descriptors_now[node] <= descriptors[node] + 10.0,
            "descriptors: {descriptors:?} then, {descriptors_now:?} now"
        );
    }
}
