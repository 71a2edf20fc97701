//! The demo's story, step by step.

use super::report::{Conversation, Latency, Report, progress};
use super::sandbox::DemoSandbox;
use crate::capture::{Summary, Tls};
use anyhow::Context;
use culvert_api::names::{ENROLLED_CONDITION, HBONE_PORT};
use rand::Rng;
use serde_json::Value;
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub(super) const SHOP: &str = include_str!("../../../../docs/examples/shop.yaml");
pub(super) const SHOP_ENROLLED: &str = include_str!("../../../../docs/examples/shop-enrolled.yaml");

/// How long running pods may take to be enrolled; it takes a second.
const PATIENCE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(100);
/// Connections of the latency measurement.
const CONNECTIONS: &str = "4";

pub(super) struct Demo<'a> {
    pub(super) sandbox: &'a DemoSandbox,
    requests: u32,
    pub(super) report: Report,
}

/// The state of the namespace a step runs in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Unlabelled,
    Enrolled,
}

impl<'a> Demo<'a> {
    pub(super) fn new(sandbox: &'a DemoSandbox, requests: u32) -> Self {
        Self { sandbox, requests, report: Report::default() }
    }

    pub(super) async fn run(mut self) -> anyhow::Result<Report> {
        let started = Instant::now();
        progress("bringing up two nodes and the shop");
        self.sandbox.up("shop.yaml").await?;
        let pods = self.sandbox.pods().await?;
        let client = client_pod(&pods)?;
        self.await_service(&client).await?;
        self.report.check("sandbox", true, format!("2 nodes, {} pods", pods.len()));
        self.send_token(&client, Stage::Unlabelled, &pods).await?;
        self.report.latency_without =
            self.measure(&client, "http://cart/", "before: HTTP requests succeed").await?;
        progress("labelling the namespace culvert.dev/mesh=enabled");
        self.sandbox.apply("shop-enrolled.yaml").await?;
        if self.await_enrolment().await? {
            self.send_token(&client, Stage::Enrolled, &pods).await?;
            // A pod that is called at its own address: bytes, also on a port that is named http.
            let address = cart_address(&pods).context("there is no pod of the Deployment cart")?;
            let url = format!("http://{address}:8080/");
            self.report.latency_with = self.measure(&client, &url, "after: HTTP requests succeed").await?;
            self.who_talked().await?;
            self.canary(&client).await?;
            self.report.latency_routed =
                self.measure(&client, "http://cart/", "canary: HTTP requests succeed").await?;
        }
        self.report.seconds = started.elapsed().as_secs_f64();
        Ok(self.report)
    }

    /// Readiness of the pods reaches the rules of the Service a moment later.
    async fn await_service(&self, client: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = self
                .sandbox
                .client("shop", client, &["tcp", "send", "cart:9000", "--timeout", "2000"])
                .await?;
            if report["ok"] == true {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "web does not reach cart: {report}");
            tokio::time::sleep(POLL).await;
        }
    }

    async fn send_token(&mut self, client: &str, stage: Stage, pods: &[Value]) -> anyhow::Result<()> {
        let (when, file) = match stage {
            Stage::Unlabelled => ("before", "before.pcap"),
            Stage::Enrolled => ("after", "after.pcap"),
        };
        let token = random_token();
        progress(&format!("sending {token} from web to cart, recording the link"));
        let recording = self.sandbox.record(file).await?;
        let sent =
            self.sandbox.client("shop", client, &["tcp", "send", "cart:9000", "--data", &token]).await?;
        let summary = recording.finish(&token).await?;
        let arrived = sent["ok"] == true && sent["received"] == token.as_str();
        let detail = if arrived { "and was echoed".to_owned() } else { format!("it did not: {sent}") };
        self.report.check(&format!("{when}: the word arrives"), arrived, detail);
        match stage {
            Stage::Unlabelled => {
                let seen = &summary.token_seen;
                let detail =
                    seen.first().map_or("not found: is the right link recorded?".to_owned(), |place| {
                        format!("{place} in plaintext")
                    });
                self.report.check("before: anybody on the link can read it", !seen.is_empty(), detail);
            }
            Stage::Enrolled => self.judge_after(&summary, pods),
        }
        Ok(())
    }

    fn judge_after(&mut self, summary: &Summary, pods: &[Value]) {
        let seen = &summary.token_seen;
        let detail = if seen.is_empty() {
            format!("not in any of {} frames", summary.frames)
        } else {
            format!("read at {}", seen.join(", "))
        };
        self.report.check(
            "after: nobody on the link can read it",
            seen.is_empty() && summary.frames > 0,
            detail,
        );
        let addresses = addresses(pods);
        let spoken: Vec<_> = summary.between(&addresses).filter(|one| one.tls != Tls::NoPayload).collect();
        let wrong = spoken
            .iter()
            .find(|one| one.server.port() != HBONE_PORT || one.tls != Tls::V13 || one.missing > 0);
        let detail = match wrong {
            Some(one) => {
                format!("{} > {}: {:?}, {} bytes not captured", one.client, one.server, one.tls, one.missing)
            }
            None => format!("{} connections between pods, all TLS 1.3 on port {HBONE_PORT}", spoken.len()),
        };
        self.report.check(
            "after: every byte between pods is TLS 1.3",
            wrong.is_none() && !spoken.is_empty(),
            detail,
        );
    }

    async fn measure(&mut self, client: &str, url: &str, name: &str) -> anyhow::Result<Option<Latency>> {
        progress("measuring latency");
        let requests = self.requests.to_string();
        // A first few requests warm up connections and tunnels, which are not what is measured.
        self.sandbox
            .client("shop", client, &["get", url, "--count", "50", "--connections", CONNECTIONS])
            .await?;
        let call = ["get", url, "--count", &requests, "--connections", CONNECTIONS];
        let found = self.sandbox.client("shop", client, &call).await?;
        let ok = found["ok"].as_u64().unwrap_or(0);
        self.report.check(
            name,
            ok == u64::from(self.requests),
            format!("{ok} of {requests}, errors {}", found["errors"]),
        );
        let latency = &found["latency_ms"];
        Ok(latency["p50"].as_f64().zip(latency["p99"].as_f64()).map(|(p50_ms, p99_ms)| Latency {
            requests: ok,
            p50_ms,
            p99_ms,
        }))
    }

    /// Waits until every pod is enrolled; a check that fails if that does not happen.
    async fn await_enrolment(&mut self) -> anyhow::Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pods = self.sandbox.pods().await?;
            let waiting: Vec<_> = pods.iter().filter(|pod| !is_enrolled(pod)).map(name_of).collect();
            if waiting.is_empty() {
                self.report.check(
                    "enrolment",
                    true,
                    format!("{} running pods enrolled without a restart", pods.len()),
                );
                return Ok(true);
            }
            if Instant::now() > deadline {
                let detail = format!("not enrolled after {} s: {}", PATIENCE.as_secs(), waiting.join(", "));
                self.report.check("enrolment", false, detail);
                return Ok(false);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn who_talked(&mut self) -> anyhow::Result<()> {
        for node in ["node1", "node2"] {
            let metrics = self.sandbox.metrics(node).await?;
            self.report.conversations.extend(conversations(node, &metrics));
        }
        let expected = |reporter: &str| {
            self.report.conversations.iter().any(|one| {
                one.reporter == reporter
                    && one.security == "mutual_tls"
                    && one.source.ends_with("/ns/shop/sa/web")
                    && one.destination.ends_with("/ns/shop/sa/cart")
            })
        };
        let ok = expected("source") && expected("destination");
        let detail = if ok {
            "web spoke to cart, each under its own identity"
        } else {
            "no such connection was counted"
        };
        self.report.check("after: both nodes know who talked to whom", ok, detail);
        Ok(())
    }
}

