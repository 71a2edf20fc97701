//! Pods, and endpoints without a pod, to workloads.

mod memory;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_api::mesh as pb;
use culvert_api::names::{MESH_LABEL, NODE_RELEASED};
use culvert_objects::enrolment::{Wanted, WhyNot, wanted};
use culvert_objects::mesh_config::LastGood;
use culvert_objects::types::{PodSpec, PodStatus};
use culvert_objects::{Kind, Object, ObjectKey, Objects};

use super::gateways::Gateways;
use super::membership::{Memberships, Outside, OutsideName, PodIndex};
use super::{Environment, InForce, Statuses, labels, probes, services};
use crate::status::DesiredStatus;

pub use memory::Memory;

/// A workload as the objects say it is; what is known from the node proxies' reports comes later.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// As its own node is told, with enrolment and tunnel still open.
    pub workload: pb::Workload,
    /// None for an endpoint without a pod.
    pub pod: Option<PodFacts>,
}

/// What the mesh wants of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct PodFacts {
    pub key: ObjectKey,
    pub wanted: Wanted,
}

/// By the uid of the workload. What is the same as in the pass before is shared with it.
pub type FactsByUid = BTreeMap<String, Arc<Facts>>;

/// Every workload by uid, and what pods' annotations came to.
#[derive(Clone, Debug, Default)]
pub struct Workloads {
    pub facts: FactsByUid,
    /// Of pods that are bound to a node and have not finished; enrolment is added from reports.
    pub statuses: Statuses,
    /// The annotations that were valid in this pass; the `last` of the next.
    pub last_good: LastGood,
}

/// Makes the workloads. Pods that are not bound to a node, or have no uid, are nobody's yet.
pub fn workloads(
    objects: &Objects,
    environment: &Environment,
    in_force: &InForce,
    last: &LastGood,
) -> Arc<Workloads> {
    workloads_again(objects, environment, in_force, last, &mut Memory::default())
}

/// As [`workloads`], with what the pass before has made of objects that are still the same: the result is no other, it comes
/// sooner.
pub fn workloads_again(
    objects: &Objects,
    environment: &Environment,
    in_force: &InForce,
    last: &LastGood,
    memory: &mut Memory,
) -> Arc<Workloads> {
    if let Some(same) = memory.same(objects, in_force, last) {
        return same;
    }
    let pods: Vec<Pod<'_>> = objects
        .of_kind(Kind::Pod)
        .filter_map(|object| Some(Pod { object, reading: memory.pods.of(object, PodReading::of)? }))
        .collect();
    let memberships = Memberships::of(objects, &index(&pods), &mut memory.slices);
    let mut all = Workloads::default();
    // What classes and Gateways are told is said by the other pass.
    let gateways = Gateways::of(objects, &mut Statuses::new());
    let mut maker = Maker { objects, environment, in_force, gateways, localities: HashMap::new() };
    for pod in &pods {
        let facts = maker.of_pod(pod, &memberships, last, &mut all);
        all.facts.insert(facts.workload.uid.clone(), memory.share(facts));
    }
    for (name, outside) in memberships.outside() {
        let facts = maker.of_outside(name, outside);
        all.facts.insert(facts.workload.uid.clone(), memory.share(facts));
    }
    memory.keep(objects, in_force, last, all)
}

/// What is read of a pod's object.
#[derive(Debug)]
struct PodReading {
    node: String,
    service_account: String,
    host_network: bool,
    probes: Vec<pb::Probe>,
    labels: pb::WorkloadLabels,
    addresses: Vec<IpAddr>,
    finished: bool,
}

impl PodReading {
    fn of(object: &Object) -> Option<Self> {
        let spec: PodSpec = object.spec().ok()?;
        let status: PodStatus = object.status().ok()?;
        let node = spec.node_name.clone().filter(|node| !node.is_empty() && !object.uid().is_empty())?;
        let finished = status.is_finished();
        Some(Self {
            node,
            service_account: spec.service_account().to_owned(),
            host_network: spec.host_network,
            probes: probes::of_pod(&spec),
            labels: labels::of_pod(object),
            // A finished pod has given its addresses back; another pod may have them.
            addresses: if finished { Vec::new() } else { status.addresses() },
            finished,
        })
    }
}

struct Pod<'a> {
    object: &'a Object,
    reading: Arc<PodReading>,
}

impl Pod<'_> {
    fn name(&self) -> (String, String) {
        (self.object.namespace().to_owned(), self.object.name().to_owned())
    }
}

