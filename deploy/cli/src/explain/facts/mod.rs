//! Objects to the snapshot that a node's proxy would decide on, made by the controller's and the node proxy's own code.

pub mod files;
mod names;

use culvert_api::mesh as pb;
use culvert_api::names::ENROLLED_CONDITION;
use culvert_controller::snapshot::{Key, Sealed};
use culvert_controller::translate::{self, Environment, Translation, Workloads};
use culvert_node_proxy::state::model::Workload;
use culvert_node_proxy::state::{Origin, Resources, Snapshot};
use culvert_objects::mesh_config::LastGood;
use culvert_objects::types::PodStatus;
use culvert_objects::{Kind, Object, Objects};
use pb::resource::Body;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

pub use names::Named;

use super::listeners::has_address;
use super::question::From;
use crate::sandbox::cluster::Cluster;
use crate::sandbox::dns::zone::Zone;
use crate::sandbox::get::find_condition;
use crate::sandbox::kubelet::first_of;

/// Where the objects are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Sandbox(String),
    /// A live one, by the URL of its API server, and what had to be taken for granted.
    Cluster {
        url: String,
        assumed: Vec<String>,
    },
    Files,
}

/// Everything an explanation is made from.
pub struct Facts {
    pub source: Source,
    pub objects: Objects,
    pub translation: Translation,
    workloads: Arc<Workloads>,
    zone: Zone,
    /// By node, made when first asked for.
    views: Mutex<BTreeMap<String, Arc<Snapshot>>>,
    /// Of clients outside the cluster.
    outside: IpAddr,
}

/// Pods of a Gateway, and where they are called.
pub struct GatewayAt {
    /// `namespace/name`
    pub name: String,
    /// Of the listeners.
    pub port: u16,
    pub pods: Vec<Arc<Object>>,
}

/// Why there is nothing to explain.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FactsError {
    #[error("there is no pod {namespace}/{name}")]
    NoPod { namespace: String, name: String },
    #[error("pod {0} is not on a node yet")]
    NotBound(String),
    #[error("the controller's settings are refused by the node proxy: {0}")]
    NoState(String),
}

/// What the sandbox's controller is told.
#[must_use]
pub fn environment(cluster: &Cluster) -> Environment {
    Environment {
        pod_cidrs: vec![cluster.pod_cidr.v4.into(), cluster.pod_cidr.v6.into()],
        service_cidrs: vec![cluster.service_cidr.v4.into(), cluster.service_cidr.v6.into()],
        ..default_environment()
    }
}

/// The defaults of `culvert-controller run`.
#[must_use]
pub fn default_environment() -> Environment {
    Environment { cluster: "Kubernetes".to_owned(), network: "default".to_owned(), ..Environment::default() }
}

impl Facts {
    /// From objects with their statuses.
    #[must_use]
    pub fn new(objects: Objects, cluster: &Cluster, source: Source) -> Self {
        Self::of(objects, &environment(cluster), cluster.outside.v4.into(), source)
    }

    /// As [`Facts::new`], of any cluster; `outside` is the address of clients outside.
    #[must_use]
    pub fn of(objects: Objects, environment: &Environment, outside: IpAddr, source: Source) -> Self {
        let last = LastGood::default();
        let translation = translate::translate(&objects, environment, &last);
        let workloads = translate::workloads(&objects, environment, &translation.in_force, &last);
        let zone = Zone::build(&objects, crate::sandbox::dns::DOMAIN, 0);
        let views = Mutex::default();
        Self { source, objects, translation, workloads, zone, views, outside }
    }

    /// The client's pod; `None` for one outside.
    ///
    /// # Errors
    /// When there is no such pod, or it is not on a node.
    pub fn client(&self, from: &From) -> Result<Option<Arc<Object>>, FactsError> {
        let From::Pod { namespace, name } = from else { return Ok(None) };
        let found = match name.split_once('/') {
            Some(("deploy" | "deployment" | "deployments", name)) => first_of(&self.objects, namespace, name),
            Some(("po" | "pod" | "pods", name)) => self.objects.find(Kind::Pod, namespace, name).cloned(),
            Some(_) => None,
            None => self.objects.find(Kind::Pod, namespace, name).cloned(),
        };
        let missing = || FactsError::NoPod { namespace: namespace.clone(), name: name.clone() };
        found.ok_or_else(missing).map(Some)
    }

