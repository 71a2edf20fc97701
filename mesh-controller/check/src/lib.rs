//! `culvert check`: what is wrong or surprising in manifests, before they are applied.
//!
//! [`check`] is a pure function of texts. It reads them as the mesh's own sources do, takes what they refer to and do not have
//! for being there ([`assume`]), lets the controller translate all of it, and looks at what came of that ([`families`]). What
//! Culvert does and does not do is the controller's answer, never a list of ours, so findings follow what it learns.
//!
//! [`cluster`] is the same for what is there already: a pure function of what somebody has read from a cluster.

mod api;
mod assume;
pub mod cluster;
mod code;
mod context;
mod families;
mod finding;
pub mod hidden;
mod lines;
mod mended;
mod plain;
mod references;
pub mod render;
mod words;

use std::collections::BTreeSet;

pub use code::{Code, Severity};
pub use context::{Absent, File};
pub use finding::{Finding, Place, Report};

use context::Context;
use culvert_objects::Kind;

/// Looks at files of manifests together.
pub fn check(files: &[File], absent: Absent) -> Report {
    let context = Context::new(files, absent);
    let is_unread = |document: &&context::Document| !is_judged(document);
    let unread: BTreeSet<String> = (context.documents.iter().filter(is_unread))
        .map(|document| format!("{} {}", document.api_version, document.kind).trim().to_owned())
        .collect();
    let findings = families::find(&context).into_iter().filter_map(|finding| settled(finding, absent));
    let findings = findings.map(|finding| said(finding, &context)).collect();
    Report::of(findings, context.documents.len(), unread.into_iter().collect())
}

/// In names that somebody wrote, and with what is not known for the fault.
fn said(mut finding: Finding, context: &Context) -> Finding {
    if finding.code == Code::Schema {
        if plain::is_unquoted(&finding.what) {
            finding.remedy = plain::QUOTE.to_owned();
        }
        finding.what.push_str(context.unknown(&finding));
    }
    for text in [&mut finding.what, &mut finding.remedy] {
        *text = context.assumed.said(text);
    }
    finding
}

/// Whether an object is of a kind that some family looks at, or of none.
fn is_judged(document: &context::Document) -> bool {
    const JUDGED: [&str; 4] = ["ClusterRole", "Ingress", "NetworkPolicy", "Role"];
    let (version, kind) = (document.api_version.as_str(), document.kind.as_str());
    let group = version.split('/').next().unwrap_or_default();
    version.is_empty()
        || kind.is_empty()
        || Kind::of(version, kind).is_ok()
        || JUDGED.contains(&kind)
        || api::kinds().values().any(|api| api.group == group)
}

/// What only the cluster knows, as it was asked to be taken; what is left of it when all objects are settled are grants.
fn settled(mut finding: Finding, absent: Absent) -> Option<Finding> {
    match (finding.code, absent) {
        (Code::NotInFiles, Absent::There) => return None,
        (Code::NotInFiles, Absent::Missing) => {
            finding.code = Code::NotGranted;
            finding.severity = finding.code.severity();
        }
        _ => {}
    }
    Some(finding)
}
