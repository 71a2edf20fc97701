//! Every metric, described once: the exposition and `docs/metrics.md` are both made from these.

/// How a metric is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One metric.
#[derive(Debug)]
pub(super) struct Spec {
    /// As scraped: counters end in `_total`.
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Spec {
    Spec { name, kind: Kind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Spec {
    Spec { name, kind: Kind::Gauge, labels, help }
}

const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Spec {
    Spec { name, kind: Kind::Histogram, labels, help }
}

/// Upper bounds of the buckets of Istio's histograms, the same for milliseconds and bytes.
pub(super) const REQUEST_BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// The labels that every metric of Istio has here, and more.
macro_rules! istio_labels {
    ($($more:literal),*) => {
        &[
            "reporter",
            "source_workload",
            "source_canonical_service",
            "source_canonical_revision",
            "source_workload_namespace",
            "source_principal",
            "source_app",
            "source_version",
            "source_cluster",
            "destination_service",
            "destination_service_namespace",
            "destination_service_name",
            "destination_workload",
            "destination_canonical_service",
            "destination_canonical_revision",
            "destination_workload_namespace",
            "destination_principal",
            "destination_app",
            "destination_version",
            "destination_cluster",
            "request_protocol",
            "response_flags",
            "connection_security_policy",
            $($more),*
        ]
    };
}

/// The labels of Istio's TCP metrics.
pub(super) const TCP_LABELS: &[&str] = istio_labels!();

pub(super) const TCP_OPENED: Spec =
    counter("istio_tcp_connections_opened_total", TCP_LABELS, "TCP connections opened.");
pub(super) const TCP_CLOSED: Spec = counter(
    "istio_tcp_connections_closed_total",
    TCP_LABELS,
    "TCP connections closed. `response_flags` is `-`, or the reason when they failed.",
);
pub(super) const TCP_FAILED: Spec = counter(
    "istio_tcp_connections_failed_total",
    TCP_LABELS,
    "TCP connections refused or failed, with the reason as `response_flags`.",
);
pub(super) const TCP_SENT: Spec = counter(
    "istio_tcp_sent_bytes_total",
    TCP_LABELS,
    "Bytes from the destination to the source (the response).",
);
pub(super) const TCP_RECEIVED: Spec = counter(
    "istio_tcp_received_bytes_total",
    TCP_LABELS,
    "Bytes from the source to the destination (the request).",
);

/// The labels of Istio's request metrics: those of TCP and how the request was answered.
pub(super) const REQUEST_LABELS: &[&str] = istio_labels!("response_code", "grpc_response_status");

pub(super) const REQUESTS: Spec = counter(
    "istio_requests_total",
    REQUEST_LABELS,
    "Requests answered. Copies for mirrors count apart from them, with `reporter` `mirror`.",
);
pub(super) const REQUEST_DURATION: Spec = histogram(
    "istio_request_duration_milliseconds",
    REQUEST_LABELS,
    "From the head of the request to the last byte of the response, in milliseconds.",
);
pub(super) const REQUEST_BYTES: Spec =
    histogram("istio_request_bytes", REQUEST_LABELS, "Bytes of request bodies.");
pub(super) const RESPONSE_BYTES: Spec =
    histogram("istio_response_bytes", REQUEST_LABELS, "Bytes of response bodies.");

pub(super) const CONNECTIONS: Spec = counter(
    "culvert_connections_total",
    &["direction", "security", "why"],
    "Connections opened. `why` says why a connection is not mutual TLS.",
);
pub(super) const CONNECTIONS_OPEN: Spec =
    gauge("culvert_connections_open", &["direction", "security"], "Connections open now.");
pub(super) const REFUSED: Spec = counter(
    "culvert_refused_total",
    &["reason"],
    "Connections and requests refused, or failed after they were opened, by reason.",
);
pub(super) const TUNNELS_OPEN: Spec =
    gauge("culvert_tunnels_open", &["direction"], "HBONE tunnels open now.");
pub(super) const HANDSHAKES: Spec = counter(
    "culvert_handshakes_total",
    &["direction", "result"],
    "TLS handshakes of tunnels, `success` or `failure`.",
);
pub(super) const POOL_STREAMS: Spec = counter(
    "culvert_pool_streams_total",
    &["tunnel"],
    "Outbound connections by the tunnel that carries them: `reused` or `new`.",
);
pub(super) const ACCEPT_PAUSES: Spec = counter(
    "culvert_accept_pauses_total",
    &[],
    "Times a listener paused because descriptors or memory were exhausted.",
);
pub(super) const HANDED_OVER: Spec = counter(
    "culvert_connections_handed_over_total",
    &[],
    "Connections that a busy worker gave to a less busy one.",
);
pub(super) const PAST_ROUTES: Spec = counter(
    "culvert_pod_address_calls_total",
    &[],
    "Connections to a pod's own address whose Service has routes for the client: routes do not apply to them.",
);
pub(super) const REQUEST_CONNECTIONS: Spec = counter(
    "culvert_request_connections_total",
    &["connection"],
    "Requests by the connection to the endpoint that carries them: `reused` or `new`.",
);
pub(super) const RETRIES: Spec = counter(
    "culvert_retries_total",
    &["result"],
    "Requests that failed and whose rule asks for another attempt: `sent` again, or not because that would be `over_budget`, their \
     body was too large to be kept (`body`) or there was no time left (`deadline`).",
);
pub(super) const MIRRORS: Spec = counter(
    "culvert_mirrors_total",
    &["result"],
    "Copies of requests for mirrors: `complete`, `cut` before the mirror had taken all of it, `failed` otherwise, `skipped` because \
     the workload's limits leave no room, `unresolved` because there is no such backend.",
);
pub(super) const EJECTED: Spec = gauge(
    "culvert_ejected_endpoints",
    &["destination_service_name", "destination_service_namespace"],
    "Endpoints that clients of this node pass over because they fail, for every Service that is called from it; `/config` lists \
     them. One that is ejected for connections and for requests counts twice.",
);
pub(super) const EJECTIONS: Spec = counter(
    "culvert_ejections_total",
    &["step"],
    "Endpoints ejected, by what had failed: to `connect`, to `answer`, or the `rest` of what they had begun.",
);
pub(super) const TRIALS: Spec = counter(
    "culvert_ejection_trials_total",
    &["result"],
    "Trials of ejected endpoints, `success` or `failure`.",
);
pub(super) const RULE_REPAIRS: Spec = counter(
    "culvert_rule_repairs_total",
    &["result"],
    "Interception rules found missing or changed in a pod's namespace and put back.",
);
pub(super) const ENROLLED_PODS: Spec =
    gauge("culvert_pods", &["phase"], "Pods of this node by enrolment phase.");
pub(super) const UNCAPTURED: Spec = gauge(
    "culvert_uncaptured_connections",
    &[],
    "Connections opened before their pod was enrolled and still open: not protected.",
);
pub(super) const CONTROL_CONNECTED: Spec =
    gauge("culvert_control_connected", &[], "1 while the controller's stream is up.");
pub(super) const CONTROL_AGE: Spec =
    gauge("culvert_control_stream_age_seconds", &[], "Age of the controller's stream; 0 while it is down.");
pub(super) const CONTROL_SILENCE: Spec = gauge(
    "culvert_control_silence_seconds",
    &[],
    "Time since the controller was last heard, over any stream; 0 before the first time.",
);
pub(super) const CONTROL_CONNECTS: Spec = counter(
    "culvert_control_connects_total",
    &["result"],
    "Attempts to open the controller's stream, `success` or `failure`.",
);
pub(super) const SNAPSHOT_INFO: Spec =
    gauge("culvert_snapshot_info", &["version"], "1 for the version in force.");
pub(super) const SNAPSHOT_STALE: Spec = gauge(
    "culvert_snapshot_stale",
    &[],
    "1 while the state in force was kept by an earlier process and no controller has confirmed it.",
);
pub(super) const SNAPSHOTS: Spec = counter("culvert_snapshots_total", &[], "Snapshots put in force.");
pub(super) const WORKLOADS: Spec = gauge("culvert_workloads", &[], "Workloads in the snapshot in force.");
pub(super) const SERVICES: Spec = gauge("culvert_services", &[], "Services in the snapshot in force.");
pub(super) const REFUSED_RESOURCES: Spec = gauge(
    "culvert_refused_resources",
    &[],
    "Resources of the controller that this proxy cannot accept at present; `/config` lists them.",
);
pub(super) const CERTIFICATE_EXPIRY: Spec = gauge(
    "culvert_certificate_expiry_timestamp_seconds",
    &["identity"],
    "When the certificate in force of the identity ends, in seconds since the epoch.",
);
pub(super) const CERTIFICATE_REQUESTS: Spec = counter(
    "culvert_certificate_requests_total",
    &["result"],
    "Certificate requests answered by the CA, or not: `success` or `failure`.",
);
pub(super) const ACCESS_LOG_DROPPED: Spec = counter(
    "culvert_access_log_dropped_total",
    &[],
    "Access log lines dropped because whoever reads the log was too slow.",
);
pub(super) const OPEN_FDS: Spec = gauge("process_open_fds", &[], "Open file descriptors.");
pub(super) const MAX_FDS: Spec = gauge("process_max_fds", &[], "Limit on open file descriptors.");
pub(super) const RESIDENT_MEMORY: Spec =
    gauge("process_resident_memory_bytes", &[], "Resident memory in bytes.");
pub(super) const CPU_SECONDS: Spec =
    counter("process_cpu_seconds_total", &[], "User and system CPU time spent, in seconds.");
pub(super) const START_TIME: Spec =
    gauge("process_start_time_seconds", &[], "Start of the process, in seconds since the epoch.");
pub(super) const BUILD_INFO: Spec = gauge("culvert_build_info", &["version"], "1 for the version running.");

/// In the order of the exposition and of the documentation.
#[cfg(test)]
pub(super) const ALL: &[&Spec] = &[
    &TCP_OPENED,
    &TCP_CLOSED,
    &TCP_FAILED,
    &TCP_SENT,
    &TCP_RECEIVED,
    &REQUESTS,
    &REQUEST_DURATION,
    &REQUEST_BYTES,
    &RESPONSE_BYTES,
    &CONNECTIONS,
    &CONNECTIONS_OPEN,
    &REFUSED,
    &TUNNELS_OPEN,
    &HANDSHAKES,
    &POOL_STREAMS,
    &ACCEPT_PAUSES,
    &HANDED_OVER,
    &PAST_ROUTES,
    &REQUEST_CONNECTIONS,
    &RETRIES,
    &MIRRORS,
    &EJECTED,
    &EJECTIONS,
    &TRIALS,
    &RULE_REPAIRS,
    &ENROLLED_PODS,
    &UNCAPTURED,
    &CONTROL_CONNECTED,
    &CONTROL_AGE,
    &CONTROL_SILENCE,
    &CONTROL_CONNECTS,
    &SNAPSHOT_INFO,
    &SNAPSHOT_STALE,
    &SNAPSHOTS,
    &WORKLOADS,
    &SERVICES,
    &REFUSED_RESOURCES,
    &CERTIFICATE_EXPIRY,
    &CERTIFICATE_REQUESTS,
    &ACCESS_LOG_DROPPED,
    &OPEN_FDS,
    &MAX_FDS,
    &RESIDENT_MEMORY,
    &CPU_SECONDS,
    &START_TIME,
    &BUILD_INFO,
];
