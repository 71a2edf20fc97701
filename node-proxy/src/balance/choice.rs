//! The choice among the endpoints of one version of a Service's endpoint set: near ones before others while enough of them are
//! in, what is ejected only for its trial, and of two random ones the less loaded.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use super::Candidate;
use super::group::Group;
use super::load::Carried;
use super::standing::nanos;
use super::usable::Nearness;
use crate::state::EndpointSet;
use crate::state::model::Service;

/// Pairs drawn before an endpoint that failed lately is taken all the same.
const DRAWS: usize = 4;
/// Clients whose endpoint is remembered per Service port; beyond it, it is worked out anew.
const STICKY_CLIENTS: usize = 4096;
/// What is known of a Service that is not called is kept for so long.
const KEPT: Duration = Duration::from_secs(600);
/// Near endpoints are used alone while at least one in so many of them is in.
const ENOUGH: usize = 2;
/// Requests under way to a near endpoint from which on it may be overloaded.
const BUSY: u32 = 16;
/// It is overloaded when it has so many times the requests under way that an endpoint farther away would have.
const BUSIER: u32 = 4;

/// The usable endpoints of one version of a Service's endpoint set, as one worker sees them.
#[derive(Debug)]
pub struct Usable {
    pub service: Arc<Service>,
    pub endpoints: Arc<EndpointSet>,
    /// The nearest first.
    candidates: Vec<Candidate>,
    /// How many are as near as that, or nearer.
    ends: [usize; 3],
    /// None where endpoints are not ejected.
    group: Option<Arc<Group>>,
    now_in: NowIn,
    sticky: HashMap<IpAddr, Sticky>,
    picked_at: u64,
    /// Candidates looked at, so that a test can tell how many.
    looked: Cell<usize>,
}

/// Indexes of candidates, as they stood at that version of the group.
#[derive(Debug, Default)]
struct NowIn {
    version: u64,
    used: Vec<usize>,
    ends: [usize; 3],
    ejected: Vec<usize>,
}

/// Of one client: where it belongs, and where it goes while that is ejected.
#[derive(Clone, Copy, Debug)]
struct Sticky {
    favourite: usize,
    current: usize,
}

/// Which endpoint, and whether this is its trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picked {
    pub index: usize,
    pub is_trial: bool,
}

/// For whom an endpoint is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    pub client: IpAddr,
    pub carried: Carried,
    /// By now.
    pub tried: &'a [Candidate],
    pub now: u64,
}

impl Usable {
    /// `candidates`: the nearest first, each with how near it is.
    pub fn new(
        service: Arc<Service>,
        endpoints: Arc<EndpointSet>,
        candidates: Vec<(Candidate, Nearness)>,
        group: Option<Arc<Group>>,
    ) -> Self {
        let ends = Nearness::ALL.map(|at| candidates.partition_point(|(_, nearness)| *nearness <= at));
        let candidates = candidates.into_iter().map(|(candidate, _)| candidate).collect();
        let mut usable = Self {
            service,
            endpoints,
            candidates,
            ends,
            group,
            now_in: NowIn::default(),
            sticky: HashMap::new(),
            picked_at: 0,
            looked: Cell::new(0),
        };
        usable.look_again();
        usable
    }

    /// Whether nobody has asked for so long that it is not worth keeping.
    pub fn is_forgotten(&self, now: u64) -> bool {
        now.saturating_sub(self.picked_at) > nanos(KEPT)
    }

    /// None where endpoints are not ejected.
    pub fn group(&self) -> Option<&Arc<Group>> {
        self.group.as_ref()
    }

    pub fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    pub fn candidate(&self, index: usize) -> &Candidate {
        self.looked.set(self.looked.get() + 1);
        &self.candidates[index]
    }

    #[cfg(test)]
    pub fn ejected_count(&self) -> usize {
        self.candidates.iter().filter(|candidate| candidate.is_ejected()).count()
    }

    #[cfg(test)]
    pub fn looked(&self) -> usize {
        self.looked.get()
    }