    /// The workload of a pod, in the view of its own node.
    ///
    /// # Errors
    /// When it is not bound to a node, or there is no state to decide on.
    pub fn own_view(&self, pod: &Object) -> Result<(Arc<Snapshot>, Arc<Workload>), FactsError> {
        let not_bound = || FactsError::NotBound(format!("{}/{}", pod.namespace(), pod.name()));
        let facts = self
            .workloads
            .facts
            .values()
            .find(|facts| facts.pod.as_ref().is_some_and(|of| of.key == pod.key()));
        let facts = facts.ok_or_else(not_bound)?;
        let snapshot = self.view_of(&facts.workload.node)?;
        let workload = snapshot.own_workload_by_pod_uid(pod.uid()).cloned().ok_or_else(not_bound)?;
        Ok((snapshot, workload))
    }

    /// What the proxy of a node decides on.
    ///
    /// # Errors
    /// When the node proxy would have no complete state.
    pub fn view_of(&self, node: &str) -> Result<Arc<Snapshot>, FactsError> {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = views.get(node) {
            return Ok(known.clone());
        }
        let view = Arc::new(self.make_view(node)?);
        views.insert(node.to_owned(), view.clone());
        Ok(view)
    }

    fn make_view(&self, node: &str) -> Result<Snapshot, FactsError> {
        let mut resources = Resources::default();
        resources.set_node(node);
        let page = pb::Page { upserts: self.resources(node), ..pb::Page::default() };
        let refused = resources.apply(page);
        let state = resources.freeze(Origin::Controller, "explain");
        let reasons = || refused.iter().map(|refused| refused.reason.as_str()).collect::<Vec<_>>().join("; ");
        state.map(|(snapshot, _)| snapshot).ok_or_else(|| FactsError::NoState(reasons()))
    }

    /// As the controller would send them to that node.
    fn resources(&self, node: &str) -> Vec<pb::Resource> {
        let sealed = |key: Key, body: Body| Sealed::new(key, body).resource;
        let translation = &self.translation;
        let mut all = vec![sealed(Key::mesh(), Body::MeshSettings(translation.mesh.clone()))];
        for (uid, facts) in &self.workloads.facts {
            if let Some(workload) = self.workload(facts, node) {
                all.push(sealed(Key::workload(uid), Body::Workload(workload)));
            }
        }
        let services = translation.services.iter();
        all.extend(
            services.map(|(name, service)| sealed(Key::service(name), Body::Service(service.clone()))),
        );
        let listeners = translation.listeners.iter();
        all.extend(listeners.map(|(name, one)| sealed(Key::listener(name), Body::Listener(one.clone()))));
        let routes = translation.routes.iter();
        all.extend(routes.map(|(name, route)| sealed(Key::route(name), Body::Route((**route).clone()))));
        let namespaces = translation.namespaces.iter();
        all.extend(namespaces.map(|(name, one)| sealed(Key::namespace(name), Body::Namespace(one.clone()))));
        all
    }

    /// Whole to its own node, the public part to everybody once it has an address: as the hub tells it.
    fn workload(&self, facts: &translate::Facts, node: &str) -> Option<pb::Workload> {
        let mut workload = facts.workload.clone();
        let mut enrolment = pb::Enrolment::NotEnrolled;
        if let Some(pod) = &facts.pod {
            let object = self.objects.get(&pod.key)?;
            enrolment = enrolment_of(object, pod.wanted.is_enrolled());
            let is_enrolled = enrolment == pb::Enrolment::Enrolled && says_enrolled(object);
            workload.tunnel = if is_enrolled { pb::Tunnel::Hbone } else { pb::Tunnel::None }.into();
        } else {
            workload.tunnel = pb::Tunnel::None.into();
        }
        if facts.pod.is_some() && workload.node == node {
            workload.enrolment = enrolment.into();
            return Some(workload);
        }
        workload.enrolment = pb::Enrolment::Unspecified.into();
        workload.settings = None;
        workload.probes.clear();
        (!workload.addresses.is_empty()).then_some(workload)
    }

