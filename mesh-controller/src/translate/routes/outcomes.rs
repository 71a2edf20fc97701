//! What became of every route at each of its parents, as values: statuses say it in words, `culvert check` explains it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use culvert_routing::model::{Hostname, RouteKey};

pub use super::attach::{Group, Refusal, ServiceName};
pub use super::compile::Refused;
pub use super::emit::object_kind;
pub use super::memory::InForce;
pub use super::normalize::reader::Fault;
pub use super::normalize::{Draft, DraftBackend, DraftFilter, DraftRef, DraftRule};
pub use super::resolve::{Side, Site, Unresolved, UnresolvedReason};

/// A route at one parent of ours.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub draft: Arc<Draft>,
    /// Of `spec.parentRefs`; None for a route without any parent of ours.
    pub parent: Option<usize>,
    pub side: Side,
    pub attached: Result<Place, Refusal>,
    /// What is in force there, with every rule that is refused and every backend that was not found.
    pub in_force: Arc<InForce>,
}

/// Where a route is attached.
#[derive(Clone, Debug)]
pub enum Place {
    Service {
        service: ServiceName,
        /// The ports it decides on; never empty.
        ports: BTreeSet<u16>,
        /// Those of them that are declared as something that routes of this kind do not carry, and as what.
        contradicted: BTreeMap<u16, String>,
        /// Ports that other routes have taken.
        taken: BTreeMap<u16, RouteKey>,
    },
    /// Names of listeners' resources, each with the hostnames in effect.
    Listeners(Vec<(String, Vec<Hostname>)>),
}