    /// `None` when all have been tried.
    pub fn pick(&mut self, random: &mut impl Rng, caller: Caller<'_>) -> Option<Picked> {
        self.picked_at = caller.now;
        if self.group.as_ref().is_some_and(|group| group.version() != self.now_in.version) {
            self.look_again();
        }
        if self.service.client_ip_affinity.is_some() {
            return self.sticky(caller);
        }
        if let Some(index) = self.due(caller) {
            return Some(Picked { index, is_trial: true });
        }
        self.balanced(random, caller).map(|index| Picked { index, is_trial: false })
    }

    fn look_again(&mut self) {
        // Read before the endpoints are: what changes meanwhile is looked at once more.
        let version = self.group.as_ref().map_or(0, |group| group.version());
        let all = 0..self.candidates.len();
        let (ejected, mut used): (Vec<usize>, Vec<usize>) =
            all.clone().partition(|index| self.candidates[*index].is_ejected());
        if used.is_empty() {
            // Any is better than none.
            used = all.collect();
        }
        let ends = self.ends.map(|end| used.partition_point(|index| *index < end));
        self.now_in = NowIn { version, used, ends, ejected };
        self.sticky.clear();
    }

    /// An ejected endpoint that is due for its trial, and now has it.
    fn due(&self, caller: Caller<'_>) -> Option<usize> {
        let group = self.group.as_ref()?;
        if self.now_in.ejected.is_empty() || !group.is_due(caller.now) {
            return None;
        }
        let mut ejected = self.now_in.ejected.iter().copied();
        ejected.find(|index| {
            let candidate = self.candidate(*index);
            !is_tried(candidate, caller.tried) && candidate.claim(caller.now)
        })
    }

    /// The least nearness whose endpoints are used without those beyond.
    fn level(&self) -> usize {
        let enough = |level: &usize| {
            let (all, used) = (self.ends[*level], self.now_in.ends[*level]);
            used > 0 && used * ENOUGH >= all
        };
        (0..2).find(enough).unwrap_or(2)
    }

    fn balanced(&self, random: &mut impl Rng, caller: Caller<'_>) -> Option<usize> {
        let NowIn { used, ends, .. } = &self.now_in;
        let nearest = self.level();
        let mut fallback = None;
        for level in (nearest..3).filter(|level| *level == nearest || ends[*level] > ends[*level - 1]) {
            // Level by level: what is near and failed lately is not better than what is not near.
            match self.two_choices(random, &used[..ends[level]], caller) {
                Some(Choice::Good(index)) => return Some(self.relieved(random, index, level, caller)),
                Some(Choice::Failed(index)) => fallback = fallback.or(Some(index)),
                None => {}
            }
        }
        fallback.or_else(|| self.last_resort(caller))
    }

    /// When no endpoint that is in could be reached, and all were tried.
    fn last_resort(&self, caller: Caller<'_>) -> Option<usize> {
        let is_unreached = |index: &usize| self.candidate(*index).load.failed_lately(caller.now);
        let mut untried =
            self.now_in.ejected.iter().filter(|index| !is_tried(self.candidate(**index), caller.tried));
        untried.next().copied().filter(|_| self.now_in.used.iter().all(is_unreached))
    }

    /// The same endpoint, or one farther away if it is overloaded. How many connections are open says nothing of load.
    fn relieved(&self, random: &mut impl Rng, near: usize, level: usize, caller: Caller<'_>) -> usize {
        let in_flight = |index: usize| self.candidate(index).load.in_flight();
        let busy = in_flight(near);
        if level == 2 || caller.carried == Carried::Connections || busy < BUSY {
            return near;
        }
        let NowIn { used, ends, .. } = &self.now_in;
        let beyond = (level + 1..3).map(|farther| &used[ends[level]..ends[farther]]);
        let Some(beyond) = beyond.into_iter().find(|beyond| !beyond.is_empty()) else { return near };
        match self.two_choices(random, beyond, caller) {
            Some(Choice::Good(far)) if busy >= BUSIER * (in_flight(far) + 1) => far,
            _ => near,
        }
    }

