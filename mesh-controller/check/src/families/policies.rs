//! NetworkPolicies that let an enrolled pod's application through and not its tunnels, as far as the files say who is enrolled.

use std::collections::BTreeMap;

use culvert_api::names::{HBONE_PORT, MESH_DISABLED, MESH_ENABLED, MESH_LABEL};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::core::{Selector, SelectorExt as _};
use serde::Deserialize as _;
use serde_json::Value;

use crate::cluster::policies::{Direction, lets_tunnels, ports};
use crate::code::Code;
use crate::context::{Context, Document};
use crate::finding::Finding;

type Labels = BTreeMap<String, String>;

/// A policy, and where it was written.
struct Written<'c> {
    document: &'c Document,
    policy: NetworkPolicy,
    selector: Selector,
}

/// Pods of a namespace that are written: each by its labels, whoever makes it.
struct Pods<'c> {
    document: &'c Document,
    labels: Labels,
}

pub fn find(context: &Context) -> Vec<Finding> {
    let policies: Vec<Written<'_>> = context.documents.iter().filter_map(policy).collect();
    if policies.is_empty() {
        return Vec::new();
    }
    let pods: Vec<Pods<'_>> = context.documents.iter().filter_map(pods).collect();
    let mut findings = Vec::new();
    for one in &policies {
        for direction in [Direction::Ingress, Direction::Egress] {
            if let Some(whom) = closed(context, one, direction, &policies, &pods) {
                findings.push(told(one.document, direction, &whom));
            }
        }
    }
    findings
}

fn policy(document: &Document) -> Option<Written<'_>> {
    if document.kind != "NetworkPolicy" || document.api_version != "networking.k8s.io/v1" {
        return None;
    }
    let policy = NetworkPolicy::deserialize(&document.value).ok()?;
    let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.clone()).unwrap_or_default();
    Some(Written { document, policy, selector: Selector::try_from(selector).ok()? })
}

/// Where a kind has the metadata of its pods.
pub(super) fn template(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "Pod" => "/metadata",
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job" => "/spec/template/metadata",
        "CronJob" => "/spec/jobTemplate/spec/template/metadata",
        _ => return None,
    })
}

fn pods(document: &Document) -> Option<Pods<'_>> {
    let metadata = document.value.pointer(template(&document.kind)?).unwrap_or(&Value::Null);
    let labels = metadata["labels"].as_object().into_iter().flatten();
    let labels = labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    Some(Pods { document, labels: labels.collect() })
}

/// Whom a policy keeps from the mesh: pods that are written, else those that the namespace enrols.
fn closed(
    context: &Context,
    one: &Written<'_>,
    direction: Direction,
    policies: &[Written<'_>],
    pods: &[Pods<'_>],
) -> Option<String> {
    let rules = ports(&one.policy, direction).filter(|rules| !rules.is_empty())?;
    if rules.into_iter().any(lets_tunnels) {
        return None;
    }
    let namespace = one.document.namespace();
    let beside = policies.iter().filter(|other| other.document.namespace() == namespace);
    // Policies add up.
    let opens = |other: &&Written<'_>| {
        ports(&other.policy, direction).is_some_and(|rules| rules.into_iter().any(lets_tunnels))
    };
    let opening: Vec<&Written<'_>> = beside.filter(opens).collect();
    let enrols = context.documents.iter().rev().find(|of| of.kind == "Namespace" && of.name == namespace);
    let enrols = enrols.is_some_and(|of| of.value["metadata"]["labels"][MESH_LABEL] == MESH_ENABLED);
    let is_enrolled = |labels: &Labels| match labels.get(MESH_LABEL).map(String::as_str) {
        Some(MESH_ENABLED) => true,
        Some(MESH_DISABLED) => false,
        _ => enrols,
    };
    let selected: Vec<&Pods<'_>> = pods
        .iter()
        .filter(|of| of.document.namespace() == namespace && one.selector.matches(&of.labels))
        .collect();
    if selected.is_empty() {
        let is_for_all = |other: &&&Written<'_>| {
            let selector = |of: &NetworkPolicy| of.spec.as_ref().and_then(|spec| spec.pod_selector.clone());
            let other = selector(&other.policy).unwrap_or_default();
            other == Default::default() || other == selector(&one.policy).unwrap_or_default()
        };
        let is_opened = opening.iter().any(|other| is_for_all(&other));
        return (enrols && !is_opened).then(|| format!("the pods that it selects in namespace {namespace}"));
    }
    let is_closed = |of: &&&Pods<'_>| {
        is_enrolled(&of.labels) && !opening.iter().any(|other| other.selector.matches(&of.labels))
    };
    selected.iter().find(is_closed).map(|of| format!("the pods of {}", of.document.title()))
}

fn told(document: &Document, direction: Direction, whom: &str) -> Finding {
    let what =
        format!("{whom} are enrolled: it allows ports and not {HBONE_PORT}/TCP, and {}", direction.effect());
    let remedy =
        format!("add {{port: {HBONE_PORT}, protocol: TCP}} to the `ports` of a rule for the same peers");
    document.finding(Code::ClosedToMesh, direction.field(), what, remedy)
}
