//! How many pods of which template a Deployment wants next: arithmetic only.

use culvert_objects::types::{DeploymentSpec, DeploymentStrategy};
use serde_json::Value;

/// How pods of an old template are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Never fewer than `replicas - unavailable` available pods, never more than `replicas + surge` altogether.
    Rolling { surge: usize, unavailable: usize },
    /// All old pods end before the first new one starts.
    Recreate,
}

impl Strategy {
    /// The strategy as written; one pod at a time on top of the full number where nothing is.
    #[must_use]
    pub fn of(spec: &DeploymentSpec, replicas: usize) -> Self {
        let DeploymentStrategy { kind, rolling_update } = &spec.strategy;
        if kind == "Recreate" {
            return Self::Recreate;
        }
        let written = rolling_update.clone().unwrap_or_default();
        let unavailable = written.max_unavailable.and_then(|value| count(&value, replicas, Round::Down));
        let surge = written.max_surge.and_then(|value| count(&value, replicas, Round::Up));
        match (surge.unwrap_or(1), unavailable.unwrap_or(0)) {
            // Nothing could ever move.
            (0, 0) => Self::Rolling { surge: 0, unavailable: 1 },
            (surge, unavailable) => Self::Rolling { surge, unavailable },
        }
    }
}

#[derive(Clone, Copy)]
enum Round {
    Up,
    Down,
}

/// A count or a percentage of `replicas`.
fn count(value: &Value, replicas: usize, round: Round) -> Option<usize> {
    if let Some(number) = value.as_u64() {
        return usize::try_from(number).ok();
    }
    let percent: usize = value.as_str()?.strip_suffix('%')?.parse().ok()?;
    let hundredths = percent.checked_mul(replicas)?;
    Some(match round {
        Round::Up => hundredths.div_ceil(100),
        Round::Down => hundredths / 100,
    })
}

/// Pods of one template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Not asked to stop.
    pub active: usize,
    /// Of those, available.
    pub available: usize,
    /// Asked to stop, not gone yet.
    pub terminating: usize,
}

/// What to do next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Pods of the new template to create.
    pub create: usize,
    /// Pods of the new template too many.
    pub delete_new: usize,
    /// Old pods to delete that are not available, so that nobody misses them.
    pub delete_old_unavailable: usize,
    /// Old pods to delete that are available.
    pub delete_old_available: usize,
}

/// The next step from old pods to `replicas` new ones.
#[must_use]
pub fn step(replicas: usize, strategy: Strategy, new: Count, old: Count) -> Step {
    let delete_new = new.active.saturating_sub(replicas);
    match strategy {
        Strategy::Recreate => Step {
            create: if old.active + old.terminating == 0 { replicas.saturating_sub(new.active) } else { 0 },
            delete_new,
            delete_old_unavailable: old.active - old.available,
            delete_old_available: old.available,
        },
        Strategy::Rolling { surge, unavailable } => {
            let total = new.active + old.active;
            let room = (replicas + surge).saturating_sub(total);
            let least = replicas.saturating_sub(unavailable);
            // Only so many old pods may go that, were every new one to become available, the least number stood.
            let new_unavailable = new.active - new.available;
            let may_go = total.saturating_sub(least + new_unavailable);
            let delete_old_unavailable = may_go.min(old.active - old.available);
            let spare = (new.available + old.available).saturating_sub(least);
            Step {
                create: replicas.saturating_sub(new.active).min(room),
                delete_new,
                delete_old_unavailable,
                delete_old_available: spare.min(old.available).min(may_go - delete_old_unavailable),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ONE_BY_ONE: Strategy = Strategy::Rolling { surge: 1, unavailable: 0 };

    fn pods(active: usize, available: usize) -> Count {
        Count { active, available, terminating: 0 }
    }

    /// Plays a rollout to its end, new pods becoming available one step after their creation.
    fn play(replicas: usize, strategy: Strategy, mut old: Count) -> (usize, usize, usize) {
        let (mut new, mut most, mut least) = (Count::default(), 0, usize::MAX);
        for round in 0..100 {
            let step = step(replicas, strategy, new, old);
            if step == Step::default() && new.available == new.active {
                return (round, most, least);
            }
            new.available = new.active;
            new.active += step.create;
            old.active -= step.delete_old_unavailable + step.delete_old_available;
            old.available -= step.delete_old_available;
            most = most.max(new.active + old.active);
            least = least.min(new.available + old.available);
        }
        panic!("the rollout never ended: {new:?} {old:?}");
    }

    #[test]
    fn a_rolling_update_keeps_its_promise() {
        for replicas in 1..8 {
            let (_, most, least) = play(replicas, ONE_BY_ONE, pods(replicas, replicas));
            assert_eq!((most, least), (replicas + 1, replicas));
            let strategy = Strategy::Rolling { surge: 0, unavailable: 1 };
            let (_, most, least) = play(replicas, strategy, pods(replicas, replicas));
            assert_eq!((most, least), (replicas, replicas - 1));
        }
    }

    #[test]
    fn old_pods_that_never_worked_do_not_hold_up_a_rollout() {
        let (_, most, _) = play(3, ONE_BY_ONE, pods(3, 0));
        assert_eq!(most, 4);
    }

    #[test]
    fn a_new_template_that_never_works_stops_after_one_pod() {
        assert_eq!(step(3, ONE_BY_ONE, pods(0, 0), pods(3, 3)), Step { create: 1, ..Step::default() });
        assert_eq!(step(3, ONE_BY_ONE, pods(1, 0), pods(3, 3)), Step::default());
    }

    #[test]
    fn recreate_waits_for_the_last_old_pod() {
        let leaving = Count { active: 0, available: 0, terminating: 1 };
        let first = step(2, Strategy::Recreate, pods(0, 0), pods(2, 1));
        assert_eq!(first, Step { delete_old_unavailable: 1, delete_old_available: 1, ..Step::default() });
        assert_eq!(step(2, Strategy::Recreate, pods(0, 0), leaving), Step::default());
        assert_eq!(step(2, Strategy::Recreate, pods(0, 0), pods(0, 0)).create, 2);
    }

    #[test]
    fn scaling_is_the_same_arithmetic() {
        assert_eq!(step(5, ONE_BY_ONE, pods(2, 2), pods(0, 0)).create, 3);
        assert_eq!(step(1, ONE_BY_ONE, pods(4, 4), pods(0, 0)).delete_new, 3);
        assert_eq!(step(0, ONE_BY_ONE, pods(0, 0), pods(2, 2)).delete_old_available, 2);
    }

    #[test]
    fn strategies_are_read_as_written() {
        let of = |strategy: Value, replicas| {
            let spec: DeploymentSpec = serde_json::from_value(json!({"strategy": strategy})).unwrap();
            Strategy::of(&spec, replicas)
        };
        assert_eq!(of(json!({}), 3), ONE_BY_ONE);
        assert_eq!(of(json!({"type": "Recreate"}), 3), Strategy::Recreate);
        let percent = json!({"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}});
        assert_eq!(of(percent, 3), Strategy::Rolling { surge: 1, unavailable: 0 });
        let stuck = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}});
        assert_eq!(of(stuck, 3), Strategy::Rolling { surge: 0, unavailable: 1 });
    }
}
