//! Deployments: pods of the template, as many as wanted, replaced when the template changes. There are no ReplicaSet
//! objects; pods are named and labelled as if there were, and their owner reference names the one there would be.

use std::cmp::Reverse;

use chrono::{DateTime, Duration, Utc};
use culvert_objects::types::{Condition, ConditionStatus, DeploymentSpec};
use culvert_objects::{Kind, Object, ObjectKey, Objects, OwnerReference};
use serde_json::{Map, Value, json};

use super::rollout::{Count, Step, Strategy, step};
use super::view::PodView;
use super::{Context, hash};
use crate::sandbox::store::Change;

/// Label that tells the pods of one template from those of another.
const TEMPLATE_LABEL: &str = "pod-template-hash";
/// Most pods created in one go; the rest follow in the next round.
const MAX_CREATED: usize = 500;

pub fn reconcile(objects: &Objects, pods: &[PodView<'_>], context: &Context) -> Vec<Change> {
    let live = |namespace: &str| {
        objects.namespace(namespace).is_some_and(|found| found.metadata.deletion_timestamp.is_none())
    };
    objects
        .of_kind(Kind::Deployment)
        .filter(|deployment| live(deployment.namespace()))
        .filter_map(|object| Deployment::read(object, pods))
        .flat_map(|deployment| deployment.reconcile(context))
        .collect()
}

/// Whether the Deployment still exists whose ReplicaSet, were there any, would own this pod.
pub fn owner_exists(objects: &Objects, pod: &Object) -> bool {
    let (Some(owner), Some(template)) = (pod.controller(), pod.label(TEMPLATE_LABEL)) else { return false };
    objects
        .in_namespace(Kind::Deployment, pod.namespace())
        .any(|deployment| owner.uid == replica_set_uid(deployment, template))
}

fn replica_set_uid(deployment: &Object, template: &str) -> String {
    hash::uid(&[deployment.uid(), template])
}

struct Deployment<'a> {
    object: &'a Object,
    spec: DeploymentSpec,
    replicas: usize,
    /// Hash of the template in force.
    template: String,
    new: Vec<&'a PodView<'a>>,
    old: Vec<&'a PodView<'a>>,
}

impl<'a> Deployment<'a> {
    fn read(object: &'a Object, pods: &'a [PodView<'a>]) -> Option<Self> {
        let spec: DeploymentSpec = object.spec().ok()?;
        let replicas = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(usize::MAX);
        let written = object.body.get("spec")?.get("template")?;
        let template = hash::letters(hash::value(written), 10);
        let (mut new, mut old) = (Vec::new(), Vec::new());
        for pod in pods.iter().filter(|pod| pod.object.namespace() == object.namespace()) {
            let Some((owner, of)) = pod.object.controller().zip(pod.object.label(TEMPLATE_LABEL)) else {
                continue;
            };
            if owner.uid != replica_set_uid(object, of) {
                continue;
            }
            if of == template { new.push(pod) } else { old.push(pod) }
        }
        Some(Self { object, spec, replicas, template, new, old })
    }

    fn reconcile(&self, context: &Context) -> Vec<Change> {
        let finished = self.new.iter().chain(&self.old).filter(|pod| pod.status.is_finished());
        let mut changes: Vec<Change> = finished
            .filter(|pod| !pod.is_terminating())
            .map(|pod| Change::Delete(pod.object.key()))
            .collect();
        let strategy = Strategy::of(&self.spec, self.replicas);
        let (new, old) = (self.count(&self.new, context.now), self.count(&self.old, context.now));
        let step = step(self.replicas, strategy, new, old);
        changes.extend((0..step.create.min(MAX_CREATED)).map(|nth| Change::put(self.pod(nth, context))));
        changes.extend(self.surplus(&step, context.now).map(|pod| Change::Delete(pod.object.key())));
        changes.extend(self.status(new, old, context));
        changes
    }

    fn count(&self, pods: &[&PodView<'_>], now: DateTime<Utc>) -> Count {
        let mut count = Count::default();
        for pod in pods.iter().filter(|pod| !pod.status.is_finished()) {
            if pod.is_terminating() {
                count.terminating += 1;
            } else {
                count.active += 1;
                count.available += usize::from(self.is_available(pod, now));
            }
        }
        count
    }

    fn is_available(&self, pod: &PodView<'_>, now: DateTime<Utc>) -> bool {
        pod.is_available(Duration::seconds(self.spec.min_ready_seconds.into()), now)
    }

    /// The pods to delete: first those that nobody would miss.
    fn surplus(&self, step: &Step, now: DateTime<Utc>) -> impl Iterator<Item = &'a PodView<'a>> {
        let mut new: Vec<_> = active(&self.new).collect();
        new.sort_by_key(|pod| self.worth(pod, &self.new));
        new.truncate(step.delete_new);
        let (mut available, mut unavailable): (Vec<_>, Vec<_>) =
            active(&self.old).partition(|pod| self.is_available(pod, now));
        available.sort_by_key(|pod| self.worth(pod, &self.old));
        available.truncate(step.delete_old_available);
        unavailable.sort_by_key(|pod| self.worth(pod, &self.old));
        unavailable.truncate(step.delete_old_unavailable);
        new.into_iter().chain(unavailable).chain(available)
    }

    /// Least for the pod to give up first: without a node, not ready, on the node with most siblings, youngest.
    fn worth(&self, pod: &PodView<'a>, siblings: &[&PodView<'_>]) -> impl Ord + use<'a> {
        let beside = active(siblings).filter(|other| other.node() == pod.node()).count();
        let born = pod.object.metadata.creation_timestamp;
        (pod.node().is_some(), pod.is_ready(), Reverse(beside), Reverse(born), pod.object.name().to_owned())
    }

