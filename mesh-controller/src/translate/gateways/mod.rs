//! GatewayClasses and Gateways: what is accepted, which listeners come of it, and which objects a Gateway needs.
//!
//! This version serves listeners of plain HTTP. What a Gateway asks beyond that is refused in a condition of the listener or
//! of the Gateway, never left out without a word.

mod class;
mod conflicts;
mod facts;
mod listener;
mod listener_sets;
mod names;
mod spec;
mod wanted;

use std::collections::{BTreeMap, HashMap};

use culvert_api::mesh as pb;
use culvert_api::names::GATEWAY_NAME_LABEL;
use culvert_objects::{Kind, Object, Objects};

use super::Statuses;

pub use class::FEATURES;
pub use facts::{GatewayFacts, Reported};
pub use listener::Listener;
pub use spec::Gateway;

/// Routes attached to each listener, by the name of its resource.
pub type Attached = HashMap<String, u32>;

/// Every Gateway of a class of Culvert's.
#[derive(Debug, Default)]
pub struct Gateways {
    gateways: BTreeMap<(String, String), Gateway>,
}

impl Gateways {
    /// Reads them; what classes are told is put in `statuses`.
    pub fn of(objects: &Objects, statuses: &mut Statuses) -> Self {
        let classes = class::ours(objects, statuses);
        let gateways = objects.of_kind(Kind::Gateway).filter_map(|object| {
            let gateway = Gateway::read(object, &classes)?;
            Some(((object.namespace().to_owned(), object.name().to_owned()), gateway))
        });
        Self { gateways: gateways.collect() }
    }

    /// None when it does not exist or is somebody else's.
    pub fn find(&self, namespace: &str, name: &str) -> Option<&Gateway> {
        if self.gateways.is_empty() {
            return None;
        }
        self.gateways.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The listeners that proxies open, by the name of the resource.
    pub fn listeners(&self) -> BTreeMap<String, pb::Listener> {
        let all = self.gateways.values().flat_map(Gateway::served);
        all.map(|(gateway, listener)| (listener.resource.clone(), listener.message(gateway))).collect()
    }

    /// Puts what each Gateway is told in `statuses`, but for what proxies report, and returns what that needs.
    pub fn facts(
        &self,
        objects: &Objects,
        attached: &Attached,
        statuses: &mut Statuses,
    ) -> BTreeMap<culvert_objects::ObjectKey, GatewayFacts> {
        listener_sets::refuse(objects, self, statuses);
        let facts = self.gateways.values().map(|gateway| {
            let (status, facts) = facts::of(gateway, objects, attached);
            let key = status.key.clone();
            statuses.insert(key.clone(), status.into());
            (key, facts)
        });
        facts.collect()
    }

    /// The objects that the Gateways need: whoever runs the controller makes them, and takes them away when they are wanted
    /// no more.
    pub fn wanted(&self) -> Vec<Object> {
        self.gateways.values().flat_map(wanted::of).collect()
    }

    /// The Gateway (`namespace/name`) that a pod belongs to, by the pod's label and the Deployment that made it.
    pub fn of_pod(&self, pod: &Object, deployment: Option<&str>) -> Option<String> {
        let label = pod.label(GATEWAY_NAME_LABEL)?;
        let gateways = self.gateways.values().filter(|gateway| gateway.namespace() == pod.namespace());
        let mut gateways = gateways.filter(|gateway| names::label(gateway.name()) == label);
        let gateway = gateways.find(|gateway| deployment == Some(names::object(gateway.name()).as_str()))?;
        Some(gateway.key())
    }
}
