//! Chooses an endpoint of a Service: two random ones, the less loaded of them. What is known of endpoints is shared by
//! all workers and outlives snapshots; which of them may be used is worked out once per version of the endpoint set.

mod attempt;
mod budget;
mod choice;
mod group;
mod load;
mod pinned;
mod standing;
mod usable;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use thiserror::Error;

use crate::state::model::{Ejection, Service, ServiceKey, Workload, WorkloadUid};
use crate::state::{EndpointSet, Snapshot};

pub use attempt::InFlight;
pub use budget::Budget;
use choice::{Caller, Usable};
pub use group::{Counts, Ejected};
use group::{Group, GroupKey, Health};
pub use load::{Carried, EndpointLoad, Endpoints};
pub use standing::Step;
pub use usable::{Family, Nearness, Place, UsableEndpoint, select as usable_endpoints};

/// Why there is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PickError {
    #[error("{service} has no port {port}")]
    NoPort { service: ServiceKey, port: u16 },
    #[error("{service} has no endpoint for port {port} that may be used")]
    NoEndpoint { service: ServiceKey, port: u16 },
    #[error("{service} has no further endpoint for port {port}")]
    Exhausted { service: ServiceKey, port: u16 },
}

/// An endpoint that may be used.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub workload: Arc<Workload>,
    pub address: IpAddr,
    pub target_port: u16,
    pub load: Arc<EndpointLoad>,
    /// None where endpoints are not ejected.
    health: Option<Arc<Health>>,
    /// It is ejected, and this is its trial.
    is_trial: bool,
}

impl Candidate {
    /// Whether it is passed over now; one that is due for its trial, too.
    pub fn is_ejected(&self) -> bool {
        self.health.as_ref().is_some_and(|health| health.is_ejected())
    }

    /// Whether an ejected endpoint is tried by what it was picked for.
    pub fn is_trial(&self) -> bool {
        self.is_trial
    }

    fn claim(&self, now: u64) -> bool {
        self.health.as_ref().is_some_and(|health| health.is_ejected() && health.claim(now))
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub service: &'a Arc<Service>,
    pub port: u16,
    pub family: Family,
    pub client: IpAddr,
    pub zone: &'a str,
    pub carried: Carried,
    /// `None`: no endpoint is passed over because it fails.
    pub ejection: Option<&'a Ejection>,
}

/// What the usable endpoints are kept under.
type UsableKey = (ServiceKey, u16, Family, Carried, Option<Ejection>);

/// One worker's view.
pub struct Balancer {
    endpoints: Arc<Endpoints>,
    node: Arc<str>,
    usable: RefCell<HashMap<UsableKey, Usable>>,
    /// Of Services whose routes ask for retries.
    budgets: RefCell<HashMap<ServiceKey, Arc<Budget>>>,
    random: RefCell<SmallRng>,
    /// Of the endpoints that sessions are kept at.
    pinned: RefCell<HashMap<(WorkloadUid, u16), Arc<EndpointLoad>>>,
}

impl Balancer {
    pub fn new(endpoints: Arc<Endpoints>, node: Arc<str>) -> Self {
        Self {
            endpoints,
            node,
            usable: RefCell::new(HashMap::new()),
            budgets: RefCell::default(),
            random: RefCell::new(SmallRng::from_os_rng()),
            pinned: RefCell::default(),
        }
    }

    /// An endpoint for a new connection, none of those `tried`. Takes constant time, except for the first pick after
    /// the endpoint set or what is ejected of it has changed, the first of a client with session affinity, and after failures.
    ///
    /// # Errors
    /// When the Service does not have the port, no endpoint may be used, or all have been tried.
    pub fn pick(
        &self,
        endpoints: Option<&Arc<EndpointSet>>,
        wanted: &Wanted<'_>,
        tried: &[Candidate],
    ) -> Result<Candidate, PickError> {
        let (service, port) = (wanted.service, wanted.port);
        if !service.ports.iter().any(|known| known.port == port) {
            return Err(PickError::NoPort { service: service.key.clone(), port });
        }
        let none = || PickError::NoEndpoint { service: service.key.clone(), port };
        let endpoints = endpoints.ok_or_else(none)?;
        let mut all = self.usable.borrow_mut();
        let usable = self.current(&mut all, endpoints, wanted);
        let usable = usable.filter(|usable| !usable.is_empty()).ok_or_else(none)?;
        let now = self.endpoints.clock().now();
        let caller = Caller { client: wanted.client, carried: wanted.carried, tried, now };
        let picked = usable.pick(&mut *self.random.borrow_mut(), caller);
        let picked = picked.ok_or_else(|| PickError::Exhausted { service: service.key.clone(), port })?;
        Ok(Candidate { is_trial: picked.is_trial, ..usable.candidate(picked.index).clone() })
    }

