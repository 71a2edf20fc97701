use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::spec;
use super::*;
use crate::identity::Certificates;
use crate::pods::{Phase, PodReport, PodReports};
use crate::reason::Reason;
use crate::state::model::{ServiceKey, Workload, WorkloadLabels};
use crate::state::testing::{member, own, service, uid, workload};
use crate::state::{Builder, ControlStatus, Origin, Snapshot, Snapshots};

fn labelled(name: &str) -> Workload {
    let labels = WorkloadLabels {
        workload: name.to_owned(),
        workload_type: "deployment".to_owned(),
        app: name.to_owned(),
        version: "v1".to_owned(),
        canonical_service: name.to_owned(),
        canonical_revision: "v1".to_owned(),
    };
    Workload {
        identity: format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().ok(),
        labels: Arc::new(labels),
        memberships: vec![member(&format!("shop/{name}"))],
        ..workload(name, &[1])
    }
}

/// `web`, of this node, and `cart`, of another one.
fn mesh() -> (Builder, Snapshots) {
    let mut builder = Builder::new();
    builder.upsert_workload(Workload { own: Some(Arc::new(own())), ..labelled("web") });
    builder.upsert_workload(labelled("cart"));
    let snapshots = Snapshots::new(builder.freeze(Origin::Controller, "v1"));
    (builder, snapshots)
}

fn meta(snapshot: &Snapshot) -> ConnectionMeta {
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let (web, cart) = (snapshot.workload(&uid("web")).cloned(), snapshot.workload(&uid("cart")).cloned());
    ConnectionMeta {
        reporter: Reporter::Source,
        source_identity: web.as_ref().and_then(|one| one.identity.clone()),
        source: web,
        source_addr: address("10.0.0.1:40000"),
        destination_identity: cart.as_ref().and_then(|one| one.identity.clone()),
        destination: cart,
        destination_addr: address("10.0.0.2:8080"),
        hbone_addr: Some(address("10.0.0.2:15008")),
        service: Some(Arc::new(service("shop/cart", &[]))),
        routed: None,
        security: Security::MutualTls,
    }
}

/// Name to label names, and the samples whose name and labels contain all of `parts`.
fn samples(text: &str, parts: &[&str]) -> Vec<f64> {
    text.lines()
        .filter(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)))
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect()
}

/// A request to `cart` for a host that the client chose.
fn request(telemetry: &Telemetry, snapshots: &Snapshots, host: &str) -> RequestRecord {
    let value = |text: &str| http::HeaderValue::from_str(text).unwrap();
    let head = RequestHead {
        origin: None,
        source_addr: "10.0.0.1:40000".parse().unwrap(),
        service: Some(ServiceKey("shop/cart".into())),
        method: http::Method::GET,
        uri: "/path?x=1".parse().unwrap(),
        authority: Some(value(host)),
        version: http::Version::HTTP_11,
        request_id: value("id"),
        traceparent: value("trace"),
    };
    let meta = Rc::new(meta(&snapshots.load()));
    let ending = Rc::new(Ending::new(CancellationToken::new()));
    RequestRecord::begin(telemetry.clone(), head, RequestProtocol::Http, meta, Rc::default(), ending)
}

#[tokio::test]
async fn a_request_is_counted_under_istios_labels_and_no_client_chooses_one() {
    let (_, snapshots) = mesh();
    let telemetry = Telemetry::new(snapshots.clone(), AccessLog::discarded());
    for number in 0..10_000 {
        let mut record = request(&telemetry, &snapshots, &format!("host-{number}.example"));
        record.answered(http::StatusCode::OK, None);
        record.sent(300);
        record.finish();
    }
    drop(request(&telemetry, &snapshots, "web"));
    let mut refused = request(&telemetry, &snapshots, "web");
    refused.fail(Failure::new(Reason::NoEndpoint, "none"));
    refused.answered(http::StatusCode::SERVICE_UNAVAILABLE, None);
    refused.finish();
    let text = telemetry.scrape().unwrap();
    let total = ["istio_requests_total", "request_protocol=\"http\"", "grpc_response_status=\"\""];
    for (code, flags, count) in
        [("200", "-", 10_000.0), ("499", "ClientCancelled", 1.0), ("503", "NoEndpoint", 1.0)]
    {
        let (code, flags) = (format!("response_code=\"{code}\""), format!("response_flags=\"{flags}\""));
        let with = [&total[..], &[code.as_str(), &flags]].concat();
        assert_eq!(samples(&text, &with), [count], "{code}");
    }
    assert_eq!(samples(&text, &["istio_requests_total"]).len(), 3);
    let ok = "response_code=\"200\"";
    assert_eq!(samples(&text, &["istio_response_bytes_sum", ok]), [3_000_000.0]);
    assert_eq!(samples(&text, &["istio_response_bytes_bucket", ok, "le=\"250.0\""]), [0.0]);
    assert_eq!(samples(&text, &["istio_response_bytes_bucket", ok, "le=\"500.0\""]), [10_000.0]);
    assert_eq!(samples(&text, &["istio_request_duration_milliseconds_count", ok]), [10_000.0]);
    let destination = "destination_service=\"cart.shop.svc.cluster.local\"";
    assert_eq!(samples(&text, &["istio_requests_total", ok, destination]).len(), 1);
}

