//! What the demo found, as text and as JSON.

use serde::Serialize;
use std::io::{self, Write};

/// One thing that must hold.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) ok: bool,
    pub(super) detail: String,
}

/// Latency of keep-alive HTTP requests, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) requests: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// Connections from one identity to another, as a node proxy counted them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Conversation {
    pub(super) node: String,
    pub(super) reporter: String,
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) security: String,
    pub(super) connections: u64,
}

/// What routes did.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Routes {
    pub(super) requests: u64,
    /// Share of the canary, as the route says and as measured; from 0 to 1.
    pub(super) weight: f64,
    pub(super) share: f64,
    /// Of `few` requests with the testers' header: those that went to the canary.
    pub(super) testers: u64,
    /// Of `few` requests of the other namespace: those that its own route took.
    pub(super) consumers: u64,
    pub(super) few: u64,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) checks: Vec<Check>,
    pub(super) conversations: Vec<Conversation>,
    pub(super) latency_without: Option<Latency>,
    /// Each connection's bytes to one endpoint (L4).
    pub(super) latency_with: Option<Latency>,
    /// Each request by a weighted route with a header match (L7).
    pub(super) latency_routed: Option<Latency>,
    pub(super) routes: Option<Routes>,
    pub(super) seconds: f64,
}

/// A line on standard error about what is being done.
pub(super) fn progress(what: &str) {
    // Nobody may be listening.
    let _ = writeln!(io::stderr(), "... {what}");
}

impl Report {
    pub(super) fn check(&mut self, name: &str, ok: bool, detail: impl Into<String>) {
        self.checks.push(Check { name: name.to_owned(), ok, detail: detail.into() });
    }

    pub(super) fn ok(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.ok)
    }

    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            #[derive(Serialize)]
            struct Document<'a> {
                ok: bool,
                #[serde(flatten)]
                report: &'a Report,
            }
            writeln!(out, "{}", serde_json::to_string_pretty(&Document { ok: self.ok(), report: self })?)?;
            return Ok(());
        }
        for check in &self.checks {
            writeln!(
                out,
                "{}  {}: {}",
                if check.ok { "ok    " } else { "FAILED" },
                check.name,
                check.detail
            )?;
        }
        if !self.conversations.is_empty() {
            writeln!(out, "\nWho talked to whom")?;
        }
        for one in &self.conversations {
            let Conversation { node, reporter, source, destination, security, connections } = one;
            writeln!(
                out,
                "  {source} -> {destination}: {connections} connections, {security} ({reporter}, {node})"
            )?;
        }
        if let Some(routes) = &self.routes {
            let Routes { requests, weight, share, .. } = routes;
            writeln!(
                out,
                "\nCanary by weight: {:.1} % of {requests} requests, asked for {:.0} %",
                share * 100.0,
                weight * 100.0
            )?;
        }
        writeln!(out, "\nLatency of HTTP requests on open connections")?;
        for (what, latency) in [
            ("without mesh", self.latency_without),
            ("with mesh, L4", self.latency_with),
            ("with mesh, L7", self.latency_routed),
        ] {
            match latency {
                Some(Latency { requests, p50_ms, p99_ms }) => {
                    writeln!(
                        out,
                        "  {what:<14} p50 {p50_ms:.2} ms   p99 {p99_ms:.2} ms   ({requests} requests)"
                    )?;
                }
                None => writeln!(out, "  {what:<14} not measured")?,
            }
        }
        let verdict = if self.ok() { "All checks passed" } else { "The demo FAILED" };
        writeln!(out, "\n{verdict} in {:.0} s.", self.seconds)?;
        Ok(())
    }
}
