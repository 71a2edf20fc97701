//! What is wrong or surprising in a cluster, before Culvert is installed in it and after. Facts first ([`ClusterFacts`]), which
//! somebody else reads; everything here is a pure function of them.

mod capture;
mod cilium;
mod components;
mod facts;
mod gateway_api;
pub(crate) mod mesh;
mod nodes;
mod others;
pub(crate) mod policies;
mod report;
mod rights;
mod roots;
mod version;

pub use components::{Component, Role, components};
pub use facts::{CILIUM_CONFIG, ClusterFacts, Reading, Right, Stage, TRUST_BUNDLE, TRUST_BUNDLE_KEY, Unread};
pub use gateway_api::{Bundle, bundle};
pub use nodes::network_plugins;
pub use report::{ClusterFinding, ClusterReport, Summary, text};
pub use roots::{Root, RootsError, roots};

use crate::code::Code;

/// Everything that is found, in no order.
pub fn findings(facts: &ClusterFacts) -> Vec<ClusterFinding> {
    let mut all = [nodes::find, cilium::find, gateway_api::find, policies::find, others::find, rights::find]
        .iter()
        .flat_map(|find| find(facts))
        .collect::<Vec<_>>();
    if facts.stage == Stage::Installed {
        all.extend([mesh::find, capture::find, roots::find].iter().flat_map(|find| find(facts)));
    }
    all
}

/// Looks at a cluster.
pub fn check(facts: &ClusterFacts) -> ClusterReport {
    ClusterReport::of(findings(facts), Summary::of(facts))
}

fn finding(
    code: Code,
    object: impl Into<String>,
    field: impl Into<String>,
    what: impl Into<String>,
    remedy: impl Into<String>,
) -> ClusterFinding {
    ClusterFinding {
        code,
        severity: code.severity(),
        object: object.into(),
        field: field.into(),
        what: what.into(),
        remedy: remedy.into(),
    }
}

/// Names, joined by commas.
fn list<T: std::fmt::Display>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
}
