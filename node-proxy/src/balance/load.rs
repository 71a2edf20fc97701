//! What is known of an endpoint: connections open to it, how long connecting takes, whether it failed lately.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::budget::Budget;
use super::group::{Counts, Ejected, Group, GroupKey};
use super::standing::nanos;
use crate::state::Snapshot;
use crate::state::model::{Service, ServiceKey, WorkloadUid};

/// An endpoint that refused a connection is avoided for this long.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// A measured latency loses its weight over this time.
const DECAY: Duration = Duration::from_secs(10);
/// Latencies below this are equal: a tunnel that is opened first, or a busy scheduler, costs as much.
const FLOOR: Duration = Duration::from_millis(5);
/// Latencies within this factor are equal: noise must not decide, or the same endpoint wins every time.
const NOISE: u64 = 2;
/// What a measurement counts for, at least, however soon it follows the last: an endpoint that was slow once must not be
/// avoided for as long as one that is slow.
const LEAST_SHARE: f64 = 0.3;
/// One measurement raises the average by this factor at most: a single slow answer is a hiccup and costs an endpoint a
/// part of its share, three in a row are a slow endpoint and cost it nearly all.
const STEEPEST: u64 = 4;

/// Counts nanoseconds from its start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock {
    pub fn now(self) -> u64 {
        nanos(self.0.elapsed())
    }
}

/// What an endpoint is chosen for. Each is measured by itself: how long a connection takes to open says nothing about how
/// long a request takes, and connections that stay open would count as requests without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carried {
    Connections,
    Requests,
}

/// One endpoint's load, in relaxed atomics: an update lost between two workers is one sample of many.
#[derive(Debug, Default)]
pub struct EndpointLoad {
    clock: Clock,
    in_flight: AtomicU32,
    /// Peak-sensitive average in nanoseconds; 0 before the first measurement.
    latency: AtomicU64,
    measured_at: AtomicU64,
    failed_until: AtomicU64,
}

impl EndpointLoad {
    pub(super) fn enter(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn now(&self) -> u64 {
        self.clock.now()
    }

    /// A connection was made and took so long.
    pub fn connected(&self, took: Duration) {
        self.measure(nanos(took), self.now());
        self.failed_until.store(0, Ordering::Relaxed);
    }

    /// A request was answered and the answer took so long to begin.
    pub fn responded(&self, took: Duration) {
        self.connected(took);
    }

    /// Nothing was heard for so long, and nothing will be: it would have taken longer still.
    pub(super) fn unanswered(&self, waited: u64) {
        let now = self.now();
        if waited > self.latency(now) {
            self.measure(waited, now);
        }
    }

    /// A connection could not be made.
    pub fn failed(&self) {
        self.failed_until.store(self.now().saturating_add(nanos(FAILED_FOR)), Ordering::Relaxed);
    }

    pub(super) fn failed_lately(&self, now: u64) -> bool {
        now < self.failed_until.load(Ordering::Relaxed)
    }

    fn measure(&self, sample: u64, now: u64) {
        let average = self.latency(now);
        let weight = self.decayed(now).min(1.0 - LEAST_SHARE);
        // A peak counts at once, an improvement only with time.
        let next = if sample > average {
            sample.min(average.max(nanos(FLOOR)).saturating_mul(STEEPEST))
        } else {
            (average as f64 * weight + sample as f64 * (1.0 - weight)) as u64
        };
        self.latency.store(next.max(1), Ordering::Relaxed);
        self.measured_at.store(now, Ordering::Relaxed);
    }

    /// What is left of the weight of the last measurement.
    fn decayed(&self, now: u64) -> f64 {
        let age = now.saturating_sub(self.measured_at.load(Ordering::Relaxed));
        (-(age as f64) / nanos(DECAY) as f64).exp()
    }

    /// The average as it has decayed; 0 when nothing was measured.
    fn latency(&self, now: u64) -> u64 {
        let latency = self.latency.load(Ordering::Relaxed);
        if latency == 0 { 0 } else { ((latency as f64 * self.decayed(now)) as u64).max(nanos(FLOOR)) }
    }

    /// How likely this endpoint is to be taken rather than the other. By latency × (in flight + 1), where the worse one keeps
    /// a chance of half the ratio: of two endpoints one that was slow is asked again before its average has faded, and of
    /// equal ones each gets half. Latencies that were not measured or differ by less than [`NOISE`] count as equal; then
    /// what is in flight decides.
    pub(super) fn chance_against(&self, other: &Self, now: u64) -> f64 {
        let in_flight = |load: &Self| load.in_flight();
        let (mine, theirs) = (self.latency(now), other.latency(now));
        let low = mine.min(theirs);
        if low == 0 || mine.max(theirs) <= low.saturating_mul(NOISE) {
            return match in_flight(self).cmp(&in_flight(other)) {
                std::cmp::Ordering::Less => 1.0,
                std::cmp::Ordering::Equal => 0.5,
                std::cmp::Ordering::Greater => 0.0,
            };
        }
        let cost = |latency: u64, load: &Self| latency as f64 * (f64::from(in_flight(load)) + 1.0);
        let (mine, theirs) = (cost(mine, self), cost(theirs, other));
        if mine < theirs { 1.0 - mine / theirs / 2.0 } else { theirs / mine / 2.0 }
    }
}

/// The loads of all endpoints in use, by workload, port and what is carried. Read when a worker works out which endpoints are usable,
/// never per connection.
#[derive(Debug, Default)]
pub struct Endpoints {
    all: Mutex<Known>,
    /// Of Services; read as rarely.
    budgets: Mutex<HashMap<ServiceKey, Weak<Budget>>>,
    /// Read as rarely.
    groups: Mutex<HashMap<GroupKey, Weak<Group>>>,
    counts: Arc<Counts>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Known {
    loads: HashMap<(WorkloadUid, u16, Carried), Weak<EndpointLoad>>,
    prune_at: usize,
}

/// Entries of endpoints that are gone may make up half of the table.
const PRUNE_FROM: usize = 64;

impl Endpoints {
    pub(super) fn get(&self, uid: &WorkloadUid, port: u16, carried: Carried) -> Arc<EndpointLoad> {
        let mut known = self.all.lock();
        let key = (uid.clone(), port, carried);
        if let Some(load) = known.loads.get(&key).and_then(Weak::upgrade) {
            return load;
        }
        if known.loads.len() >= known.prune_at.max(PRUNE_FROM) {
            known.loads.retain(|_, load| load.strong_count() > 0);
            known.prune_at = known.loads.len() * 2;
        }
        let load = Arc::new(EndpointLoad { clock: self.clock, ..EndpointLoad::default() });
        known.loads.insert(key, Arc::downgrade(&load));
        load
    }

