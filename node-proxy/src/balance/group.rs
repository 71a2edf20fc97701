//! The endpoints of one port of a Service, as those clients of this node judge them that have the same settings: which of them
//! are ejected, how many may be, and when one is due for its trial. Shared by all workers. A request that goes well, as almost
//! all do, costs two loads here; locks are taken when an endpoint leaves or comes back.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::load::{Carried, Clock};
use super::standing::{Standing, Step, nanos};
use crate::state::model::{Ejection, ServiceKey, Workload, WorkloadUid};

/// Of the failures in a row that eject, so many fifths are enough, and two at least, when the first was [`LONG`] ago.
const FIFTHS: u32 = 2;
const LONG: Duration = Duration::from_millis(500);
/// A response that was passed on for this long, and a connection that was open for it, had gone well when it broke.
const WENT_WELL: Duration = Duration::from_secs(10);

/// What a group is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupKey {
    pub service: ServiceKey,
    pub port: u16,
    pub carried: Carried,
    pub settings: Ejection,
}

/// One endpoint in it.
#[derive(Debug)]
pub struct Health {
    group: Weak<Group>,
    workload: Arc<Workload>,
    address: SocketAddr,
    /// Failures in a row, by step.
    failures: [AtomicU32; 3],
    /// When the first of those in a row was that are not answered, or answered badly.
    failing_since: AtomicU64,
    /// Of the standing, for those who only want to know that.
    is_ejected: AtomicBool,
    standing: Mutex<Standing>,
}

/// How often things have happened on this node, of all groups together.
#[derive(Debug, Default)]
pub struct Counts {
    ejections: [AtomicU64; 3],
    trials: [AtomicU64; 2],
}

/// An endpoint that is ejected.
#[derive(Clone, Debug)]
pub struct Ejected {
    pub service: ServiceKey,
    pub port: u16,
    pub carried: Carried,
    pub workload: Arc<Workload>,
    pub address: SocketAddr,
    /// In a row.
    pub times: u32,
    pub since: Duration,
    /// Until it may be tried; zero when the next request or connection may.
    pub trial_in: Duration,
}

#[derive(Debug)]
pub struct Group {
    key: GroupKey,
    clock: Clock,
    counts: Arc<Counts>,
    members: Mutex<Members>,
    /// Changes with every endpoint that leaves or comes back.
    version: AtomicU64,
    ejected: AtomicUsize,
    most: AtomicUsize,
    /// When the first of those that are ejected is due.
    next_trial: AtomicU64,
}

#[derive(Debug, Default)]
struct Members {
    /// Gone with their endpoints.
    known: HashMap<WorkloadUid, Arc<Health>>,
    /// Those that may be chosen at present.
    usable: Vec<Arc<Health>>,
}

impl Group {
    pub fn new(key: GroupKey, clock: Clock, counts: Arc<Counts>) -> Self {
        Self {
            key,
            clock,
            counts,
            members: Mutex::default(),
            version: AtomicU64::new(0),
            ejected: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            next_trial: AtomicU64::new(u64::MAX),
        }
    }

    pub fn key(&self) -> &GroupKey {
        &self.key
    }

    /// Of the endpoints that there are now, those that may be chosen, in their order. What is known of the others is kept as
    /// long as they exist.
    pub fn follow<'a>(
        self: &Arc<Self>,
        existing: &HashSet<&WorkloadUid>,
        usable: impl Iterator<Item = (&'a Arc<Workload>, SocketAddr)>,
    ) -> Vec<Arc<Health>> {
        let mut members = self.members.lock();
        members.known.retain(|uid, _| existing.contains(uid));
        let mut all = Vec::new();
        for (workload, address) in usable {
            let new = || Arc::new(Health::new(self, workload.clone(), address));
            all.push(members.known.entry(workload.uid.clone()).or_insert_with(new).clone());
        }
        members.usable.clone_from(&all);
        let most = all.len() * self.key.settings.max_percent as usize / 100;
        self.most.store(most, Ordering::Relaxed);
        self.recount(&members);
        self.lift(&members);
        all
    }

