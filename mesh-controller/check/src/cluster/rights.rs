//! What the asking user may not do, and what could not be looked at.

use super::facts::{ClusterFacts, Right};
use super::finding;
use super::report::ClusterFinding;
use crate::code::Code;

pub fn find(facts: &ClusterFacts) -> Vec<ClusterFinding> {
    let rights = facts.rights.iter().filter(|right| !right.allowed).map(denied);
    let unread = facts.unread.iter().map(|unread| {
        finding(
            Code::Unasked,
            "",
            "",
            format!("{} could not be read ({}): what depends on them was not looked at", unread.what, unread.why),
            format!(
                "ask who administers the cluster for the right to list {0}: kubectl auth can-i list {0} --all-namespaces",
                unread.what
            ),
        )
    });
    rights.chain(unread).collect()
}

fn denied(right: &Right) -> ClusterFinding {
    let Right { verb, group, resource, namespace, .. } = right;
    let of = if group.is_empty() { resource.clone() } else { format!("{resource}.{group}") };
    let place = match namespace.as_str() {
        "" => "in the cluster".to_owned(),
        namespace => format!("in namespace {namespace}"),
    };
    let flag = if namespace.is_empty() { "--all-namespaces".to_owned() } else { format!("-n {namespace}") };
    finding(
        Code::NoRight,
        "",
        "",
        format!("you may not {verb} {of} {place}, which installing Culvert does"),
        format!("install as a user who may (cluster-admin can); kubectl auth can-i {verb} {of} {flag}"),
    )
}
