//! The roots of the mesh, and when they end.

use chrono::{DateTime, TimeDelta, Utc};
use culvert_api::names::SYSTEM_NAMESPACE;
use serde::Serialize;
use thiserror::Error;
use x509_parser::pem::Pem;

use super::facts::{ClusterFacts, Reading, TRUST_BUNDLE, TRUST_BUNDLE_KEY};
use super::finding;
use super::report::ClusterFinding;
use crate::code::Code;

/// A root that ends sooner is told of.
const SOON: TimeDelta = TimeDelta::days(30);

/// One root in the trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Root {
    pub subject: String,
    pub not_before: DateTime<Utc>,
    pub not_after: DateTime<Utc>,
}

/// Why a trust bundle has no roots that can be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RootsError {
    #[error("there is no certificate in it")]
    Empty,
    #[error("certificate {number} does not read: {why}")]
    Malformed { number: usize, why: String },
}

/// The certificates of a bundle.
///
/// # Errors
/// When there is none, or one does not read.
pub fn roots(pem: &str) -> Result<Vec<Root>, RootsError> {
    let mut roots = Vec::new();
    for (index, block) in Pem::iter_from_buffer(pem.as_bytes()).enumerate() {
        let malformed = |why: String| RootsError::Malformed { number: index + 1, why };
        let block = block.map_err(|error| malformed(error.to_string()))?;
        let certificate = block.parse_x509().map_err(|error| malformed(error.to_string()))?;
        let validity = certificate.validity();
        let time = |seconds: i64| DateTime::from_timestamp(seconds, 0).unwrap_or_default();
        roots.push(Root {
            subject: certificate.subject().to_string(),
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        });
    }
    if roots.is_empty() { Err(RootsError::Empty) } else { Ok(roots) }
}

pub fn find(facts: &ClusterFacts) -> Vec<ClusterFinding> {
    let object = format!("ConfigMap {SYSTEM_NAMESPACE}/{TRUST_BUNDLE}");
    let field = format!("data.{TRUST_BUNDLE_KEY}");
    let none = |what: String| {
        let remedy = "see that the CA is ready: it publishes the roots that it signs under; docs/operations.md, The root";
        vec![finding(Code::NoRoot, &object, &field, format!("{what}: nobody can prove who it is"), remedy)]
    };
    let pem = match &facts.trust_bundle {
        Reading::NotRead => return Vec::new(),
        Reading::Absent => return none("there is no trust bundle".to_owned()),
        Reading::There(pem) => pem,
    };
    let roots = match roots(pem) {
        Ok(roots) => roots,
        Err(error) => return none(error.to_string()),
    };
    let valid: Vec<&Root> =
        roots.iter().filter(|root| root.not_before <= facts.now && facts.now < root.not_after).collect();
    // A root that is being replaced may end: the last one to do so counts.
    let Some(last) = valid.iter().max_by_key(|root| root.not_after) else {
        return none("every root in it has ended, or does not begin yet".to_owned());
    };
    if last.not_after - facts.now >= SOON {
        return Vec::new();
    }
    vec![finding(
        Code::RootEnds,
        &object,
        &field,
        format!(
            "the last root to end, {}, ends {}: no certificate outlives it",
            last.subject,
            last.not_after.to_rfc3339()
        ),
        "kubectl -n culvert-system exec deploy/culvert-ca -- culvert-ca rotate-root --kubernetes; of a root that is provided, provide the next",
    )]
}
