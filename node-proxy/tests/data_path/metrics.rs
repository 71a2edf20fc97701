//! What is counted of requests, as it is scraped: every label of Istio's standard request metrics, at the node of the client.
//! The server's node sees a tunnelled connection: it counts that, under the same names of the two ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use culvert_node_proxy::state::model::{Workload, WorkloadLabels};
use culvert_routing::model::RouteKind;
use futures::FutureExt;

use crate::gateway::{self, listen, open};
use crate::mesh::Mesh;
use crate::web::{Wire, attach, prefix, rule, three_servers};

pub const ALL: &[(&str, crate::Case)] = &[
    ("a_request_to_a_service_is_counted_with_every_label", |mesh| service_labels(mesh).boxed_local()),
    ("a_request_to_a_gateway_is_counted_with_every_label", |mesh| gateway_labels(mesh).boxed_local()),
    ("what_clients_choose_makes_no_series", |mesh| hosts_make_no_series(mesh).boxed_local()),
];

/// Labels that are the same in every series of these tests: each pod has values of its own.
const ENDS: [(&str, &str); 17] = [
    ("source_workload", "web-deployment"),
    ("source_workload_namespace", "shop"),
    ("source_principal", "spiffe://cluster.local/ns/shop/sa/web"),
    ("source_app", "web-app"),
    ("source_version", "web-version"),
    ("source_cluster", "Kubernetes"),
    ("source_canonical_service", "web-service"),
    ("source_canonical_revision", "web-revision"),
    ("destination_workload", "db-deployment"),
    ("destination_workload_namespace", "shop"),
    ("destination_principal", "spiffe://cluster.local/ns/shop/sa/db"),
    ("destination_app", "db-app"),
    ("destination_version", "db-version"),
    ("destination_cluster", "Kubernetes"),
    ("destination_canonical_service", "db-service"),
    ("destination_canonical_revision", "db-revision"),
    ("connection_security_policy", "mutual_tls"),
];

fn labelled(workload: Workload) -> Workload {
    let text = |part: &str| format!("{}-{part}", workload.name);
    let labels = WorkloadLabels {
        workload: text("deployment"),
        workload_type: "deployment".to_owned(),
        app: text("app"),
        version: text("version"),
        canonical_service: text("service"),
        canonical_revision: text("revision"),
    };
    Workload { labels: Arc::new(labels), ..workload }
}

type Labels = BTreeMap<String, String>;

/// The series of a metric whose labels include these, with their values.
fn series(mesh: &Mesh, name: &str, with: &[(&str, &str)]) -> Vec<(Labels, f64)> {
    let text = mesh.telemetry.scrape().unwrap();
    let prefix = format!("{name}{{");
    let parse = |line: &str| {
        let (labels, value) = line.strip_prefix(&prefix)?.rsplit_once("} ")?;
        let labels = labels.strip_suffix('"')?.split("\",").filter_map(|pair| pair.split_once("=\""));
        let labels: Labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Some((labels, value.parse().unwrap()))
    };
    let has =
        |labels: &Labels| with.iter().all(|(key, value)| labels.get(*key).is_some_and(|is| is == value));
    text.lines().filter_map(parse).filter(|(labels, _)| has(labels)).collect()
}

/// Waits until one series has exactly these labels and this value.
async fn counted(mesh: &Mesh, name: &str, labels: &[(&str, &str)], value: f64) {
    let expected: Labels =
        ENDS.iter().chain(labels).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    for _ in 0..100 {
        if series(mesh, name, &[]).contains(&(expected.clone(), value)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{name}: no {expected:?} of {value} in {:#?}", series(mesh, name, &[]));
}

async fn requests_counted(mesh: &Mesh, service: &str, code: &str, flags: &str) {
    let host = format!("{service}.shop.svc.cluster.local");
    let labels = [
        ("reporter", "source"),
        ("destination_service", host.as_str()),
        ("destination_service_namespace", "shop"),
        ("destination_service_name", service),
        ("request_protocol", "http"),
        ("response_flags", flags),
        ("response_code", code),
        ("grpc_response_status", ""),
    ];
    counted(mesh, "istio_requests_total", &labels, 1.0).await;
    for histogram in ["istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"] {
        counted(mesh, &format!("{histogram}_count"), &labels, 1.0).await;
    }
}

async fn service_labels(mut mesh: Mesh) {
    (mesh.web, mesh.db) = (labelled(mesh.web.clone()), labelled(mesh.db.clone()));
    let (mut mesh, _servers) = three_servers(mesh).await;
    attach(&mut mesh, "all", RouteKind::Http, None, vec![rule(prefix("/"), &[("v1", 1)])]);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(client.get("/status/404").await.status, 404);
    client.say(b"GET /reset HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 502);
    for (code, flags) in [("200", "-"), ("404", "-"), ("502", "BackendReset")] {
        requests_counted(&mesh, "v1", code, flags).await;
    }
    let destination = [("reporter", "destination"), ("request_protocol", "tcp")];
    let opened = series(&mesh, "istio_tcp_connections_opened_total", &destination);
    let has_ends =
        |labels: &Labels| ENDS.iter().all(|(key, value)| labels.get(*key).is_some_and(|is| is == value));
    assert!(opened.iter().any(|(labels, _)| has_ends(labels)), "{opened:#?}");
}

async fn gateway_labels(mut mesh: Mesh) {
    (mesh.web, mesh.db) = (labelled(mesh.web.clone()), labelled(mesh.db.clone()));
    let (mut mesh, _servers, outside) = gateway::gateway(mesh).await;
    listen(&mut mesh, "any", 80, "");
    gateway::route(&mut mesh, "any", RouteKind::Http, &[], vec![rule(prefix("/"), &[("v2", 1)])]);
    let _open = open(&mut mesh, 80).await;
    assert_eq!(outside.get(80, "www.example.org", "/").await.status, 200);
    requests_counted(&mesh, "v2", "200", "-").await;
}

async fn hosts_make_no_series(mesh: Mesh) {
    let (mut mesh, _servers) = three_servers(mesh).await;
    attach(&mut mesh, "all", RouteKind::Http, None, vec![rule(prefix("/"), &[])]);
    let mut client = Wire::connect(&mesh.world.pod, mesh.vip(80)).await;
    // Answered at once, so that there may be many.
    for batch in 0..100 {
        let requests: String = (0..100)
            .map(|number| {
                format!("GET /{batch}/{number} HTTP/1.1\r\nHost: h{number}.b{batch}.example\r\nX: y\r\n\r\n")
            })
            .collect();
        client.say(requests.as_bytes()).await;
        for _ in 0..100 {
            assert_eq!(client.reply().await.status, 500);
        }
    }
    let all = series(&mesh, "istio_requests_total", &[]);
    assert_eq!(all.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [10_000.0], "{all:#?}");
    assert!(!mesh.telemetry.scrape().unwrap().contains(".example"), "no host is named");
}