    /// The budget of a Service with its settings as they are now; with other settings it is another one.
    pub(super) fn budget(&self, service: &Service) -> Arc<Budget> {
        let mut known = self.budgets.lock();
        let budget = known.get(&service.key).and_then(Weak::upgrade);
        if let Some(budget) = budget.filter(|budget| budget.settings() == service.retry_budget) {
            return budget;
        }
        known.retain(|_, budget| budget.strong_count() > 0);
        let budget = Arc::new(Budget::new(service.retry_budget, tokio::time::Instant::now()));
        known.insert(service.key.clone(), Arc::downgrade(&budget));
        budget
    }

    /// The endpoints of a Service's port as clients with these settings judge them.
    pub(super) fn group(&self, key: GroupKey) -> Arc<Group> {
        let mut known = self.groups.lock();
        if let Some(group) = known.get(&key).and_then(Weak::upgrade) {
            return group;
        }
        known.retain(|_, group| group.strong_count() > 0);
        let group = Arc::new(Group::new(key.clone(), self.clock, self.counts.clone()));
        known.insert(key, Arc::downgrade(&group));
        group
    }

    fn groups(&self) -> Vec<Arc<Group>> {
        self.groups.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Every endpoint of the snapshot that is ejected, in the order of Services. One that is for several reasons (of several
    /// ports, for connections and for requests, for clients with other settings) is there several times.
    pub fn ejected(&self, snapshot: &Snapshot) -> Vec<Ejected> {
        let mut all = self.all_ejected();
        all.retain(|one| {
            snapshot.service(&one.service).is_some() && snapshot.workload(&one.workload.uid).is_some()
        });
        all.sort_by(|a, b| (&a.service, a.port, &a.workload.uid).cmp(&(&b.service, b.port, &b.workload.uid)));
        all
    }

    pub(super) fn all_ejected(&self) -> Vec<Ejected> {
        self.groups().iter().flat_map(|group| group.ejected()).collect()
    }

    /// The Services that are called from this node.
    pub fn services(&self) -> BTreeSet<ServiceKey> {
        self.groups().iter().map(|group| group.key().service.clone()).collect()
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all.lock().loads.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn load(latency: u64, in_flight: u32) -> EndpointLoad {
        let load = EndpointLoad::default();
        load.latency.store(latency, Ordering::Relaxed);
        load.in_flight.store(in_flight, Ordering::Relaxed);
        load
    }

    #[test]
    fn fewer_connections_win_and_noise_does_not() {
        for (one, other, expected) in [
            ((0, 0), (0, 1), 1.0),
            ((0, 1), (0, 1), 0.5),
            ((0, 2), (0, 1), 0.0),
            ((15 * MS, 0), (29 * MS, 0), 0.5),
            ((10 * MS, 0), (100 * MS, 0), 0.95),
            ((100 * MS, 0), (10 * MS, 0), 0.05),
            ((10 * MS, 9), (50 * MS, 0), 0.25),
            ((30 * MS, 0), (0, 1), 1.0),
            ((100_000, 0), (9 * MS, 0), 0.5),
        ] {
            let chance = load(one.0, one.1).chance_against(&load(other.0, other.1), 0);
            assert!((chance - expected).abs() < 1e-9, "{one:?} {other:?}: {chance}");
        }
    }

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let load = load(0, 0);
        load.measure(5 * MS, 0);
        load.measure(15 * MS, 0);
        assert_eq!(load.latency(0), 15 * MS);
        load.measure(50 * MS, 0);
        assert_eq!(load.latency(0), 50 * MS);
        load.measure(5 * MS, 10_000 * MS);
        let faded = load.latency(10_000 * MS);
        assert!((5 * MS..20 * MS).contains(&faded), "by time: {faded}");
        load.measure(500 * MS, 10_000 * MS);
        for _ in 0..20 {
            load.measure(5 * MS, 10_001 * MS);
        }
        let faded = load.latency(10_001 * MS);
        assert!((5 * MS..80 * MS).contains(&faded), "by what was measured since: {faded}");
    }

    #[test]
    fn one_hiccup_is_not_a_slow_endpoint() {
        let (load, other) = (load(0, 0), self::load(5 * MS, 0));
        for (slow, least) in [(20 * MS, 0.1), (80 * MS, 0.03), (320 * MS, 0.005)] {
            load.measure(2000 * MS, 0);
            assert_eq!(load.latency(0), slow);
            assert!(load.chance_against(&other, 0) > least);
        }
    }

    /// Two endpoints asked in turn by one client, one of which once took two seconds.
    #[test]
    fn after_a_hiccup_an_endpoint_is_back_within_tens_of_requests() {
        let loads = [load(5 * MS, 0), load(5 * MS, 0)];
        loads[0].measure(2000 * MS, 0);
        let mut asked = [0, 0];
        // A draw that runs evenly through all of the unit interval.
        for request in 0..60_u64 {
            let draw = (request as f64 * 0.618_033_988_75).fract();
            let index = usize::from(draw >= loads[0].chance_against(&loads[1], 0));
            asked[index] += 1;
            loads[index].measure(5 * MS, 0);
        }
        assert!(asked[0] >= 15, "{asked:?}");
    }

    #[test]
    fn a_failure_is_forgotten_by_success_and_by_time() {
        let load = load(0, 0);
        load.failed();
        assert!(load.failed_lately(load.now()));
        assert!(!load.failed_lately(load.now() + nanos(FAILED_FOR)));
        load.connected(Duration::from_millis(1));
        assert!(!load.failed_lately(load.now()));
    }

    #[test]
    fn what_is_known_lives_while_somebody_holds_it() {
        let endpoints = Endpoints::default();
        let uid = WorkloadUid("a".into());
        let first = endpoints.get(&uid, 80, Carried::Requests);
        assert!(Arc::ptr_eq(&first, &endpoints.get(&uid, 80, Carried::Requests)));
        assert!(!Arc::ptr_eq(&first, &endpoints.get(&uid, 81, Carried::Requests)));
        assert!(!Arc::ptr_eq(&first, &endpoints.get(&uid, 80, Carried::Connections)));
        for index in 0..1000 {
            endpoints.get(&WorkloadUid(index.to_string().into()), 80, Carried::Requests);
        }
        assert!(endpoints.len() <= 2 * PRUNE_FROM, "{}", endpoints.len());
        assert!(Arc::ptr_eq(&first, &endpoints.get(&uid, 80, Carried::Requests)));
    }
}
