//! `docs/metrics.md`, generated.

use std::fmt::Write as _;

use super::connection::WhyPlaintext;
use super::spec::{self, Kind, Spec};
use crate::reason::Reason;

const HEAD: &str = "# Metrics of the node proxy

Served at `/metrics` of the admin port, in the OpenMetrics text format. This page is generated from
`node-proxy/src/telemetry/spec.rs`; a test keeps it true (`UPDATE_GOLDEN=1` rewrites it).

Values that are not known are `unknown` in the labels of the Istio metrics. Their series are made with the first
connection of two workloads and vanish within 5 minutes after one of the two is gone (at the near end: gone from this
node), or after an hour without a connection.
";

const REQUESTS: &str = "
Reported by the client's node (`reporter=\"source\"`), where requests are routed; at the server's node they are bytes.
`destination_service` is the backend that the route chose, else the Service that was called. `response_flags` is `-`, or
the reason when Culvert answered or cut the request itself; `response_code` is what the client saw, 499 when it did not
wait. `grpc_response_status` is empty for anything but gRPC. No label has a value that a client chooses: not Host, not
path.
";
const CONNECTIONS: &str = "
A connection whose requests are routed one by one counts here by the connections that carry its requests to endpoints,
each with its own destination; they are shared by requests and outlive the client's connection. So both nodes report the
same connections, whether they carry requests or bytes.
";

/// The page.
fn page() -> String {
    let mut page = String::from(HEAD);
    section(&mut page, "Istio's request metrics", |spec| spec.name.starts_with("istio_re"));
    labels(&mut page, spec::REQUEST_LABELS);
    page.push_str(REQUESTS);
    section(&mut page, "Istio's TCP metrics", |spec| spec.name.starts_with("istio_tcp_"));
    labels(&mut page, spec::TCP_LABELS);
    page.push_str(CONNECTIONS);
    section(&mut page, "Culvert's own", |spec| spec.name.starts_with("culvert_"));
    section(&mut page, "The process", |spec| spec.name.starts_with("process_"));
    list(&mut page, "Values of `reason` and `response_flags`", Reason::ALL.map(Reason::as_str));
    list(&mut page, "Values of `why`", WhyPlaintext::ALL.map(WhyPlaintext::as_str));
    page
}

fn labels(page: &mut String, labels: &[&str]) {
    let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
    let _ = writeln!(page, "\nAll of them have the labels {}.", labels.join(", "));
}

fn section(page: &mut String, title: &str, chosen: impl Fn(&Spec) -> bool) {
    let _ = writeln!(page, "\n## {title}\n\n| metric | type | labels | meaning |\n|---|---|---|---|");
    for spec in spec::ALL.iter().filter(|spec| chosen(spec)) {
        let kind = match spec.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels = match spec.labels {
            labels if labels == spec::TCP_LABELS || labels == spec::REQUEST_LABELS => "see below".to_owned(),
            labels => labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", "),
        };
        let _ = writeln!(page, "| `{}` | {kind} | {labels} | {} |", spec.name, spec.help);
    }
}

fn list<const N: usize>(page: &mut String, title: &str, words: [&str; N]) {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    let _ = writeln!(page, "\n## {title}\n\n{}", words.join(", "));
}

#[test]
fn the_documentation_is_what_the_code_says() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = page();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/metrics.md is not what the code says; UPDATE_GOLDEN=1 rewrites it");
}