    /// Ends ejections that are too many for the endpoints that are left: those first that would end first.
    fn lift(&self, members: &Members) {
        let surplus = self.ejected_count().saturating_sub(self.most.load(Ordering::Relaxed));
        if surplus == 0 {
            return;
        }
        let until = |health: &&Arc<Health>| match *health.standing.lock() {
            Standing::Ejected { until, .. } => until,
            Standing::In { .. } => u64::MAX,
        };
        let mut ejected: Vec<_> = members.usable.iter().filter(|health| health.is_ejected()).collect();
        ejected.sort_by_cached_key(until);
        let now = self.clock.now();
        for health in ejected.into_iter().take(surplus) {
            self.change(members, health, |at| at.lifted(now));
        }
    }

    /// Of an endpoint that may be chosen, or might before.
    pub fn health(&self, workload: &WorkloadUid) -> Option<Arc<Health>> {
        self.members.lock().known.get(workload).cloned()
    }

    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether an endpoint may be due for its trial.
    pub fn is_due(&self, now: u64) -> bool {
        self.next_trial.load(Ordering::Relaxed) <= now
    }

    /// Endpoints that may be chosen and are ejected.
    pub fn ejected_count(&self) -> usize {
        self.ejected.load(Ordering::Relaxed)
    }

    /// Every endpoint that is ejected.
    pub fn ejected(&self) -> Vec<Ejected> {
        let now = self.clock.now();
        let members = self.members.lock();
        members.known.values().filter_map(|health| self.describe(health, now)).collect()
    }

    fn describe(&self, health: &Health, now: u64) -> Option<Ejected> {
        let Standing::Ejected { since, until, times } = *health.standing.lock() else { return None };
        Some(Ejected {
            service: self.key.service.clone(),
            port: self.key.port,
            carried: self.key.carried,
            workload: health.workload.clone(),
            address: health.address,
            times,
            since: Duration::from_nanos(now.saturating_sub(since)),
            trial_in: Duration::from_nanos(until.saturating_sub(now)),
        })
    }

