//! Findings in a cluster, and what they add up to.

use std::fmt::Write as _;

use culvert_objects::Kind;
use serde::Serialize;

use super::facts::ClusterFacts;
use super::gateway_api::{self, Bundle};
use super::{components, nodes};
use crate::code::{Code, Severity};
use crate::render::counted;

/// One thing that is wrong or surprising.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterFinding {
    pub code: Code,
    pub severity: Severity,
    /// `KIND NAMESPACE/NAME`, empty for the cluster as a whole.
    pub object: String,
    /// As `status.nodeInfo.kernelVersion`, empty for the object as a whole.
    pub field: String,
    /// What is the matter, and what comes of it.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// What was found to be there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Of the API server; empty where it was not told.
    pub kubernetes: String,
    pub nodes: usize,
    pub pods: usize,
    /// Each once.
    pub kernels: Vec<String>,
    pub network_plugins: Vec<String>,
    /// None without any.
    pub gateway_api: Option<Bundle>,
    /// Versions of the parts of the mesh, each once.
    pub culvert: Vec<String>,
}

impl Summary {
    pub fn of(facts: &ClusterFacts) -> Self {
        let mut culvert: Vec<String> =
            components::components(&facts.objects).into_iter().map(|part| part.version).collect();
        culvert.sort();
        culvert.dedup();
        Self {
            kubernetes: facts.server.clone().unwrap_or_default(),
            nodes: facts.of_kind(Kind::Node).count(),
            pods: facts.of_kind(Kind::Pod).count(),
            kernels: nodes::kernels(facts),
            network_plugins: nodes::network_plugins(facts),
            gateway_api: gateway_api::bundle(facts),
            culvert,
        }
    }
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterReport {
    pub errors: usize,
    pub warnings: usize,
    pub notices: usize,
    pub cluster: Summary,
    /// The worst first, then by code and object.
    pub findings: Vec<ClusterFinding>,
}

impl ClusterReport {
    /// Sorts the findings and counts them.
    pub(crate) fn of(mut findings: Vec<ClusterFinding>, cluster: Summary) -> Self {
        findings.sort_by(|a, b| {
            let key = |of: &ClusterFinding| (of.severity, of.code, of.object.clone(), of.field.clone());
            key(a).cmp(&key(b)).then_with(|| a.what.cmp(&b.what))
        });
        findings.dedup();
        let count = |of| findings.iter().filter(|finding| finding.severity == of).count();
        Self {
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
            notices: count(Severity::Notice),
            cluster,
            findings,
        }
    }
}

/// A report for people: what is there, a block per finding, and a line that counts them.
pub fn text(report: &ClusterReport) -> String {
    let mut text = String::new();
    let Summary { kubernetes, nodes, pods, kernels, network_plugins, gateway_api, culvert } = &report.cluster;
    let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
    let bundle = gateway_api.as_ref().map(ToString::to_string).unwrap_or_default();
    let rows = [
        ("kubernetes", or(kubernetes, "unknown")),
        ("nodes", format!("{nodes}, {}", or(&kernels.join(", "), "kernels unknown"))),
        ("pods", pods.to_string()),
        ("network", or(&network_plugins.join(", "), "no plugin that is known")),
        ("gateway api", or(&bundle, "none")),
        ("culvert", or(&culvert.join(", "), "none")),
    ];
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<12} {value}");
    }
    for finding in &report.findings {
        let _ = write!(text, "{} {}", finding.severity, finding.code);
        for part in [&finding.object, &finding.field].into_iter().filter(|part| !part.is_empty()) {
            let _ = write!(text, ": {part}");
        }
        let _ = writeln!(text, "\n    {}\n    -> {}", finding.what, finding.remedy);
    }
    let _ = writeln!(text, "{}", counted(report.errors, report.warnings, report.notices));
    text
}