#[tokio::test]
async fn a_connection_is_counted_under_istios_labels() {
    let (_, snapshots) = mesh();
    let telemetry = Telemetry::new(snapshots.clone(), AccessLog::discarded());
    let record = telemetry.open(meta(&snapshots.load()));
    record.received(100);
    record.sent(2000);
    let text = telemetry.scrape().unwrap();
    let expected = concat!(
        "istio_tcp_sent_bytes_total{reporter=\"source\",source_workload=\"web\",source_canonical_service=\"web\",",
        "source_canonical_revision=\"v1\",source_workload_namespace=\"shop\",",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/web\",source_app=\"web\",source_version=\"v1\",",
        "source_cluster=\"c\",destination_service=\"cart.shop.svc.cluster.local\",",
        "destination_service_namespace=\"shop\",destination_service_name=\"cart\",destination_workload=\"cart\",",
        "destination_canonical_service=\"cart\",destination_canonical_revision=\"v1\",",
        "destination_workload_namespace=\"shop\",",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\",destination_app=\"cart\",",
        "destination_version=\"v1\",destination_cluster=\"c\",request_protocol=\"tcp\",response_flags=\"-\",",
        "connection_security_policy=\"mutual_tls\"} 2000",
    );
    assert!(text.lines().any(|line| line == expected), "{text}");
    assert_eq!(samples(&text, &["istio_tcp_received_bytes_total"]), [100.0]);
    assert_eq!(samples(&text, &["connections_open{direction=\"outbound\",security=\"mutual_tls\"}"]), [1.0]);
    record.close(Ok(()));
    let text = telemetry.scrape().unwrap();
    assert_eq!(samples(&text, &["istio_tcp_connections_closed_total", "response_flags=\"-\""]), [1.0]);
    assert_eq!(samples(&text, &["istio_tcp_connections_failed_total"]), [0.0; 0]);
    assert_eq!(samples(&text, &["connections_open{direction=\"outbound\",security=\"mutual_tls\"}"]), [0.0]);
}

#[tokio::test]
async fn failures_carry_their_reason_and_what_is_unknown_says_so() {
    let (_, snapshots) = mesh();
    let telemetry = Telemetry::new(snapshots.clone(), AccessLog::discarded());
    let record = telemetry.open(meta(&snapshots.load()));
    record.close(Err(Failure::new(Reason::PeerReset, "reset")));
    drop(telemetry.open(meta(&snapshots.load())));
    let stranger = ConnectionMeta {
        reporter: Reporter::Destination,
        source: None,
        source_identity: None,
        service: None,
        security: Security::Plaintext(WhyPlaintext::SourceOutsideMesh),
        ..meta(&snapshots.load())
    };
    telemetry.refused(stranger.clone(), Reason::PlaintextRefused, &"strict");
    telemetry.open(stranger).close(Ok(()));
    let text = telemetry.scrape().unwrap();
    for reason in ["PeerReset", "Drained"] {
        let flag = format!("response_flags=\"{reason}\"");
        assert_eq!(samples(&text, &["connections_closed_total", &flag]), [1.0], "{reason}");
        assert_eq!(samples(&text, &["connections_failed_total", &flag]), [1.0], "{reason}");
        assert_eq!(samples(&text, &["culvert_refused_total", reason]), [1.0]);
    }
    let refused =
        ["connections_failed_total", "source_workload=\"unknown\"", "PlaintextRefused", "=\"none\""];
    assert_eq!(samples(&text, &refused), [1.0]);
    assert_eq!(
        samples(&text, &["connections_closed_total", "PlaintextRefused"]),
        [0.0; 0],
        "it was never open"
    );
    let guessed =
        ["connections_opened_total", "reporter=\"destination\"", "destination_service_name=\"cart\""];
    assert_eq!(samples(&text, &guessed), [1.0], "the only Service that leads to the port");
    let by_why = ["culvert_connections_total", "inbound", "security=\"none\"", "why=\"SourceOutsideMesh\""];
    assert_eq!(samples(&text, &by_why), [1.0]);
}