    /// The retry budget of a Service, which its workers share.
    pub fn budget(&self, service: &Service) -> Arc<Budget> {
        let mut known = self.budgets.borrow_mut();
        match known.get(&service.key).filter(|budget| budget.settings() == service.retry_budget) {
            Some(budget) => budget.clone(),
            None => {
                let budget = self.endpoints.budget(service);
                known.insert(service.key.clone(), budget.clone());
                budget
            }
        }
    }

    /// Forgets Services and endpoints that are gone, and Services that are not called any more.
    pub fn maintain(&self, snapshot: &Snapshot) {
        self.pinned.borrow_mut().retain(|(uid, _), _| snapshot.workload(uid).is_some());
        self.budgets.borrow_mut().retain(|service, _| snapshot.service(service).is_some());
        let now = self.endpoints.clock().now();
        self.usable
            .borrow_mut()
            .retain(|(service, ..), usable| snapshot.service(service).is_some() && !usable.is_forgotten(now));
    }

    /// The endpoints that may be used of this version of the endpoint set.
    fn current<'u>(
        &self,
        all: &'u mut HashMap<UsableKey, Usable>,
        endpoints: &Arc<EndpointSet>,
        wanted: &Wanted<'_>,
    ) -> Option<&'u mut Usable> {
        let service = wanted.service;
        let key = (service.key.clone(), wanted.port, wanted.family, wanted.carried, wanted.ejection.copied());
        let is_current =
            |known: &Usable| Arc::ptr_eq(&known.endpoints, endpoints) && Arc::ptr_eq(&known.service, service);
        if !all.get(&key).is_some_and(is_current) {
            // The old set goes after the new one is built: what is known of endpoints in both lives on.
            all.insert(key.clone(), self.usable(endpoints, wanted));
        }
        all.get_mut(&key)
    }

    fn usable(&self, endpoints: &Arc<EndpointSet>, wanted: &Wanted<'_>) -> Usable {
        let place = Place { node: &self.node, zone: wanted.zone };
        let found = usable::select(endpoints, wanted.service, wanted.port, wanted.family, place);
        let group = wanted.ejection.map(|settings| {
            let settings = *settings;
            let (service, port, carried) = (wanted.service.key.clone(), wanted.port, wanted.carried);
            self.endpoints.group(GroupKey { service, port, carried, settings })
        });
        let health = group.as_ref().map(|group| healths(group, endpoints, &found));
        let candidates = found.iter().enumerate().map(|(index, endpoint)| {
            let candidate = Candidate {
                load: self.endpoints.get(&endpoint.workload.uid, endpoint.target_port, wanted.carried),
                workload: endpoint.workload.clone(),
                address: endpoint.address,
                target_port: endpoint.target_port,
                health: health.as_ref().map(|health| health[index].clone()),
                is_trial: false,
            };
            (candidate, endpoint.nearness)
        });
        Usable::new(wanted.service.clone(), endpoints.clone(), candidates.collect(), group)
    }
}

/// In the order of `found`.
fn healths(group: &Arc<Group>, endpoints: &EndpointSet, found: &[UsableEndpoint<'_>]) -> Vec<Arc<Health>> {
    let existing: HashSet<_> = endpoints.endpoints.iter().map(|endpoint| &endpoint.workload.uid).collect();
    let usable = found
        .iter()
        .map(|endpoint| (endpoint.workload, SocketAddr::new(endpoint.address, endpoint.target_port)));
    group.follow(&existing, usable)
}

#[cfg(test)]
mod ejection_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