    fn recount(&self, members: &Members) {
        let ejected = members.usable.iter().filter(|health| health.is_ejected());
        self.ejected.store(ejected.clone().count(), Ordering::Relaxed);
        let due = ejected.filter_map(|health| match *health.standing.lock() {
            Standing::Ejected { until, .. } => Some(until),
            Standing::In { .. } => None,
        });
        self.next_trial.store(due.min().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Puts a standing in force, if it is another one.
    fn change(&self, members: &Members, health: &Health, next: impl FnOnce(Standing) -> Standing) -> bool {
        let mut standing = health.standing.lock();
        let after = next(*standing);
        if after == *standing {
            return false;
        }
        *standing = after;
        let is_ejected = matches!(after, Standing::Ejected { .. });
        drop(standing);
        if health.is_ejected.swap(is_ejected, Ordering::Relaxed) != is_ejected {
            self.version.fetch_add(1, Ordering::Release);
        }
        self.recount(members);
        true
    }

    fn eject(&self, health: &Health, step: Step) {
        // Read without the lock, so that endpoints that all fail do not queue for it.
        let is_full = || self.ejected.load(Ordering::Relaxed) >= self.most.load(Ordering::Relaxed);
        if is_full() {
            return;
        }
        let members = self.members.lock();
        let now = self.clock.now();
        if !is_full() && self.change(&members, health, |at| at.eject(now, self.key.settings, rand::random()))
        {
            self.counts.ejections[step as usize].fetch_add(1, Ordering::Relaxed);
            self.tell(health, "ejected: it fails");
        }
    }

    fn passed(&self, health: &Health, began: u64) {
        let members = self.members.lock();
        let now = self.clock.now();
        if self.change(&members, health, |at| at.passed(began, now)) {
            self.tell(health, "used again");
        }
    }

    fn tell(&self, health: &Health, what: &str) {
        let (service, port, endpoint) = (&self.key.service, self.key.port, &health.workload.uid);
        tracing::info!(%service, port, %endpoint, address = %health.address, "endpoint {what}");
    }

    fn limit(&self, step: Step) -> u32 {
        match step {
            Step::Connect => self.key.settings.connect_failures,
            Step::Answer | Step::Rest => self.key.settings.failures,
        }
    }
}

impl Health {
    fn new(group: &Arc<Group>, workload: Arc<Workload>, address: SocketAddr) -> Self {
        Self {
            group: Arc::downgrade(group),
            workload,
            address,
            failures: Default::default(),
            failing_since: AtomicU64::new(0),
            is_ejected: AtomicBool::new(false),
            standing: Mutex::default(),
        }
    }

    pub fn is_ejected(&self) -> bool {
        self.is_ejected.load(Ordering::Relaxed)
    }

    /// Claims the endpoint's trial, if it is due.
    pub fn claim(&self, now: u64) -> bool {
        let Some(group) = self.group.upgrade() else { return false };
        let members = group.members.lock();
        let is_due = self.standing.lock().claim(now).is_some();
        is_due && group.change(&members, self, |at| at.claim(now).unwrap_or(at))
    }
}

/// One try of an endpoint, as it is judged.
#[derive(Debug)]
pub struct Try {
    health: Arc<Health>,
    /// It is the trial of an ejected endpoint, and not decided.
    is_trial: bool,
}

impl Try {
    pub fn new(health: Arc<Health>, is_trial: bool) -> Self {
        Self { health, is_trial }
    }

    pub fn passed(&mut self, step: Step, began: u64) {
        self.reset(step);
        let was_trial = std::mem::take(&mut self.is_trial);
        if (was_trial || self.health.is_ejected())
            && let Some(group) = self.health.group.upgrade()
        {
            group.counts.trials[0].fetch_add(u64::from(was_trial), Ordering::Relaxed);
            group.passed(&self.health, began);
        }
    }

    pub fn failed(&mut self, step: Step, began: u64, now: u64) {
        let Some(group) = self.health.group.upgrade() else { return };
        let counter = &self.health.failures[step as usize];
        let had_gone_well = step == Step::Rest && now.saturating_sub(began) >= nanos(WENT_WELL);
        let count = if had_gone_well {
            counter.store(1, Ordering::Relaxed);
            1
        } else {
            counter.fetch_add(1, Ordering::Relaxed).saturating_add(1)
        };
        if step == Step::Answer {
            self.health.failures[Step::Connect as usize].store(0, Ordering::Relaxed);
            if count == 1 {
                self.health.failing_since.store(now, Ordering::Relaxed);
            }
        }
        if std::mem::take(&mut self.is_trial) {
            let members = group.members.lock();
            let settings = group.key.settings;
            group.counts.trials[1].fetch_add(1, Ordering::Relaxed);
            group.change(&members, &self.health, |at| at.failed(began, now, settings, rand::random()));
        } else if count >= self.limit(&group, step, now) && !self.health.is_ejected() {
            group.eject(&self.health, step);
        }
    }

    /// Failures in a row that eject. An endpoint that gets few requests is given fewer chances, or it would fail for as long as
    /// those take.
    fn limit(&self, group: &Group, step: Step, now: u64) -> u32 {
        let limit = group.limit(step);
        let since = self.health.failing_since.load(Ordering::Relaxed);
        let is_long = step == Step::Answer && now.saturating_sub(since) >= nanos(LONG);
        if is_long { limit.min((limit * FIFTHS / 5).max(2)) } else { limit }
    }

    fn reset(&self, step: Step) {
        let reset = |step: Step| {
            let counter = &self.health.failures[step as usize];
            if counter.load(Ordering::Relaxed) != 0 {
                counter.store(0, Ordering::Relaxed);
            }
        };
        reset(step);
        // Who answers has been reached.
        reset(Step::Connect);
    }

    /// Nothing more will be known of it.
    pub fn end(&mut self, began: u64, now: u64) {
        if std::mem::take(&mut self.is_trial)
            && let Some(group) = self.health.group.upgrade()
        {
            let members = group.members.lock();
            group.change(&members, &self.health, |at| at.undecided(began, now));
        }
    }
}

impl Counts {
    pub fn ejections(&self, step: Step) -> u64 {
        self.ejections[step as usize].load(Ordering::Relaxed)
    }

    /// Trials that went well, and those that failed.
    pub fn trials(&self) -> [u64; 2] {
        self.trials.each_ref().map(|count| count.load(Ordering::Relaxed))
    }
}
