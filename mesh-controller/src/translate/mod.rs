//! Objects to resources and statuses. Pure: no I/O, no clock, the same output for the same input on every replica.
//!
//! Two passes over the same objects. [`translate`] makes what concerns the whole mesh; [`workloads`] makes one
//! workload per pod and per endpoint without a pod, so that a pod's change resends nothing but that pod.

mod gateways;
mod labels;
mod membership;
mod mesh;
mod mesh_object;
mod namespaces;
mod probes;
mod readings;
mod routes;
mod services;
mod traffic_policies;
mod workloads;

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_api::mesh as pb;
use culvert_objects::mesh_config::LastGood;
use culvert_objects::{Object, ObjectKey, Objects};
use ipnet::IpNet;

use crate::status::DesiredStatus;

use gateways::Gateways;

pub use gateways::{GatewayFacts, Reported};
pub use mesh::{InForce, config_name};
pub use routes::outcomes;
pub use routes::{add_refusals as add_route_refusals, object as route_object};
pub use workloads::{Facts, FactsByUid, PodFacts, Workloads, workloads, workloads_again};

/// Statuses wanted, by object.
pub type Statuses = BTreeMap<ObjectKey, Arc<DesiredStatus>>;

/// What the passes before have made of objects that are still the same, of one environment. An empty one changes nothing but the
/// time that a pass takes.
#[derive(Debug, Default)]
pub struct Memory {
    /// Of [`translate_again`].
    pub routes: routes::Memory,
    /// Of [`workloads_again`].
    pub workloads: workloads::Memory,
}

/// What the controller is told about the cluster it serves.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// First part of every workload's uid.
    pub cluster: String,
    /// Workloads of one network reach each other's addresses.
    pub network: String,
    /// Ranges of pod addresses; those of the Nodes when empty.
    pub pod_cidrs: Vec<IpNet>,
    /// Ranges of Service addresses.
    pub service_cidrs: Vec<IpNet>,
}

/// What concerns the whole mesh.
#[derive(Clone, Debug)]
pub struct Translation {
    pub mesh: pb::MeshSettings,
    /// By `namespace/name`.
    pub services: BTreeMap<String, pb::Service>,
    /// By the name of the resource.
    pub listeners: BTreeMap<String, pb::Listener>,
    /// By the name of the resource.
    pub routes: BTreeMap<String, Arc<pb::Route>>,
    /// By name.
    pub namespaces: BTreeMap<String, pb::Namespace>,
    /// Without what proxies report: that is added to Gateways by [`GatewayFacts::complete`].
    pub statuses: Statuses,
    pub gateways: BTreeMap<ObjectKey, GatewayFacts>,
    /// Objects that Gateways need.
    pub wanted: Vec<Object>,
    /// The settings in force for the mesh and per namespace; input of [`workloads`].
    pub in_force: InForce,
    /// Of every route at each of its parents, by kind, namespace and name.
    pub outcomes: Vec<Arc<routes::outcomes::Outcome>>,
}

/// Translates everything but workloads. `last` holds the settings that were valid in the pass before.
pub fn translate(objects: &Objects, environment: &Environment, last: &LastGood) -> Translation {
    translate_again(objects, environment, last, &mut routes::Memory::default())
}

/// As [`translate`], with what the passes before have made of objects that are still the same: the result is no other, it comes
/// sooner.
pub fn translate_again(
    objects: &Objects,
    environment: &Environment,
    last: &LastGood,
    memory: &mut routes::Memory,
) -> Translation {
    let mut statuses = Statuses::new();
    let in_force = mesh::in_force(objects, last, &mut statuses);
    mesh_object::statuses(objects, &mut statuses);
    let mesh = mesh::resource(objects, environment, in_force.mesh());
    let policies = traffic_policies::of(objects, &mut statuses);
    let services = services::resources(objects, &policies);
    let gateways = Gateways::of(objects, &mut statuses);
    let (routes, attached, outcomes) =
        routes::translate(objects, &gateways, policies.sessions, memory, &mut statuses);
    Translation {
        mesh,
        services,
        listeners: gateways.listeners(),
        routes,
        namespaces: namespaces::resources(objects),
        gateways: gateways.facts(objects, &attached, &mut statuses),
        wanted: gateways.wanted(),
        statuses,
        in_force,
        outcomes,
    }
}

/// What a workload is told when nobody says otherwise.
pub fn default_settings() -> pb::WorkloadSettings {
    mesh::workload_settings(&culvert_objects::mesh_config::Settings::default())
}
