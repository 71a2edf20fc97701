//! One pod cannot take what belongs to the others.

use culvert_e2e::{Labelled, SOON, Shared, Shop, eventually};
use std::time::Duration;

static MESH: Shared = Shared::new("limits");

const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn connections_beyond_the_limit_are_refused_with_their_reason_and_neighbours_have_theirs() {
    let mesh = MESH.beside();
    let name = "limit";
    let shop = Shop::new(name, Labelled::Yes).setting("max-connections", "50");
    let (client, server) = mesh.open(&shop, name);
    let (neighbour, far) = mesh.open(&Shop::new("limit-not", Labelled::Yes), "limit-not");
    let refused =
        |node: &str| mesh.metrics(node).sum("culvert_refused_total", &[("reason", "WorkloadLimit")]);
    let before = refused("node1");
    // The server has the same limit, and its tunnels count too: it is the client's that is reached first if it has
    // no tunnels in yet; who refuses is seen below.
    let held =
        mesh.echo_session(&client, &["hold", &far.at(9000), "--connections", "80", "--timeout", "5000"]);
    let report = held.next(PATIENCE);
    assert_eq!((&report["ok"], &report["errors"]["reset"]), (&50.into(), &30.into()), "{report}");
    assert_eq!(refused("node1") - before, 30.0, "each is in the metric");
    eventually("and in the access log", SOON, || {
        let log = mesh.logs("node-proxy/node1");
        let lines = log.lines().filter(|line| {
            line.contains("\"reason\":\"WorkloadLimit\"")
                && line.contains(&client.name)
                && line.contains(&far.v4().to_string())
        });
        let lines = lines.count();
        if lines == 30 { Ok(()) } else { Err(format!("{lines} lines")) }
    });
    // Neither a pod on the same node nor one that talks to the same server is touched.
    let many = mesh.echo_session(&neighbour, &["hold", &far.at(9000), "--connections", "200"]);
    assert_eq!(many.next(PATIENCE)["ok"], 200);
    many.end(PATIENCE);
    held.end(PATIENCE);
    eventually("room again", SOON, || {
        let held =
            mesh.echo_session(&client, &["hold", &far.at(9000), "--connections", "50", "--timeout", "5000"]);
        let report = held.next(PATIENCE);
        if report["ok"] == 50 { Ok(()) } else { Err(report.to_string()) }
    });
    // The server's own limit refuses in the same way.
    let held = mesh
        .echo_session(&neighbour, &["hold", &server.at(9000), "--connections", "80", "--timeout", "5000"]);
    let report = held.next(PATIENCE);
    let ok = report["ok"].as_u64().unwrap_or(0);
    assert!((40..=50).contains(&ok), "{report}");
    assert!(refused("node2") > 0.0, "{report}");
    held.end(PATIENCE);
}

#[test]
fn a_limit_follows_its_setting_and_closes_nothing() {
    let mesh = MESH.beside();
    let name = "edited";
    let (client, server) = mesh.open(&Shop::new(name, Labelled::Yes), name);
    let mut held = mesh.echo_session(&client, &["hold", &server.at(9000), "--connections", "60"]);
    assert_eq!(held.next(PATIENCE)["ok"], 60);
    mesh.apply(&Shop::new(name, Labelled::Yes).setting("max-connections", "20").namespace());
    eventually("no more connections", SOON, || {
        let report = mesh.echo(&client, &["tcp", "send", &server.at(9000), "--timeout", "3000"]);
        if report["ok"] == false { Ok(()) } else { Err(report.to_string()) }
    });
    assert_eq!(held.ask("open ones stay", PATIENCE)["ok"], 60);
    mesh.apply(&Shop::new(name, Labelled::Yes).namespace());
    mesh.reaches(&client, &server.at(9000));
    held.end(PATIENCE);
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