    fn replica_set(&self) -> String {
        format!("{}-{}", self.object.name(), self.template)
    }

    fn pod(&self, nth: usize, context: &Context) -> Object {
        let replica_set = self.replica_set();
        let owner_uid = replica_set_uid(self.object, &self.template);
        let seed = [owner_uid.as_bytes(), &context.entropy.to_le_bytes(), &nth.to_le_bytes()];
        let suffix = hash::letters(hash::fnv64(seed), 5);
        let key =
            ObjectKey::namespaced(Kind::Pod, self.object.namespace(), format!("{replica_set}-{suffix}"));
        let mut pod = Object::new(key);
        let template = &self.spec.template.metadata;
        pod.metadata.labels.clone_from(&template.labels);
        pod.metadata.labels.insert(TEMPLATE_LABEL.to_owned(), self.template.clone());
        pod.metadata.annotations.clone_from(&template.annotations);
        pod.metadata.rest.insert("generateName".to_owned(), format!("{replica_set}-").into());
        pod.metadata.owner_references = vec![OwnerReference {
            api_version: "apps/v1".to_owned(),
            kind: "ReplicaSet".to_owned(),
            name: replica_set,
            uid: owner_uid,
            controller: Some(true),
            block_owner_deletion: Some(true),
        }];
        let written = self.object.body.get("spec").and_then(|spec| spec.get("template")?.get("spec"));
        let mut spec = written.cloned().unwrap_or_else(|| Value::Object(Map::new()));
        crate::sandbox::apply::default_pod_spec(&mut spec);
        pod.body.insert("spec".to_owned(), spec);
        pod.body.insert("status".to_owned(), json!({"phase": "Pending"}));
        pod
    }

    fn status(&self, new: Count, old: Count, context: &Context) -> Option<Change> {
        let ready = active(&self.new).chain(active(&self.old)).filter(|pod| pod.is_ready()).count();
        let available = new.available + old.available;
        let known = self.object.body.get("status");
        let mut status = json!({
            "observedGeneration": self.object.metadata.generation,
            "replicas": new.active + old.active,
            "updatedReplicas": new.active,
            "readyReplicas": ready,
            "availableReplicas": available,
            "unavailableReplicas": self.replicas.saturating_sub(available),
        });
        let done = old.active == 0 && new.active == self.replicas && new.available == self.replicas;
        let conditions = [
            if available >= self.replicas.saturating_sub(self.unavailable()) {
                ("Available", ConditionStatus::True, "MinimumReplicasAvailable")
            } else {
                ("Available", ConditionStatus::False, "MinimumReplicasUnavailable")
            },
            if done {
                ("Progressing", ConditionStatus::True, "NewReplicaSetAvailable")
            } else {
                ("Progressing", ConditionStatus::True, "ReplicaSetUpdated")
            },
        ];
        let before: Vec<Condition> = known
            .and_then(|known| serde_json::from_value(known.get("conditions")?.clone()).ok())
            .unwrap_or_default();
        let conditions: Vec<Value> = conditions
            .into_iter()
            .map(|(kind, status, reason)| {
                let since = before
                    .iter()
                    .find(|old| old.kind == kind && old.status == status)
                    .and_then(|old| old.last_transition_time)
                    .unwrap_or(context.now);
                json!({"type": kind, "status": status, "reason": reason, "lastTransitionTime": since})
            })
            .collect();
        status["conditions"] = Value::Array(conditions);
        (known != Some(&status)).then(|| Change::Status(self.object.key(), status))
    }

    fn unavailable(&self) -> usize {
        match Strategy::of(&self.spec, self.replicas) {
            Strategy::Rolling { unavailable, .. } => unavailable,
            Strategy::Recreate => 0,
        }
    }
}

fn active<'a, 'b: 'a>(pods: &'a [&'b PodView<'b>]) -> impl Iterator<Item = &'b PodView<'b>> + use<'a, 'b> {
    pods.iter().copied().filter(|pod| !pod.is_terminating() && !pod.status.is_finished())
}
