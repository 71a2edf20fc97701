//! Which node a pod runs on: among those it may run on, the one with the fewest of its siblings, then of all pods.

use std::collections::BTreeMap;

use culvert_objects::types::{Condition, ConditionStatus};
use culvert_objects::{Kind, Object, Objects};
use serde_json::{Value, json};

use super::Context;
use super::view::PodView;
use crate::sandbox::store::{Change, MAX_PODS};

/// What is counted per node while pods are placed.
#[derive(Default)]
struct Load<'a> {
    pods: u32,
    by_owner: BTreeMap<&'a str, u32>,
}

pub fn reconcile(objects: &Objects, pods: &[PodView<'_>], context: &Context) -> Vec<Change> {
    let nodes: Vec<&Object> = objects.of_kind(Kind::Node).map(AsRef::as_ref).collect();
    let mut loads: BTreeMap<&str, Load<'_>> =
        nodes.iter().map(|node| (node.name(), Load::default())).collect();
    for pod in pods.iter().filter(|pod| !pod.status.is_finished()) {
        if let Some(load) = pod.node().and_then(|node| loads.get_mut(node)) {
            load.add(pod);
        }
    }
    let waiting =
        pods.iter().filter(|pod| pod.node().is_none() && !pod.is_terminating() && !pod.status.is_finished());
    waiting.flat_map(|pod| place(pod, &nodes, &mut loads, context)).collect()
}

impl<'a> Load<'a> {
    fn add(&mut self, pod: &PodView<'a>) {
        self.pods += 1;
        *self.by_owner.entry(owner(pod)).or_default() += 1;
    }
}

fn owner<'a>(pod: &PodView<'a>) -> &'a str {
    pod.object.controller().map_or("", |owner| owner.uid.as_str())
}

fn place<'a>(
    pod: &PodView<'a>,
    nodes: &[&'a Object],
    loads: &mut BTreeMap<&'a str, Load<'a>>,
    context: &Context,
) -> Vec<Change> {
    let (mut full, mut mismatched) = (0, 0);
    let mut best: Option<((u32, u32), &str)> = None;
    for node in nodes {
        let load = loads.entry(node.name()).or_default();
        if !pod.spec.node_selector.iter().all(|(key, value)| node.label(key) == Some(value)) {
            mismatched += 1;
        } else if load.pods >= MAX_PODS {
            full += 1;
        } else {
            let siblings = load.by_owner.get(owner(pod)).copied().unwrap_or(0);
            let cost = (siblings, load.pods);
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, node.name()));
            }
        }
    }
    match best {
        Some((_, node)) => {
            loads.entry(node).or_default().add(pod);
            bind(pod, node, context)
        }
        None => unschedulable(pod, nodes.len(), mismatched, full, context),
    }
}

fn bind(pod: &PodView<'_>, node: &str, context: &Context) -> Vec<Change> {
    let mut bound = Object::clone(pod.object);
    if let Some(Value::Object(spec)) = bound.body.get_mut("spec") {
        spec.insert("nodeName".to_owned(), node.into());
    }
    let condition = condition(context, ConditionStatus::True, "", "");
    vec![Change::put(bound), Change::Status(pod.object.key(), with_condition(pod, condition))]
}

fn unschedulable(
    pod: &PodView<'_>,
    nodes: usize,
    mismatched: usize,
    full: usize,
    context: &Context,
) -> Vec<Change> {
    let mut reasons = Vec::new();
    if mismatched > 0 {
        reasons.push(format!("{mismatched} node(s) didn't match Pod's node affinity/selector"));
    }
    if full > 0 {
        reasons.push(format!("{full} node(s) have too many pods"));
    }
    let message = format!("0/{nodes} nodes are available: {}.", reasons.join(", "));
    let known = pod.status.conditions.iter().find(|condition| condition.kind == SCHEDULED);
    if known.is_some_and(|known| known.message == message) {
        return Vec::new();
    }
    let condition = condition(context, ConditionStatus::False, "Unschedulable", &message);
    vec![Change::Status(pod.object.key(), with_condition(pod, condition))]
}

