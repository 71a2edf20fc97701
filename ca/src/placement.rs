//! Which pods run where: the facts that node authorization stands on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use culvert_objects::{Kind, Object, Objects};
use serde::Deserialize;
use tokio::sync::watch;

/// One pod, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    /// None until it is scheduled.
    pub node: Option<String>,
    /// Succeeded or Failed.
    pub finished: bool,
    /// When a deleted pod's grace period ends; Kubernetes puts that into `metadata.deletionTimestamp`.
    pub ends: Option<SystemTime>,
}

impl PodFacts {
    /// Whether anything of it may still run.
    pub fn is_live(&self, now: SystemTime) -> bool {
        !self.finished && self.ends.is_none_or(|ends| now < ends)
    }
}

/// Node, namespace, service account.
type Place = (String, String, String);

/// Pods and nodes at one moment.
#[derive(Debug, Default)]
pub struct Placement {
    /// By uid.
    pods: HashMap<String, PodFacts>,
    /// Uids of the pods at a place.
    places: HashMap<Place, Vec<String>>,
    /// Node names with their uids, empty where none is known.
    nodes: HashMap<String, String>,
}

impl Placement {
    /// `nodes` are names with uids.
    pub fn new(
        pods: impl IntoIterator<Item = PodFacts>,
        nodes: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let mut placement = Self { nodes: nodes.into_iter().collect(), ..Self::default() };
        for pod in pods {
            if let Some(node) = &pod.node {
                let place = (node.clone(), pod.namespace.clone(), pod.service_account.clone());
                placement.places.entry(place).or_default().push(pod.uid.clone());
            }
            placement.pods.insert(pod.uid.clone(), pod);
        }
        placement
    }

    /// From the cluster's objects. A pod whose fields do not read is left out: nothing is granted for it.
    pub fn of(objects: &Objects) -> Self {
        Self::new(
            objects.of_kind(Kind::Pod).filter_map(|pod| pod_facts(pod)),
            objects.of_kind(Kind::Node).map(|node| (node.name().to_owned(), node.uid().to_owned())),
        )
    }

    pub fn pod(&self, uid: &str) -> Option<&PodFacts> {
        self.pods.get(uid)
    }

    /// Whether the node exists, under this uid where both are known.
    pub fn has_node(&self, name: &str, uid: &str) -> bool {
        self.nodes.get(name).is_some_and(|known| known.is_empty() || uid.is_empty() || known == uid)
    }

    /// Whether a live pod with this service account runs on the node.
    pub fn runs(&self, node: &str, namespace: &str, service_account: &str, now: SystemTime) -> bool {
        let place = (node.to_owned(), namespace.to_owned(), service_account.to_owned());
        let uids = self.places.get(&place).into_iter().flatten();
        uids.filter_map(|uid| self.pods.get(uid)).any(|pod| pod.is_live(now))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Spec {
    node_name: Option<String>,
    service_account_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PhaseOf {
    phase: String,
}

fn pod_facts(pod: &Object) -> Option<PodFacts> {
    let spec: Spec = pod.field("spec").ok()?;
    let status: PhaseOf = pod.field("status").ok()?;
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    Some(PodFacts {
        uid: some(pod.metadata.uid.clone())?,
        namespace: pod.namespace().to_owned(),
        name: pod.name().to_owned(),
        service_account: some(spec.service_account_name).unwrap_or_else(|| "default".to_owned()),
        node: some(spec.node_name),
        finished: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
        ends: pod.metadata.deletion_timestamp.map(SystemTime::from),
    })
}

/// Follows the objects; ends with the process.
pub fn follow(mut objects: watch::Receiver<Arc<Objects>>) -> watch::Receiver<Arc<Placement>> {
    let first = Placement::of(&objects.borrow_and_update());
    let (sender, receiver) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        while objects.changed().await.is_ok() {
            let placement = Placement::of(&objects.borrow_and_update());
            sender.send_replace(Arc::new(placement));
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn objects(json: &[&str]) -> Objects {
        json.iter().map(|text| serde_json::from_str::<Object>(text).unwrap()).collect()
    }

    #[test]
    fn pods_are_read_from_objects() {
        let placement = Placement::of(&objects(&[
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"shop","uid":"1"},
                "spec":{"nodeName":"n1","serviceAccountName":"cart","containers":[]}}"#,
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b","namespace":"shop","uid":"2"},
                "spec":{"nodeName":"n1"},"status":{"phase":"Failed"}}"#,
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c","namespace":"shop"},"spec":{"nodeName":"n1"}}"#,
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1","uid":"N"}}"#,
        ]));
        let now = SystemTime::now();
        assert!(placement.runs("n1", "shop", "cart", now));
        assert!(!placement.runs("n1", "shop", "default", now), "a finished pod and one without uid");
        assert!(!placement.runs("n2", "shop", "cart", now));
        assert!(placement.has_node("n1", "N") && placement.has_node("n1", ""));
        assert!(!placement.has_node("n1", "M") && !placement.has_node("n2", ""));
        assert_eq!(placement.pod("2").unwrap().service_account, "default");
    }

    #[test]
    fn a_deleted_pod_lives_until_its_grace_period_ends() {
        let placement = Placement::of(&objects(&[
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"shop","uid":"1",
                "deletionTimestamp":"2030-01-01T00:00:00Z"},"spec":{"nodeName":"n1"}}"#,
        ]));
        let end = placement.pod("1").unwrap().ends.unwrap();
        assert!(placement.runs("n1", "shop", "default", end - Duration::from_secs(1)));
        assert!(!placement.runs("n1", "shop", "default", end));
    }
}
