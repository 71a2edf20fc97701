//! Chooses an endpoint of a Service: two random ones, the less loaded of them. What is known of endpoints is shared by
//! all workers and outlives snapshots; which of them may be used is worked out once per version of the endpoint set.

mod budget;
mod load;
mod pinned;
mod usable;

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thiserror::Error;

use crate::state::model::{Service, ServiceKey, Workload, WorkloadUid};
use crate::state::{EndpointSet, Snapshot};

pub use budget::Budget;
pub use load::{Carried, EndpointLoad, Endpoints, InFlight};
pub use usable::{Family, Place, select as usable_endpoints};

/// Pairs drawn before an endpoint that failed lately is taken all the same.
const DRAWS: usize = 4;
/// Clients whose endpoint is remembered per Service port; beyond it, it is worked out anew.
const STICKY_CLIENTS: usize = 4096;

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
}

/// The usable endpoints of one version of a Service's endpoint set.
#[derive(Debug)]
struct Usable {
    service: Arc<Service>,
    endpoints: Arc<EndpointSet>,
    candidates: Vec<Candidate>,
    sticky: HashMap<IpAddr, usize>,
}

/// One worker's view.
pub struct Balancer {
    endpoints: Arc<Endpoints>,
    node: Arc<str>,
    usable: RefCell<HashMap<(ServiceKey, u16, Family, Carried), Usable>>,
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
    /// the endpoint set has changed, the first of a client with session affinity, and after failures.
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
        let key = (service.key.clone(), port, wanted.family, wanted.carried);
        let is_current =
            |known: &Usable| Arc::ptr_eq(&known.endpoints, endpoints) && Arc::ptr_eq(&known.service, service);
        if !all.get(&key).is_some_and(is_current) {
            // The old set goes after the new one is built: what is known of endpoints in both lives on.
            all.insert(key.clone(), self.usable(endpoints, wanted));
        }
        let usable = all.get_mut(&key).ok_or_else(none)?;
        if usable.candidates.is_empty() {
            return Err(none());
        }
        let now = load::now();
        let index = match service.client_ip_affinity {
            Some(_) => sticky(usable, wanted.client, tried, now),
            None => self.two_choices(&usable.candidates, tried, now),
        };
        let exhausted = || PickError::Exhausted { service: service.key.clone(), port };
        index.map(|index| usable.candidates[index].clone()).ok_or_else(exhausted)
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

    /// Forgets Services and endpoints that are gone.
    pub fn maintain(&self, snapshot: &Snapshot) {
        self.pinned.borrow_mut().retain(|(uid, _), _| snapshot.workload(uid).is_some());
        self.budgets.borrow_mut().retain(|service, _| snapshot.service(service).is_some());
        self.usable.borrow_mut().retain(|(service, ..), _| snapshot.service(service).is_some());
    }

    fn usable(&self, endpoints: &Arc<EndpointSet>, wanted: &Wanted<'_>) -> Usable {
        let place = Place { node: &self.node, zone: wanted.zone };
        let candidates = usable::select(endpoints, wanted.service, wanted.port, wanted.family, place)
            .map(|(workload, address, target_port)| Candidate {
                load: self.endpoints.get(&workload.uid, target_port, wanted.carried),
                workload: workload.clone(),
                address,
                target_port,
            })
            .collect();
        Usable {
            service: wanted.service.clone(),
            endpoints: endpoints.clone(),
            candidates,
            sticky: HashMap::new(),
        }
    }

    fn two_choices(&self, candidates: &[Candidate], tried: &[Candidate], now: u64) -> Option<usize> {
        let mut random = self.random.borrow_mut();
        let mut fallback = None;
        for _ in 0..DRAWS {
            let (one, other) = draw_two(&mut *random, candidates.len());
            for index in better_first(&mut *random, candidates, (one, other), now) {
                if is_tried(&candidates[index], tried) {
                    continue;
                }
                if !candidates[index].load.failed_lately(now) {
                    return Some(index);
                }
                fallback.get_or_insert(index);
            }
        }
        // Rare: only after failures. From a random start, so that not everyone lands on the same one.
        let start = random.random_range(0..candidates.len());
        let untried = || {
            (0..candidates.len())
                .map(|offset| (start + offset) % candidates.len())
                .filter(|index| !is_tried(&candidates[*index], tried))
        };
        untried()
            .find(|index| !candidates[*index].load.failed_lately(now))
            .or(fallback)
            .or_else(|| untried().next())
    }
}

fn is_tried(candidate: &Candidate, tried: &[Candidate]) -> bool {
    tried.iter().any(|tried| Arc::ptr_eq(&tried.load, &candidate.load))
}

/// Two different indexes below `count` if there are two.
fn draw_two(random: &mut impl Rng, count: usize) -> (usize, usize) {
    let one = random.random_range(0..count);
    if count == 1 {
        return (one, one);
    }
    let other = random.random_range(0..count - 1);
    (one, if other >= one { other + 1 } else { other })
}

/// The less loaded of the two first, most of the time ([`EndpointLoad::chance_against`]).
fn better_first(
    random: &mut impl Rng,
    candidates: &[Candidate],
    (one, other): (usize, usize),
    now: u64,
) -> [usize; 2] {
    let chance = candidates[one].load.chance_against(&candidates[other].load, now);
    if random.random_bool(chance.clamp(0.0, 1.0)) { [one, other] } else { [other, one] }
}

/// `sessionAffinity: ClientIP`: the endpoint with the highest hash of client and endpoint, so that every worker and
/// every node agrees without shared state, and only clients of a vanished endpoint move. As it depends on nothing but
/// the client and the endpoints, no timeout can end the affinity early.
fn sticky(usable: &mut Usable, client: IpAddr, tried: &[Candidate], now: u64) -> Option<usize> {
    let candidates = &usable.candidates;
    let known = usable.sticky.get(&client).copied();
    let favourite = match known {
        Some(index) => Some(index),
        None => highest(candidates, client, |_| true),
    };
    if known.is_none() && usable.sticky.len() < STICKY_CLIENTS {
        favourite.map(|index| usable.sticky.insert(client, index));
    }
    let may = |index: usize| !is_tried(&candidates[index], tried);
    match favourite {
        Some(index) if may(index) && !candidates[index].load.failed_lately(now) => favourite,
        _ => highest(candidates, client, |index| may(index) && !candidates[index].load.failed_lately(now))
            .or_else(|| highest(candidates, client, may)),
    }
}

fn highest(candidates: &[Candidate], client: IpAddr, may: impl Fn(usize) -> bool) -> Option<usize> {
    (0..candidates.len()).filter(|index| may(*index)).max_by_key(|index| {
        affinity(client, &candidates[*index].workload.uid, candidates[*index].target_port)
    })
}

fn affinity(client: IpAddr, endpoint: &WorkloadUid, port: u16) -> u64 {
    let mut hasher = DefaultHasher::new();
    (client, endpoint, port).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
