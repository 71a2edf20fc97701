//! What ends: certificates without a CA, and node proxies that are told to.

use culvert_e2e::{Labelled, Mesh, SOON, Shared, Shop, eventually, holds};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

static MESH: Shared = Shared::new("endings");
/// Certificates that live for seconds, and node proxies that drain for seconds.
static SHORT: Shared = Shared::with(
    "short",
    &["--component-arg", "culvert-ca=--max-lifetime=14s", "--component-arg", "culvert-node-proxy=--drain=4"],
);

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn certificates_are_renewed_and_serve_until_expiry_with_the_ca_down() {
    let mesh = SHORT.alone();
    let (client, _) = mesh.open(&Shop::new("expiry", Labelled::Yes), "expiry");
    let metric = |name: &str, key: &str, value: &str| mesh.metrics("node1").sum(name, &[(key, value)]);
    let expiry = || {
        metric(
            "culvert_certificate_expiry_timestamp_seconds",
            "identity",
            "spiffe://cluster.local/ns/expiry/sa/client",
        )
    };
    let failed = || {
        let of =
            |node| mesh.metrics(node).sum("culvert_certificate_requests_total", &[("result", "failure")]);
        of("node1") + of("node2")
    };
    let first = expiry();
    eventually("renewed before it ends", Duration::from_secs(40), || {
        let report = mesh.send(&client, "server:9000");
        assert_eq!(report["ok"], true, "{report}");
        if expiry() > first { Ok(()) } else { Err("not yet") }
    });
    let failures = failed();
    mesh.component("stop", "ca");
    // Client and server have certificates of about the same age; the sooner of the two ends the service.
    let server = mesh.metrics("node2").sum(
        "culvert_certificate_expiry_timestamp_seconds",
        &[("identity", "spiffe://cluster.local/ns/expiry/sa/server")],
    );
    let end = expiry().min(server);
    assert!(end > 0.0, "both are in the metric");
    let seconds_left =
        || end - SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64());
    eventually("no service after expiry", Duration::from_secs(40), || {
        let left = seconds_left();
        let report = mesh.send(&client, "server:9000");
        if report["ok"] == false {
            assert!(left < 3.0, "it served until {left} s before expiry only: {report}");
            return Ok(());
        }
        Err(report.to_string())
    });
    assert!(failed() > failures, "failed renewals are counted");
    eventually("the log says so", SOON, || {
        let log = mesh.logs("node-proxy/node1") + &mesh.logs("node-proxy/node2");
        let words = ["certificate request failed", "about to expire", "certificate expired"];
        words
            .into_iter()
            .find(|words| !log.contains(words))
            .map_or(Ok(()), |words| Err(format!("not {words:?}")))
    });
    let (arrived, readable) = mesh.on_the_link(&client, "server:9000");
    assert!(!arrived && !readable, "arrived {arrived}, readable {readable}");
    eventually("the client's node says that it has no certificate", SOON, || {
        mesh.send(&client, "server:9000");
        let log = mesh.logs("node-proxy/node1");
        let is_so = log.lines().any(|line| line.contains("NoCertificate") && line.contains(&client.name));
        if is_so { Ok(()) } else { Err("not yet") }
    });
    mesh.component("start", "ca");
    mesh.reaches(&client, "server:9000");
}

fn terminate(mesh: &Mesh, component: &str) -> u64 {
    let pid = mesh.pid_of(component);
    mesh.node_exec("node1", &["kill", "-TERM", &pid.to_string()]).ok();
    pid
}

#[test]
fn sigterm_lets_open_connections_end_first() {
    let mesh = MESH.alone();
    let (client, _) = mesh.open(&Shop::new("sigterm", Labelled::Yes), "sigterm");
    let mut held = mesh.echo_session(&client, &["hold", "server:9000", "--connections", "5"]);
    assert_eq!(held.next(PATIENCE)["ok"], 5);
    let pid = terminate(&mesh, "node-proxy/node1");
    holds("open connections go on while it drains", Duration::from_secs(2), || {
        let report = held.ask("draining", PATIENCE);
        if report["ok"] == 5 { Ok(()) } else { Err(report.to_string()) }
    });
    held.end(PATIENCE);
    // Its deadline would be 25 s.
    eventually(
        "it ends when the last connection does, and its successor serves",
        Duration::from_secs(10),
        || {
            if mesh.pid_of("node-proxy/node1") == pid { Err("still the old one") } else { Ok(()) }
        },
    );
    mesh.reaches(&client, "server:9000");
}

#[test]
fn sigterm_drains_within_a_deadline() {
    let mesh = SHORT.alone();
    let (client, _) = mesh.open(&Shop::new("deadline", Labelled::Yes), "deadline");
    let mut held = mesh.echo_session(&client, &["hold", "server:9000", "--connections", "5"]);
    assert_eq!(held.next(PATIENCE)["ok"], 5);
    let began = Instant::now();
    let pid = terminate(&mesh, "node-proxy/node1");
    assert_eq!(held.ask("draining", PATIENCE)["ok"], 5);
    eventually("it does not wait for ever", Duration::from_secs(12), || {
        if mesh.pid_of("node-proxy/node1") == pid { Err("still the old one") } else { Ok(()) }
    });
    assert!(began.elapsed() > Duration::from_secs(3), "it did wait: {:?}", began.elapsed());
    let report = held.ask("after the deadline", PATIENCE);
    assert_eq!((&report["ok"], &report["failed"]), (&0.into(), &5.into()), "{report}");
    mesh.reaches(&client, "server:9000");
}