#[tokio::test(start_paused = true)]
async fn series_vanish_with_their_workloads_but_not_under_an_open_connection() {
    let (mut builder, snapshots) = mesh();
    let telemetry = Telemetry::new(snapshots.clone(), AccessLog::discarded());
    let cancel = tokio_util::sync::CancellationToken::new();
    tokio::spawn(telemetry.clone().run_sweeps(cancel.clone()));
    let minutes = |minutes: u64| tokio::time::sleep(Duration::from_secs(minutes * 60));
    let record = telemetry.open(meta(&snapshots.load()));
    telemetry.open(meta(&snapshots.load())).close(Ok(()));
    assert_eq!(telemetry.series_count(), 1);

    builder.remove_workload(&uid("cart"));
    snapshots.publish(builder.freeze(Origin::Controller, "v2"));
    minutes(30).await;
    assert_eq!(telemetry.series_count(), 1, "a connection is open");
    record.close(Ok(()));
    minutes(5).await;
    assert_eq!(telemetry.series_count(), 0);
    assert_eq!(samples(&telemetry.scrape().unwrap(), &["istio_tcp"]), [0.0; 0]);

    builder.upsert_workload(labelled("cart"));
    snapshots.publish(builder.freeze(Origin::Controller, "v3"));
    telemetry.open(meta(&snapshots.load())).close(Ok(()));
    minutes(30).await;
    assert_eq!(telemetry.series_count(), 1, "both ends live");
    // The near end lives on, on another node: its series here go.
    builder.upsert_workload(labelled("web"));
    snapshots.publish(builder.freeze(Origin::Controller, "v4"));
    minutes(5).await;
    assert_eq!(telemetry.series_count(), 0);
    telemetry
        .open(ConnectionMeta { source: None, destination: None, ..meta(&snapshots.load()) })
        .close(Ok(()));
    minutes(59).await;
    assert_eq!(telemetry.series_count(), 1);
    minutes(3).await;
    assert_eq!(telemetry.series_count(), 0, "unused for an hour");
}

#[tokio::test]
async fn everything_that_is_scraped_is_documented_and_the_other_way_round() {
    let (_, snapshots) = mesh();
    let telemetry = Telemetry::new(snapshots.clone(), AccessLog::discarded());
    let report = PodReport {
        phase: Phase::Enrolled,
        message: String::new(),
        uncaptured_connections: 4,
        identity: None,
        certificate_not_after: None,
        listeners: BTreeMap::new(),
    };
    let (_, pods) = watch::channel(PodReports::from([(uid("web"), report)]));
    telemetry.attach(Certificates::new(), pods, ControlStatus::default());
    telemetry.attach_endpoints(Arc::default());
    telemetry.open(meta(&snapshots.load())).close(Err(Failure::new(Reason::Connect, "refused")));
    telemetry.open(meta(&snapshots.load())).close(Ok(()));
    request(&telemetry, &snapshots, "web").finish();
    let tunnel = telemetry.tunnel_opened(Direction::Outbound);
    telemetry.handshake(Direction::Inbound, Outcome::Failure);
    let text = telemetry.scrape().unwrap();
    assert_eq!(samples(&text, &["culvert_tunnels_open{direction=\"outbound\"}"]), [1.0]);
    assert_eq!(samples(&text, &["culvert_uncaptured_connections"]), [4.0]);
    assert_eq!(samples(&text, &["culvert_pods{phase=\"Enrolled\"}"]), [1.0]);
    drop(tunnel);
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
        let labels = rest.strip_prefix('{').map_or("", |rest| rest.rsplit_once('}').unwrap().0);
        let names =
            labels.split("\",").filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap().0);
        let is_histogram = |name: &&str| spec::ALL.iter().any(|spec| spec.name == *name);
        let mut parts = ["_bucket", "_sum", "_count"].iter().filter_map(|suffix| name.strip_suffix(suffix));
        let name = parts.rfind(is_histogram).unwrap_or(name);
        found.entry(name).or_default().extend(names.filter(|label| *label != "le"));
    }
    // Without a certificate there is no expiry to scrape, and without a call no endpoint.
    found.insert(spec::CERTIFICATE_EXPIRY.name, BTreeSet::from(["identity"]));
    found.insert(spec::EJECTED.name, spec::EJECTED.labels.iter().copied().collect());
    let documented: BTreeMap<&str, BTreeSet<&str>> =
        spec::ALL.iter().map(|spec| (spec.name, spec.labels.iter().copied().collect())).collect();
    assert_eq!(found, documented);
    assert!(samples(&text, &["process_resident_memory_bytes"])[0] > 1e6);
    assert!(samples(&text, &["process_open_fds"])[0] < samples(&text, &["process_max_fds"])[0]);
}