fn random_token() -> String {
    let random: u128 = rand::rng().random();
    format!("word-{random:032x}")
}

fn client_pod(pods: &[Value]) -> anyhow::Result<String> {
    let web = pods.iter().find(|pod| pod["metadata"]["labels"]["app"] == "web");
    web.map(name_of).context("there is no pod of the Deployment web")
}

fn cart_address(pods: &[Value]) -> Option<&str> {
    let cart = pods.iter().find(|pod| pod["metadata"]["labels"]["app"] == "cart")?;
    cart["status"]["podIP"].as_str()
}

fn name_of(pod: &Value) -> String {
    pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn addresses(pods: &[Value]) -> Vec<IpAddr> {
    let all = pods.iter().filter_map(|pod| pod["status"]["podIPs"].as_array()).flatten();
    all.filter_map(|address| address["ip"].as_str()?.parse().ok()).collect()
}

fn is_enrolled(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|conditions| {
        conditions.iter().any(|one| one["type"] == ENROLLED_CONDITION && one["status"] == "True")
    })
}

/// The opened connections that a node proxy counted between two known identities.
fn conversations(node: &str, metrics: &str) -> Vec<Conversation> {
    let samples = metrics.lines().filter(|line| line.starts_with("istio_tcp_connections_opened_total{"));
    let mut found: Vec<Conversation> = Vec::new();
    for line in samples {
        let label = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        let count = line.rsplit_once(' ').and_then(|(_, count)| count.parse::<f64>().ok());
        let (Some(reporter), Some(source), Some(destination), Some(security), Some(count)) = (
            label("reporter"),
            label("source_principal"),
            label("destination_principal"),
            label("connection_security_policy"),
            count,
        ) else {
            continue;
        };
        let node = node.to_owned();
        let one = Conversation { node, reporter, source, destination, security, connections: 0 };
        let same = |other: &&mut Conversation| Conversation { connections: 0, ..(*other).clone() } == one;
        let total = count as u64;
        match found.iter_mut().find(same) {
            Some(known) => known.connections += total,
            None => found.push(Conversation { connections: total, ..one }),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_one_pair_are_added_up() {
        let metrics = concat!(
            "# TYPE istio_tcp_connections_opened counter\n",
            "istio_tcp_connections_opened_total{reporter=\"source\",source_principal=\"spiffe://c/ns/shop/sa/web\",",
            "destination_principal=\"spiffe://c/ns/shop/sa/cart\",destination_workload=\"a\",",
            "connection_security_policy=\"mutual_tls\"} 3\n",
            "istio_tcp_connections_opened_total{reporter=\"source\",source_principal=\"spiffe://c/ns/shop/sa/web\",",
            "destination_principal=\"spiffe://c/ns/shop/sa/cart\",destination_workload=\"b\",",
            "connection_security_policy=\"mutual_tls\"} 4\n",
            "istio_tcp_connections_closed_total{reporter=\"source\"} 9\n",
        );
        let found = conversations("node1", metrics);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].connections, found[0].security.as_str()), (7, "mutual_tls"));
    }

    #[test]
    fn enrolment_is_read_from_the_condition() {
        let pod = |status: &str| serde_json::json!({"status": {"conditions": [{"type": ENROLLED_CONDITION, "status": status}]}});
        assert!(is_enrolled(&pod("True")));
        assert!(!is_enrolled(&pod("False")));
        assert!(!is_enrolled(&serde_json::json!({})));
    }
}
