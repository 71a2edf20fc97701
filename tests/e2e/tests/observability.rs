//! What a node proxy says of itself: health, metrics, what is in force, log lines.

use culvert_e2e::{Labelled, SOON, Shared, Shop, eventually};
use serde_json::Value;

static MESH: Shared = Shared::new("observability");

const TCP_METRICS: [&str; 4] = [
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_closed_total",
    "istio_tcp_sent_bytes_total",
    "istio_tcp_received_bytes_total",
];
const TCP_LABELS: [&str; 18] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
];

#[test]
fn the_istio_tcp_metrics_with_their_labels_on_both_sides() {
    let mesh = MESH.beside();
    let (client, _) = mesh.open(&Shop::new("metrics", Labelled::Yes), "metrics");
    assert_eq!(
        mesh.echo(&client, &["tcp", "send", "server:9000", "--data", "twelve bytes", "--until", "eof"])["ok"],
        true
    );
    for (node, reporter) in [("node1", "source"), ("node2", "destination")] {
        let labels = [
            ("reporter", reporter),
            ("source_workload", "client"),
            ("source_workload_namespace", "metrics"),
            ("destination_workload", "server"),
            ("destination_workload_namespace", "metrics"),
            ("connection_security_policy", "mutual_tls"),
        ];
        eventually(&format!("{node} counted it"), SOON, || {
            let metrics = mesh.metrics(node);
            let missing = TCP_METRICS.iter().find(|name| metrics.sum(name, &labels) < 1.0);
            missing.map_or(Ok(()), |name| Err((*name).to_owned()))
        });
        let metrics = mesh.metrics(node);
        for name in TCP_METRICS {
            let found = metrics.labels_of(name);
            let missing: Vec<_> = TCP_LABELS.iter().filter(|label| !found.contains(label)).collect();
            assert!(missing.is_empty(), "{name} at {node} lacks {missing:?}");
        }
    }
    let source = mesh.metrics("node1");
    assert!(
        source.sum(
            TCP_METRICS[0],
            &[
                ("reporter", "source"),
                ("destination_service_name", "server"),
                ("destination_service_namespace", "metrics")
            ]
        ) >= 1.0
    );
}

#[test]
fn every_metric_is_documented() {
    let mesh = MESH.beside();
    let (client, _) = mesh.open(&Shop::new("documented", Labelled::Yes), "documented");
    assert_eq!(mesh.echo(&client, &["tcp", "send", "server:9000"])["ok"], true);
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let manual = std::fs::read_to_string(root).expect("docs/metrics.md");
    let metrics = mesh.metrics("node1");
    let missing: Vec<_> = metrics
        .names()
        .into_iter()
        .filter(|name| {
            // The parts of a histogram are documented once.
            let base =
                ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
            !manual.contains(&format!("`{name}`")) && !manual.contains(&format!("`{base}`"))
        })
        .map(str::to_owned)
        .collect();
    assert!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
}

#[test]
fn ready_live_config_and_log_level() {
    let mesh = MESH.alone();
    let name = "admin";
    let (client, _) = mesh.open(&Shop::new(name, Labelled::Yes), name);
    mesh.node_ready("node1");
    assert!(!mesh.admin("node1", "/healthz/live").is_empty());
    let config = mesh.config("node1");
    for key in ["node", "controller", "mesh", "workloads", "services", "certificates", "pods", "connections"]
    {
        assert!(!config[key].is_null(), "{key}: {config}");
    }
    assert!(config["services"].to_string().contains("admin/server"));
    assert!(config["certificates"].to_string().contains("spiffe://cluster.local/ns/admin/sa/client"));
    assert!(config["workloads"].to_string().contains(&client.uid));
    let address = mesh.cluster().nodes[0].address.v4;
    let lines = |mesh: &culvert_e2e::Mesh| {
        mesh.logs("node-proxy/node1").lines().filter(|line| line.contains("DEBUG")).count()
    };
    let before = lines(&mesh);
    mesh.node_echo(
        "node1",
        &["fetch", &format!("http://{address}:15000/log?filter=debug"), "--method", "POST"],
    )
    .ok();
    eventually("more is logged", SOON, || {
        assert_eq!(mesh.echo(&client, &["tcp", "send", "server:9000"])["ok"], true);
        if lines(&mesh) > before { Ok(()) } else { Err("nothing yet") }
    });
    mesh.node_echo(
        "node1",
        &["fetch", &format!("http://{address}:15000/log?filter=info"), "--method", "POST"],
    )
    .ok();
    let refused = mesh.node_echo(
        "node1",
        &["fetch", &format!("http://{address}:15000/log?filter=a%3D%3Db"), "--method", "POST"],
    );
    assert_ne!(refused.code, 0, "nonsense is refused: {}", refused.stdout);
}

