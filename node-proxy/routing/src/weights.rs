//! Shares by weight that hold from the first hundred requests on: a low-variance choice instead of dice.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::compile::{self, CompiledRoute, MirrorPlace};
use crate::model::{Action, RouteKey, Target};

/// A choice among backends by weight. Picks are numbered from a phase on. Of the first `n` picks the heaviest backend has
/// `n * weight / sum`, rounded down; those that it does not get are numbered anew and shared among the others in the same
/// way. So any `sum` picks in a row hold every share exactly, of two backends each is within one pick of its share at any
/// time, and of sixteen within three. Shared by threads without a lock.
#[derive(Debug)]
pub struct Wheel {
    /// Heaviest first, none of weight 0.
    parts: Box<[Part]>,
    phase: u64,
    picks: AtomicU64,
}

#[derive(Debug)]
struct Part {
    /// Its place among the backends.
    index: usize,
    weight: u64,
    /// Of its own weight and those after it.
    total: u64,
}

impl Wheel {
    /// Starts at a random phase: a thousand proxies with one request each keep the shares too.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Wheel {
        Wheel::starting_at(weights, RandomState::new().hash_one(()))
    }

    /// Starts at `phase` modulo the sum of the weights.
    pub fn starting_at(weights: impl IntoIterator<Item = u32>, phase: u64) -> Wheel {
        let weights = weights.into_iter().map(u64::from).enumerate().filter(|(_, weight)| *weight > 0);
        let mut weights: Vec<(usize, u64)> = weights.collect();
        weights.sort_by_key(|(_, weight)| Reverse(*weight));
        let sum: u64 = weights.iter().map(|(_, weight)| weight).sum();
        let mut total = sum;
        let mut part = |(index, weight)| {
            let part = Part { index, weight, total };
            total -= weight;
            part
        };
        let parts = weights.into_iter().map(&mut part).collect();
        Wheel { parts, phase: phase % sum.max(1), picks: AtomicU64::new(0) }
    }

    /// The place of the next backend; `None` if there is none of weight above 0.
    pub fn pick(&self) -> Option<usize> {
        let sum = self.parts.first()?.total;
        let mut number = (self.picks.fetch_add(1, Ordering::Relaxed) % sum + self.phase) % sum;
        for part in &self.parts {
            let before = part.share_of(number);
            if part.share_of(number + 1) > before {
                return Some(part.index);
            }
            number -= before;
        }
        // Not reached: the last part has its total to itself.
        None
    }
}

impl Part {
    /// How many of the first `number` picks it gets of those that reach it.
    fn share_of(&self, number: u64) -> u64 {
        match number.checked_mul(self.weight) {
            Some(product) => product / self.total,
            // The quotient is at most `number`.
            None => (u128::from(number) * u128::from(self.weight) / u128::from(self.total)) as u64,
        }
    }
}

/// What makes two rules of successive snapshots the same choice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct WheelKey {
    parent: Arc<str>,
    route: RouteKey,
    rule: RuleName,
    choice: Choice,
    parts: Vec<(Target, u32)>,
}

/// What is chosen by a wheel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Choice {
    Backend,
    /// Whether a request is copied.
    Mirror(MirrorPlace),
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
            let backends = backends.iter().map(|backend| (backend.target.clone(), backend.weight)).collect();
            let mirrors = compile::mirrors(rule.rule()).map(|(place, mirror)| {
                (
                    Choice::Mirror(place),
                    mirror.weights().map(|weight| (mirror.target.clone(), weight)).to_vec(),
                )
            });
            let slots = std::iter::once(&rule.wheel).chain(rule.mirrors.iter().map(|(_, wheel)| wheel));
            let choices = std::iter::once((Choice::Backend, backends)).chain(mirrors);
            for ((choice, parts), of_rule) in choices.zip(slots) {
                let key = WheelKey {
                    parent: Arc::clone(parent),
                    route: rule.key().clone(),
                    rule: rule
                        .name()
                        .map_or(RuleName::Index(rule.index()), |name| RuleName::Given(Arc::clone(name))),
                    choice,
                    parts,
                };
                let weights: Vec<u32> = key.parts.iter().map(|(_, weight)| *weight).collect();
                let slot = wheels.entry(key).or_default();
                let wheel =
                    of_rule.get_or_init(|| slot.upgrade().unwrap_or_else(|| Arc::new(Wheel::new(weights))));
                *slot = Arc::downgrade(wheel);
            }
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