    fn two_choices(&self, random: &mut impl Rng, pool: &[usize], caller: Caller<'_>) -> Option<Choice> {
        if pool.is_empty() {
            return None;
        }
        let mut fallback = None;
        for _ in 0..DRAWS {
            let (one, other) = draw_two(random, pool.len());
            for index in self.better_first(random, (pool[one], pool[other]), caller.now) {
                let candidate = self.candidate(index);
                if is_tried(candidate, caller.tried) {
                    continue;
                }
                if !candidate.load.failed_lately(caller.now) {
                    return Some(Choice::Good(index));
                }
                fallback.get_or_insert(index);
            }
        }
        // Rare: only after failures. From a random start, so that not everyone lands on the same one.
        let start = random.random_range(0..pool.len());
        let untried = || {
            (0..pool.len())
                .map(|offset| pool[(start + offset) % pool.len()])
                .filter(|index| !is_tried(self.candidate(*index), caller.tried))
        };
        let good = untried().find(|index| !self.candidate(*index).load.failed_lately(caller.now));
        good.map(Choice::Good).or_else(|| fallback.or_else(|| untried().next()).map(Choice::Failed))
    }

    /// The less loaded of the two first, most of the time ([`chance_against`](super::EndpointLoad::chance_against)).
    fn better_first(&self, random: &mut impl Rng, (one, other): (usize, usize), now: u64) -> [usize; 2] {
        let chance = self.candidate(one).load.chance_against(&self.candidate(other).load, now);
        if random.random_bool(chance.clamp(0.0, 1.0)) { [one, other] } else { [other, one] }
    }

    /// `sessionAffinity: ClientIP`: the endpoint with the highest hash of client and endpoint, so that every worker and
    /// every node agrees without shared state, and only clients of an endpoint that is gone or ejected move. As it depends on
    /// nothing but the client and the endpoints, no timeout can end the affinity early. The trial of an ejected endpoint is
    /// for those that belong to it.
    fn sticky(&mut self, caller: Caller<'_>) -> Option<Picked> {
        let Sticky { favourite, current } = self.sticky_of(caller.client)?;
        let may = |index: usize| !is_tried(&self.candidates[index], caller.tried);
        if may(favourite) && self.candidates[favourite].claim(caller.now) {
            return Some(Picked { index: favourite, is_trial: true });
        }
        let is_good = |index: usize| may(index) && !self.candidates[index].load.failed_lately(caller.now);
        let used = &self.now_in.used;
        let index = Some(current)
            .filter(|index| is_good(*index))
            .or_else(|| self.highest(used.iter().copied().filter(|index| is_good(*index)), caller.client))
            .or_else(|| self.highest(used.iter().copied().filter(|index| may(*index)), caller.client))
            .or_else(|| self.last_resort(caller));
        index.map(|index| Picked { index, is_trial: false })
    }

    fn sticky_of(&mut self, client: IpAddr) -> Option<Sticky> {
        if let Some(known) = self.sticky.get(&client) {
            return Some(*known);
        }
        let level = self.level();
        let favourite = self.highest(0..self.ends[level], client)?;
        let used = &self.now_in.used[..self.now_in.ends[level]];
        let current = self.highest(used.iter().copied(), client).unwrap_or(favourite);
        let sticky = Sticky { favourite, current };
        if self.sticky.len() < STICKY_CLIENTS {
            self.sticky.insert(client, sticky);
        }
        Some(sticky)
    }

    fn highest(&self, indexes: impl Iterator<Item = usize>, client: IpAddr) -> Option<usize> {
        indexes.max_by_key(|index| {
            let candidate = self.candidate(*index);
            let mut hasher = DefaultHasher::new();
            (client, &candidate.workload.uid, candidate.target_port).hash(&mut hasher);
            hasher.finish()
        })
    }
}

/// What two random draws have come to.
#[derive(Clone, Copy, Debug)]
enum Choice {
    Good(usize),
    /// All that was not tried has failed lately.
    Failed(usize),
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
