//! Whether an endpoint is used. One that fails time after time is ejected: passed over for a while, longer each time, until a
//! single try, its trial, goes well. Pure; times are nanoseconds of one clock.

use std::time::Duration;

use crate::state::model::Ejection;

/// How long an endpoint must have been back for one of its ejections to be forgotten.
const FORGIVEN: Duration = Duration::from_secs(10);
/// A trial of which nothing is heard for this long is not waited for.
const TRIAL: Duration = Duration::from_secs(10);
/// Of the time of an ejection, what is added at random, at most: so that the nodes of a cluster do not come back as one.
const JITTER: f64 = 0.5;
/// Doubled more often than that, any time there is has reached any maximum that can be set.
const MOST_TIMES: u32 = 32;

/// What of a try has gone well or failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Making the connection.
    Connect,
    /// The first that is heard: the head of a response.
    Answer,
    /// What comes after it. Of a connection that carries bytes: all that it carries.
    Rest,
}

impl Step {
    pub const ALL: [Self; 3] = [Self::Connect, Self::Answer, Self::Rest];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Answer => "answer",
            Self::Rest => "rest",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    In {
        since: u64,
        /// How often it was ejected in a row.
        times: u32,
    },
    Ejected {
        since: u64,
        /// Then it may be tried.
        until: u64,
        times: u32,
    },
}

impl Default for Standing {
    fn default() -> Self {
        Self::In { since: 0, times: 0 }
    }
}

impl Standing {
    /// It failed often enough. `random` is below 1.
    pub fn eject(self, now: u64, settings: Ejection, random: f64) -> Self {
        let Self::In { since, times } = self else { return self };
        let forgiven = now.saturating_sub(since) / nanos(FORGIVEN);
        let times = times.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX));
        Self::out(now, now, times, settings, random)
    }

    /// Whether it may be tried now; then nobody else may for a while.
    pub fn claim(self, now: u64) -> Option<Self> {
        match self {
            Self::Ejected { since, until, times } if until <= now => {
                Some(Self::Ejected { since, until: now.saturating_add(nanos(TRIAL)), times })
            }
            _ => None,
        }
    }

    /// What was tried since `began` has gone well.
    pub fn passed(self, began: u64, now: u64) -> Self {
        match self {
            Self::Ejected { since, times, .. } if since <= began => Self::In { since: now, times },
            _ => self,
        }
    }

    /// The trial that began then has failed.
    pub fn failed(self, began: u64, now: u64, settings: Ejection, random: f64) -> Self {
        match self {
            Self::Ejected { since, times, .. } if since <= began => {
                Self::out(since, now, times, settings, random)
            }
            _ => self,
        }
    }

    /// Nothing will be known of the trial: another one may follow at once.
    pub fn undecided(self, began: u64, now: u64) -> Self {
        match self {
            Self::Ejected { since, times, .. } if since <= began => {
                Self::Ejected { since, until: now, times }
            }
            _ => self,
        }
    }

    /// It may not be out any longer.
    pub fn lifted(self, now: u64) -> Self {
        match self {
            Self::Ejected { times, .. } => Self::In { since: now, times },
            Self::In { .. } => self,
        }
    }

    fn out(since: u64, now: u64, times: u32, settings: Ejection, random: f64) -> Self {
        let out_for = out_for(times, settings).mul_f64(1.0 + JITTER * random);
        Self::Ejected {
            since,
            until: now.saturating_add(nanos(out_for)),
            times: times.saturating_add(1).min(MOST_TIMES),
        }
    }
}

/// How long an endpoint is out that was ejected so many times before.
fn out_for(times: u32, settings: Ejection) -> Duration {
    let doubled = settings.base.checked_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX));
    doubled.unwrap_or(settings.max).min(settings.max)
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn times(standing: Standing) -> u32 {
        match standing {
            Standing::In { times, .. } | Standing::Ejected { times, .. } => times,
        }
    }

    #[test]
    fn each_ejection_lasts_twice_as_long_up_to_the_maximum() {
        let settings = Ejection { max: Duration::from_secs(20), ..Ejection::default() };
        let mut standing = Standing::default().eject(0, settings, 0.0);
        let mut now = 0;
        for seconds in [1, 2, 4, 8, 16, 20, 20] {
            let Standing::Ejected { until, .. } = standing else { panic!("{standing:?}") };
            assert_eq!(until - now, seconds * SECOND);
            assert_eq!(standing.claim(until - 1), None);
            now = until;
            let tried = standing.claim(now).unwrap();
            assert_eq!(tried.claim(now), None, "one at a time");
            standing = tried.failed(now, now, settings, 0.0);
        }
        assert!((0..100).all(|times| out_for(times, settings) <= settings.max));
    }

    #[test]
    fn up_to_half_is_added_at_random() {
        for (random, expected) in [(0.0, SECOND), (0.5, SECOND * 5 / 4), (0.999, SECOND * 3 / 2)] {
            let standing = Standing::default().eject(0, Ejection::default(), random);
            let Standing::Ejected { until, .. } = standing else { panic!("{standing:?}") };
            assert!(until.abs_diff(expected) < SECOND / 1000, "{random}: {until}");
        }
    }

    #[test]
    fn a_time_back_without_failures_is_forgiven_step_by_step() {
        let settings = Ejection::default();
        let back = Standing::In { since: 0, times: 4 };
        for (seconds, expected) in [(0, 5), (9, 5), (10, 4), (39, 2), (40, 1), (4000, 1)] {
            assert_eq!(times(back.eject(seconds * SECOND, settings, 0.0)), expected, "{seconds} s");
        }
    }

    #[test]
    fn what_began_before_the_ejection_says_nothing() {
        let settings = Ejection::default();
        let out = Standing::default().eject(5, settings, 0.0);
        assert_eq!(out.passed(4, 6), out);
        assert_eq!(out.failed(4, 6, settings, 0.0), out);
        assert_eq!(out.undecided(4, 6), out);
        assert_eq!(out.passed(5, 6), Standing::In { since: 6, times: 1 });
        assert_eq!(out.undecided(5, 6), Standing::Ejected { since: 5, until: 6, times: 1 });
    }

    #[test]
    fn a_trial_that_is_not_heard_of_is_followed_by_another() {
        let out = Standing::default().eject(0, Ejection::default(), 0.0);
        let tried = out.claim(2 * SECOND).unwrap();
        assert_eq!(tried.claim(11 * SECOND), None);
        assert!(tried.claim(12 * SECOND).is_some());
    }
}
