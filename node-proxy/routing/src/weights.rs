//! Shares by weight that hold from the first hundred requests on: a low-variance choice instead of dice.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::compile::CompiledRoute;
use crate::model::{Action, RouteKey, Target};

/// A choice among backends by weight. The k-th pick stands at `(phase + k * stride) mod sum` of the weights laid end to
/// end; the stride has no divisor in common with the sum, so any `sum` picks in a row hold every share exactly, and it is
/// near the sum's golden section, so a part of them comes close. Shared by threads without a lock.
#[derive(Debug)]
pub struct Wheel {
    /// Where each backend's part ends, after division of all weights by their greatest common divisor.
    ends: Box<[u64]>,
    stride: u64,
    phase: u64,
    picks: AtomicU64,
}

impl Wheel {
    /// Starts at a random phase: a thousand proxies with one request each keep the shares too.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Wheel {
        Wheel::starting_at(weights, RandomState::new().hash_one(()))
    }

    /// Starts at `phase` modulo the sum of the weights (divided by their greatest common divisor).
    pub fn starting_at(weights: impl IntoIterator<Item = u32>, phase: u64) -> Wheel {
        let weights: Vec<u64> = weights.into_iter().map(u64::from).collect();
        let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, *weight)).max(1);
        let ends: Box<[u64]> = weights
            .iter()
            .scan(0, |sum, weight| {
                *sum += weight / divisor;
                Some(*sum)
            })
            .collect();
        let sum = ends.last().copied().unwrap_or(0);
        Wheel { stride: stride(sum), phase: phase % sum.max(1), ends, picks: AtomicU64::new(0) }
    }

    /// The place of the next backend; `None` if there is none of weight above 0.
    pub fn pick(&self) -> Option<usize> {
        let sum = *self.ends.last()?;
        if sum == 0 {
            return None;
        }
        let pick = self.picks.fetch_add(1, Ordering::Relaxed) % sum;
        let place = match pick.checked_mul(self.stride).and_then(|turned| turned.checked_add(self.phase)) {
            Some(place) => place % sum,
            None => wide_place(pick, self.stride, self.phase, sum),
        };
        Some(self.ends.partition_point(|end| *end <= place))
    }
}

/// For sums above 2^32, which two weights near their maximum make.
fn wide_place(pick: u64, stride: u64, phase: u64, sum: u64) -> u64 {
    let place = (u128::from(pick) * u128::from(stride) + u128::from(phase)) % u128::from(sum);
    u64::try_from(place).unwrap_or(0)
}

fn stride(sum: u64) -> u64 {
    const GOLDEN_SECTION: u128 = 11_400_714_819_323_198_485; // of 2^64
    let wanted = u64::try_from((u128::from(sum) * GOLDEN_SECTION) >> 64).unwrap_or(0);
    let coprime = |stride: &u64| (1..sum).contains(stride) && gcd(*stride, sum) == 1;
    let near =
        (0..=sum / 2 + 1).flat_map(|distance| [wanted.checked_sub(distance), wanted.checked_add(distance)]);
    near.flatten().find(coprime).unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What makes two rules of successive snapshots the same choice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct WheelKey {
    parent: Arc<str>,
    route: RouteKey,
    rule: RuleName,
    backends: Vec<(Target, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum RuleName {
    Given(Arc<str>),
    Index(usize),
}

/// The wheels in use, so that a rule whose backends and weights did not change goes on where it was, whatever else of the
/// snapshot changes.
#[derive(Debug, Default)]
pub struct Wheels {
    wheels: Mutex<HashMap<WheelKey, Weak<Wheel>>>,
}

impl Wheels {
    /// Gives the rules of a route their wheels: those that the same rules already turn in another snapshot, else new ones.
    /// `parent` names what the route is attached to, for every parent counts its own requests. To be called before the
    /// route serves its first request, and while the snapshot that it replaces is alive.
    pub fn adopt(&self, parent: &Arc<str>, route: &CompiledRoute) {
        let mut wheels = self.wheels.lock();
        for rule in route.rules() {
            let Action::Forward(backends) = rule.action() else { continue };
            let key = WheelKey {
                parent: Arc::clone(parent),
                route: rule.key().clone(),
                rule: rule
                    .name()
                    .map_or(RuleName::Index(rule.index()), |name| RuleName::Given(Arc::clone(name))),
                backends: backends.iter().map(|backend| (backend.target.clone(), backend.weight)).collect(),
            };
            let slot = wheels.entry(key).or_default();
            let wheel = rule
                .wheel
                .get_or_init(|| slot.upgrade().unwrap_or_else(|| Arc::new(Wheel::new(rule.weights()))));
            *slot = Arc::downgrade(wheel);
        }
    }

    /// Forgets wheels that no rule turns any more: once per snapshot.
    pub fn forget_unused(&self) {
        self.wheels.lock().retain(|_, wheel| wheel.strong_count() > 0);
    }

    /// Wheels kept, for metrics and tests.
    pub fn len(&self) -> usize {
        self.wheels.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
