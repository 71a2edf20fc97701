//! The mesh's own parts: whether they are there, ready, of one version and on every node; labels that mean nothing.

use std::collections::{BTreeMap, BTreeSet};

use culvert_api::names::{MESH_DISABLED, MESH_ENABLED, MESH_LABEL, NODE_RELEASED, SYSTEM_NAMESPACE};
use culvert_objects::{Kind, Object};

use super::components::{Component, Role, components};
use super::facts::ClusterFacts;
use super::report::ClusterFinding;
use super::{finding, list, nodes};
use crate::code::Code;

pub fn find(facts: &ClusterFacts) -> Vec<ClusterFinding> {
    let mut all = labels(facts);
    // Without the right to see pods nothing can be said.
    if facts.unread.iter().any(|unread| unread.what == "pods") {
        return all;
    }
    let parts = components(&facts.objects);
    let missing: Vec<&str> = Role::ALL
        .into_iter()
        .filter(|role| parts.iter().all(|of| of.role != *role))
        .map(Role::as_str)
        .collect();
    if missing.len() == Role::ALL.len() {
        all.push(finding(
            Code::NotInstalled,
            format!("Namespace {SYSTEM_NAMESPACE}"),
            "",
            "no pod of Culvert's is there (labels app.kubernetes.io/name=culvert and app.kubernetes.io/component)",
            "install the chart deploy/helm/culvert; `culvert check --pre` says whether the cluster is ready for it",
        ));
        return all;
    }
    for role in missing {
        all.push(finding(
            Code::NotReady,
            format!("Namespace {SYSTEM_NAMESPACE}"),
            "",
            format!("there is no pod of the {role}: {}", without(role)),
            format!("kubectl -n {SYSTEM_NAMESPACE} get deployments,daemonsets,events"),
        ));
    }
    all.extend(parts.iter().filter(|part| !part.ready && !part.ending).map(not_ready));
    all.extend(skew(&parts));
    all.extend(without_node_proxy(facts, &parts));
    all
}

fn without(role: &str) -> &'static str {
    match role {
        "ca" => "new pods get no certificate and wait; others go on until theirs end",
        "controller" => {
            "node proxies go on with what they know, changes do not reach them, and new pods wait"
        }
        _ => "enrolled pods wait, and those that are captured have no connections",
    }
}

fn not_ready(part: &Component) -> ClusterFinding {
    finding(
        Code::NotReady,
        format!("Pod {SYSTEM_NAMESPACE}/{}", part.pod),
        "status.conditions",
        format!("this {} is not ready: {}", part.role.as_str(), part.message),
        format!(
            "kubectl -n {SYSTEM_NAMESPACE} describe pod {0}; kubectl -n {SYSTEM_NAMESPACE} logs {0}",
            part.pod
        ),
    )
}

fn skew(parts: &[Component]) -> Option<ClusterFinding> {
    let mut by_version: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for part in parts.iter().filter(|part| !part.version.is_empty() && !part.ending) {
        by_version.entry(&part.version).or_default().push(format!("{} {}", part.role.as_str(), part.pod));
    }
    (by_version.len() > 1).then(|| {
        let versions = by_version.iter().map(|(version, parts)| format!("{version}: {}", list(parts)));
        finding(
            Code::Skew,
            format!("Namespace {SYSTEM_NAMESPACE}"),
            "",
            format!(
                "parts of the mesh are of different versions: {}",
                versions.collect::<Vec<_>>().join("; ")
            ),
            "expected while an upgrade is under way; else look at what its rollout waits for: \
             kubectl -n culvert-system rollout status daemonset/culvert-node-proxy",
        )
    })
}

fn without_node_proxy(facts: &ClusterFacts, parts: &[Component]) -> Vec<ClusterFinding> {
    let with: BTreeSet<&str> =
        parts.iter().filter(|part| part.role == Role::NodeProxy).map(|part| part.node.as_str()).collect();
    let without = |node: &&Object| nodes::is_linux(node) && !with.contains(node.name()) && !is_released(node);
    facts
        .of_kind(Kind::Node)
        .filter(without)
        .map(|node| {
            finding(
                Code::NoNodeProxy,
                node.key().to_string(),
                "",
                "no node proxy runs there: pods that are to be enrolled wait on this node",
                format!(
                    "look at the DaemonSet's tolerations and nodeSelector, and at its Events; \
                     `culvert node release {}` lets its pods go, outside the mesh",
                    node.name()
                ),
            )
        })
        .collect()
}

pub fn is_released(node: &Object) -> bool {
    node.label(MESH_LABEL) == Some(NODE_RELEASED)
}

fn labels(facts: &ClusterFacts) -> Vec<ClusterFinding> {
    let mut all = Vec::new();
    for node in facts.of_kind(Kind::Node).filter(|node| is_released(node)) {
        all.push(finding(
            Code::NodeReleased,
            node.key().to_string(),
            format!("metadata.labels.{MESH_LABEL}"),
            "the node is released: its pods leave the mesh, and new ones start outside of it, in plaintext",
            format!(
                "`culvert node admit {}`, once its node proxy is well; its pods are enrolled then",
                node.name()
            ),
        ));
    }
    let objects = [Kind::Namespace, Kind::Pod, Kind::Node].into_iter().flat_map(|kind| facts.of_kind(kind));
    for object in objects {
        let said = object.label(MESH_LABEL).and_then(|value| means_nothing(object.kind.as_str(), value));
        let Some((what, remedy)) = said else { continue };
        let field = format!("metadata.labels.{MESH_LABEL}");
        all.push(finding(Code::LabelValue, object.key().to_string(), field, what, remedy));
    }
    all
}

/// What is the matter with a value of the mesh's label on an object (or on pods that it makes), and what to write instead.
pub(crate) fn means_nothing(kind: &str, value: &str) -> Option<(String, String)> {
    let expected: &[&str] = match kind {
        "Node" => &[NODE_RELEASED],
        _ => &[MESH_ENABLED, MESH_DISABLED],
    };
    let what = format!(
        "{value:?} means nothing: it is as if the label were not there, and pods stay outside the mesh"
    );
    (!expected.contains(&value)).then(|| (what, format!("write {}", expected.join(" or "))))
}