fn index(pods: &[Pod<'_>]) -> PodIndex {
    let live = || pods.iter().filter(|pod| !pod.reading.finished);
    let own_network = live().filter(|pod| !pod.reading.host_network);
    let by_address = |pod: &Pod<'_>| {
        let addresses = pod.reading.addresses.iter();
        addresses.map(|address| (*address, pod.name())).collect::<Vec<_>>()
    };
    PodIndex {
        uids: live().map(|pod| (pod.name(), pod.object.uid().to_owned())).collect(),
        addresses: own_network.flat_map(by_address).collect(),
    }
}

struct Maker<'a> {
    objects: &'a Objects,
    environment: &'a Environment,
    in_force: &'a InForce,
    gateways: Gateways,
    localities: HashMap<String, pb::Locality>,
}

impl Maker<'_> {
    fn of_pod(
        &mut self,
        pod: &Pod<'_>,
        memberships: &Memberships,
        last: &LastGood,
        all: &mut Workloads,
    ) -> Facts {
        let (object, reading) = (pod.object, &pod.reading);
        let (namespace, name, uid) = (object.namespace(), object.name(), object.uid());
        let (settings, fault) = self.in_force.of_pod(object, last, &mut all.last_good);
        if !reading.finished {
            let mut status = DesiredStatus::of(object);
            status.conditions.extend(fault);
            all.statuses.insert(object.key(), status.into());
        }
        let released = self.is_released(&reading.node);
        let workload = pb::Workload {
            uid: self.uid(&format!("Pod/{namespace}/{name}/{uid}")),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            service_account: reading.service_account.clone(),
            addresses: reading.addresses.iter().map(|address| services::address_bytes(*address)).collect(),
            host_network: reading.host_network,
            locality: Some(self.locality(&reading.node)),
            gateway: self.gateways.of_pod(object, labels::deployment(object)).unwrap_or_default(),
            labels: Some(reading.labels.clone()),
            memberships: memberships.of_pod(namespace, name),
            settings: Some(settings),
            probes: reading.probes.clone(),
            node: reading.node.clone(),
            ..self.blank()
        };
        let wanted = match wanted(object, self.objects.namespace(namespace).map(AsRef::as_ref)) {
            Wanted::Enrolled if reading.finished => Wanted::NotEnrolled(WhyNot::Finished),
            Wanted::Enrolled if released => Wanted::NotEnrolled(WhyNot::NodeReleased),
            wanted => wanted,
        };
        Facts { workload, pod: Some(PodFacts { key: object.key(), wanted }) }
    }

    fn of_outside(&mut self, (namespace, slice, address): &OutsideName, outside: &Outside) -> Facts {
        let of_node = self.locality(&outside.node);
        let zone = if outside.zone.is_empty() { of_node.zone } else { outside.zone.clone() };
        let workload = pb::Workload {
            uid: self.uid(&format!("Endpoint/{namespace}/{slice}/{address}")),
            name: address.to_string(),
            namespace: namespace.clone(),
            node: outside.node.clone(),
            addresses: vec![services::address_bytes(*address)],
            locality: Some(pb::Locality { region: of_node.region, zone }),
            labels: Some(pb::WorkloadLabels::default()),
            memberships: outside.memberships.clone(),
            ..self.blank()
        };
        Facts { workload, pod: None }
    }

    fn uid(&self, rest: &str) -> String {
        format!("{}/{}/{rest}", self.environment.cluster, self.environment.network)
    }

    /// What all workloads have in common.
    fn blank(&self) -> pb::Workload {
        pb::Workload {
            cluster: self.environment.cluster.clone(),
            network: self.environment.network.clone(),
            trust_domain: self.in_force.mesh().trust_domain.0.clone(),
            tunnel: pb::Tunnel::None.into(),
            ..pb::Workload::default()
        }
    }

    /// Its pods are let go, and new ones start outside the mesh.
    fn is_released(&self, node: &str) -> bool {
        let node = self.objects.find(Kind::Node, "", node);
        node.is_some_and(|node| node.label(MESH_LABEL) == Some(NODE_RELEASED))
    }

    fn locality(&mut self, node: &str) -> pb::Locality {
        if let Some(known) = self.localities.get(node) {
            return known.clone();
        }
        let object = self.objects.find(Kind::Node, "", node);
        let label = |key: &str| object.and_then(|node| node.label(key)).unwrap_or_default().to_owned();
        let locality = pb::Locality {
            region: label("topology.kubernetes.io/region"),
            zone: label("topology.kubernetes.io/zone"),
        };
        self.localities.insert(node.to_owned(), locality.clone());
        locality
    }
}