/// Condition of a pod that says whether it has a node.
const SCHEDULED: &str = "PodScheduled";

fn condition(context: &Context, status: ConditionStatus, reason: &str, message: &str) -> Condition {
    Condition {
        kind: SCHEDULED.to_owned(),
        status,
        observed_generation: None,
        last_transition_time: Some(context.now),
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn with_condition(pod: &PodView<'_>, condition: Condition) -> Value {
    let mut status = pod.object.body.get("status").cloned().unwrap_or_else(|| json!({}));
    if status.get("phase").is_none() {
        status["phase"] = "Pending".into();
    }
    let mut conditions = pod.status.conditions.clone();
    conditions.retain(|old| old.kind != condition.kind);
    conditions.push(condition);
    // Conditions have only keys that are strings, so they always have a JSON form.
    status["conditions"] = serde_json::to_value(conditions).unwrap_or_default();
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;

    fn node(name: &str, zone: &str) -> Object {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"zone": zone}}}))
        .unwrap()
    }

    fn pod(name: &str, owner: &str, spec: Value) -> Object {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name,
            "namespace": "shop", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r",
            "uid": owner, "controller": true}]}, "spec": spec}))
        .unwrap()
    }

    fn placed(objects: Vec<Object>) -> Vec<(String, String)> {
        let objects: Objects = objects.into_iter().collect();
        let context = Context { now: DateTime::UNIX_EPOCH, entropy: 0 };
        reconcile(&objects, &PodView::all(&objects), &context)
            .into_iter()
            .filter_map(|change| match change {
                Change::Put(pod) => {
                    Some((pod.name().to_owned(), pod.body["spec"]["nodeName"].as_str()?.to_owned()))
                }
                _ => None,
            })
            .collect()
    }

    fn pairs(placed: &[(String, String)]) -> Vec<(&str, &str)> {
        placed.iter().map(|(pod, node)| (pod.as_str(), node.as_str())).collect()
    }

    #[test]
    fn siblings_are_spread_and_then_the_load() {
        let placed = placed(vec![
            node("node1", "a"),
            node("node2", "b"),
            pod("busy1", "x", json!({"nodeName": "node1"})),
            pod("busy2", "x", json!({"nodeName": "node1"})),
            pod("c1", "y", json!({})),
            pod("c2", "y", json!({})),
            pod("c3", "y", json!({})),
        ]);
        assert_eq!(pairs(&placed), [("c1", "node2"), ("c2", "node1"), ("c3", "node2")]);
    }

    #[test]
    fn selectors_are_honoured_and_a_pod_without_a_node_says_why() {
        let nodes = || vec![node("node1", "a"), node("node2", "b")];
        let with = |pod: Object| nodes().into_iter().chain([pod]).collect::<Vec<_>>();
        let on_b = with(pod("p", "x", json!({"nodeSelector": {"zone": "b"}})));
        assert_eq!(pairs(&placed(on_b)), [("p", "node2")]);

        let objects: Objects =
            with(pod("p", "x", json!({"nodeSelector": {"zone": "c"}}))).into_iter().collect();
        let context = Context { now: DateTime::UNIX_EPOCH, entropy: 0 };
        let changes = reconcile(&objects, &PodView::all(&objects), &context);
        let [Change::Status(key, status)] = changes.as_slice() else { panic!("{changes:?}") };
        assert_eq!(status["conditions"][0]["reason"], "Unschedulable");
        let message = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.";
        assert_eq!(status["conditions"][0]["message"], message);

        let mut again = objects.clone();
        let mut said = Object::clone(objects.get(key).unwrap());
        said.body.insert("status".to_owned(), status.clone());
        again.insert(std::sync::Arc::new(said));
        assert_eq!(reconcile(&again, &PodView::all(&again), &context), [], "said once");
    }
}