#[test]
fn not_ready_says_why() {
    let mesh = MESH.alone();
    mesh.component("stop", "controller");
    mesh.component("stop", "ca");
    // A node proxy that has never heard of the controller: its kept state is gone, too.
    mesh.component("stop", "node-proxy/node1");
    mesh.node_exec("node1", &["sh", "-c", "rm -rf /run/sandbox/nodes/node1/state/*"]).ok();
    mesh.component("start", "node-proxy/node1");
    let body = eventually("it says what it lacks", SOON, || {
        let body = mesh.admin("node1", "/healthz/ready");
        if body.to_lowercase().contains("controller") || body.contains("state") {
            Ok(body)
        } else {
            Err(body)
        }
    });
    assert!(!body.trim().is_empty());
    for component in ["ca", "controller"] {
        mesh.component("start", component);
    }
    mesh.node_ready("node1");
}

fn lines_of(log: &str, word: &str) -> Vec<Value> {
    let lines = log.lines().filter(|line| line.contains(word));
    lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn access_log_lines_for_failures_and_for_all_on_request() {
    let mesh = MESH.alone();
    let name = "access";
    let (client, server) = mesh.open(&Shop::new(name, Labelled::Yes), name);
    let refused = mesh.echo(&client, &["tcp", "send", &server.at(1), "--timeout", "4000"]);
    assert_eq!(refused["ok"], false, "{refused}");
    let line = eventually("a line for the failure", SOON, || {
        let log = mesh.logs("node-proxy/node1");
        let target = server.at(1);
        lines_of(&log, &target).pop().ok_or("none")
    });
    for key in [
        "src.addr",
        "src.workload",
        "src.namespace",
        "src.identity",
        "dst.addr",
        "dst.hbone_addr",
        "dst.workload",
        "dst.namespace",
        "dst.identity",
        "direction",
        "bytes_sent",
        "bytes_recv",
        "duration",
        "error",
        "reason",
        "connection_security_policy",
    ] {
        assert!(!line[key].is_null(), "{key}: {line}");
    }
    assert_eq!(line["direction"], "outbound");
    // Successful ones are silent until asked for.
    assert_eq!(mesh.echo(&client, &["tcp", "send", "server:9000"])["ok"], true);
    let quiet = mesh.logs("node-proxy/node1");
    assert!(
        lines_of(&quiet, "\"access/server\"").iter().all(|line| !line["reason"].is_null()),
        "only failures so far"
    );
    let config = |filter: &str| {
        format!(
            "---\napiVersion: culvert.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec: {{accessLog: {{filter: {filter}}}}}\n"
        )
    };
    mesh.apply(&config("all"));
    for (node, direction) in [("node1", "outbound"), ("node2", "inbound")] {
        eventually(&format!("{node} logs every connection"), SOON, || {
            assert_eq!(mesh.echo(&client, &["tcp", "send", "server:9000", "--until", "eof"])["ok"], true);
            let log = mesh.logs(&format!("node-proxy/{node}"));
            let found =
                lines_of(&log, "\"connection_security_policy\":\"mutual_tls\"").into_iter().any(|line| {
                    line["reason"].is_null()
                        && line["direction"] == direction
                        && line["src.identity"] == "spiffe://cluster.local/ns/access/sa/client"
                });
            if found { Ok(()) } else { Err("not yet") }
        });
    }
    // Plaintext says why.
    let (_, other) = mesh.open(&Shop::new("access-out", Labelled::No), "access-out");
    assert_eq!(mesh.echo(&client, &["tcp", "send", &other.at(9000), "--until", "eof"])["ok"], true);
    eventually("plaintext with its reason", SOON, || {
        let log = mesh.logs("node-proxy/node1");
        let line = lines_of(&log, &other.at(9000)).pop().unwrap_or_default();
        let good = line["connection_security_policy"] == "none" && line["why"] == "DestinationNotEnrolled";
        if good { Ok(()) } else { Err(line.to_string()) }
    });
    mesh.apply(&config("failures"));
}

#[test]
fn status_shows_what_is_plaintext_and_why() {
    let mesh = MESH.beside();
    let name = "share";
    let (client, _) = mesh.open(&Shop::new(name, Labelled::Yes), name);
    let (_, other) = mesh.open(&Shop::new("share-out", Labelled::No), "share-out");
    assert_eq!(mesh.echo(&client, &["tcp", "send", &other.at(9000)])["ok"], true);
    eventually("the plaintext connection is shown with its reason", SOON, || {
        let text = mesh.sandbox(&["status", "--plaintext"]).ok().stdout;
        let line = text.lines().find(|line| line.contains("share/client"));
        if line.is_some_and(|line| line.contains("not enrolled")) { Ok(()) } else { Err(text) }
    });
}