    /// The address that a client calls from; both families have one, and the first is told.
    #[must_use]
    pub fn address_of(&self, from: &From) -> Option<IpAddr> {
        match from {
            From::Outside => Some(self.outside),
            From::Pod { .. } => {
                let status: PodStatus = self.client(from).ok()??.status().ok()?;
                status.addresses().first().copied()
            }
        }
    }

    /// Addresses of a host name as a pod of that namespace looks it up; outside the cluster only whole names.
    #[must_use]
    pub fn look_up(&self, host: &str, namespace: Option<&str>) -> Named {
        names::look_up(&self.zone, host, namespace)
    }

    /// Why a pod is not enrolled, as its condition says.
    #[must_use]
    pub fn why_not_enrolled(&self, pod: &Object) -> String {
        let said =
            find_condition(pod, ENROLLED_CONDITION).and_then(|condition| condition.get("message")?.as_str());
        let facts = self
            .workloads
            .facts
            .values()
            .find(|facts| facts.pod.as_ref().is_some_and(|of| of.key == pod.key()));
        match facts.and_then(|facts| facts.pod.as_ref()).map(|pod| &pod.wanted) {
            Some(culvert_objects::enrolment::Wanted::NotEnrolled(why)) => why.to_string(),
            _ => said.filter(|said| !said.is_empty()).unwrap_or("its node has not enrolled it").to_owned(),
        }
    }

    /// The Gateway whose pods an address leads to: that of its Service, of the load balancer, or of a pod.
    #[must_use]
    pub fn gateway_at(&self, to: SocketAddr) -> Option<GatewayAt> {
        let service = self.objects.of_kind(Kind::Service).find(|service| has_address(service, to.ip()));
        let service = service.map(|service| format!("{}/{}", service.namespace(), service.name()));
        let mut found: Option<GatewayAt> = None;
        for facts in self.workloads.facts.values().filter(|facts| !facts.workload.gateway.is_empty()) {
            let workload = &facts.workload;
            let port = match &service {
                Some(service) => {
                    let membership =
                        workload.memberships.iter().find(|membership| membership.service == *service);
                    let mut ports = membership.into_iter().flat_map(|membership| &membership.ports);
                    ports.find(|port| port.service_port == u32::from(to.port())).map(|port| port.target_port)
                }
                None => {
                    let own = workload.addresses.iter().any(|address| same(address, to.ip()));
                    own.then_some(u32::from(to.port()))
                }
            };
            let port = port.and_then(|port| u16::try_from(port).ok());
            let pod = facts.pod.as_ref().and_then(|pod| self.objects.get(&pod.key));
            if let (Some(port), Some(pod)) = (port, pod) {
                let name = workload.gateway.clone();
                found.get_or_insert(GatewayAt { name, port, pods: Vec::new() }).pods.push(pod.clone());
            }
        }
        found
    }
}

fn same(bytes: &[u8], address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => bytes == address.octets(),
        IpAddr::V6(address) => bytes == address.octets(),
    }
}

fn enrolment_of(pod: &Object, is_wanted: bool) -> pb::Enrolment {
    let leaving =
        find_condition(pod, ENROLLED_CONDITION).is_some_and(|condition| condition["reason"] == "Leaving");
    match (is_wanted, leaving) {
        (true, _) => pb::Enrolment::Enrolled,
        (false, true) => pb::Enrolment::Leaving,
        (false, false) => pb::Enrolment::NotEnrolled,
    }
}

/// Whether its own node has reported it enrolled.
#[must_use]
pub fn says_enrolled(pod: &Object) -> bool {
    find_condition(pod, ENROLLED_CONDITION).is_some_and(|condition| condition["status"] == "True")
}
