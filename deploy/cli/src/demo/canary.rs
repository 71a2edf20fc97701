//! Routes: a canary by weight and by header, and a client namespace that wants another split for itself.

use super::checks::Demo;
use super::report::{Routes, progress};
use anyhow::Context;
use serde_json::Value;
use std::time::{Duration, Instant};

pub(super) const CANARY: &str = include_str!("../../../../docs/examples/canary.yaml");
pub(super) const CONSUMER: &str = include_str!("../../../../docs/examples/consumer.yaml");

/// Requests that measure the split. Choosing is exact over each hundred, on each worker.
const REQUESTS: u64 = 1000;
/// Of the canary, as canary.yaml has it.
const WEIGHT: f64 = 0.1;
/// How far the measured share may be off.
const TOLERANCE: f64 = 0.01;
/// Requests of testers and of the auditor.
const FEW: u64 = 20;
/// How long an edit may take to be in force everywhere; it takes a moment.
const PATIENCE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(100);

/// Who asks, and which header makes a tester.
const TESTER: [&str; 2] = ["--header", "x-tester: yes"];

impl Demo<'_> {
    /// Shows both, and notes what was measured.
    pub(super) async fn canary(&mut self, client: &str) -> anyhow::Result<()> {
        progress("a canary: a tenth of the requests by weight, testers by a header");
        self.sandbox.apply("canary.yaml").await?;
        self.sandbox.wait().await?;
        self.await_answer("shop", client, &[&["get", "http://cart/"][..], &TESTER].concat(), |answer| {
            canaries(answer) > 0
        })
        .await?;
        let count = FEW.to_string();
        let testers = self
            .sandbox
            .client("shop", client, &[&["get", "http://cart/", "--count", &count][..], &TESTER].concat())
            .await?;
        let testers = canaries(&testers);
        self.report.check(
            "canary: requests of testers go to it",
            testers == FEW,
            format!("{testers} of {FEW} with x-tester: yes"),
        );
        let count = REQUESTS.to_string();
        let split = ["get", "http://cart/", "--count", &count, "--connections", "4"];
        let answers = self.sandbox.client("shop", client, &split).await?;
        let (ok, share) = (answers["ok"].as_u64().unwrap_or(0), canaries(&answers) as f64 / REQUESTS as f64);
        self.report.check(
            "canary: a tenth of all requests goes to it",
            ok == REQUESTS && (share - WEIGHT).abs() <= TOLERANCE,
            format!("{:.1} % of {REQUESTS} requests, {ok} answered", share * 100.0),
        );
        let consumers = self.consumer().await?;
        self.report.routes =
            Some(Routes { requests: REQUESTS, weight: WEIGHT, share, testers, consumers, few: FEW });
        Ok(())
    }

    /// Clients of another namespace whose own route replaces that of the Service's owner.
    async fn consumer(&mut self) -> anyhow::Result<u64> {
        progress("a route of a client namespace, for its own clients");
        self.sandbox.apply("consumer.yaml").await?;
        self.sandbox.wait().await?;
        let auditor = "deploy/auditor";
        let one = ["get", "http://cart.shop/"];
        self.await_answer("audit", auditor, &one, |answer| {
            answer["last"]["headers"]["x-audit"] == serde_json::json!(["yes"])
        })
        .await?;
        let count = FEW.to_string();
        let call = ["get", "http://cart.shop/", "--count", &count, "--header", "x-tester: yes"];
        let answers = self.sandbox.client("audit", auditor, &call).await?;
        let stable = answers["ok"].as_u64().unwrap_or(0).saturating_sub(canaries(&answers));
        let detail = format!("{stable} of {FEW} requests of testers in audit go to the stable version");
        self.report.check("consumer route: replaces the producer's for its clients", stable == FEW, detail);
        Ok(stable)
    }

    /// Asks until the answer is as wanted.
    async fn await_answer(
        &self,
        namespace: &str,
        pod: &str,
        call: &[&str],
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.sandbox.client(namespace, pod, call).await?;
            if wanted(&answer) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(anyhow::anyhow!("{answer}")).context("the routes are not in force");
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Answers of pods of the canary.
fn canaries(report: &Value) -> u64 {
    let pods = report["pods"].as_object().into_iter().flatten();
    pods.filter(|(pod, _)| pod.starts_with("cart-canary-")).filter_map(|(_, count)| count.as_u64()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_version() {
        let report = serde_json::json!({"pods": {"cart-1-a": 5, "cart-canary-1-a": 2, "cart-canary-1-b": 1}});
        assert_eq!(canaries(&report), 3);
        assert_eq!(canaries(&serde_json::json!({})), 0);
    }
}
