//! Who leads, decided from what was seen. No I/O, no clock.

use std::time::Duration;

use tokio::time::Instant;

/// A Lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Empty: released.
    pub holder: String,
    pub duration: Duration,
    pub transitions: i32,
    /// Changes with every write.
    pub resource_version: String,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is no Lease.
    Create,
    /// It is ours to hold, or free: write it over this version.
    Write { over: String, transitions: i32 },
    /// Somebody else holds it, until then unless it is written again.
    Wait { until: Instant },
}

/// One candidate's view.
#[derive(Clone, Debug)]
pub struct Election {
    identity: String,
    duration: Duration,
    /// The Lease as last seen, and since when it has not changed.
    seen: Option<(Seen, Instant)>,
    /// Until when this candidate leads.
    leads_until: Option<Instant>,
}

impl Election {
    /// `identity` names this candidate and nobody else.
    pub fn new(identity: impl Into<String>, duration: Duration) -> Self {
        Self { identity: identity.into(), duration, seen: None, leads_until: None }
    }

    pub fn identity(&self) -> &str {
        &self.identity
    }

    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// Between two writes of a holder, and between two looks of the others.
    pub fn period(&self) -> Duration {
        self.duration / 6
    }

    /// Takes note of what was read; None: there is no Lease.
    pub fn saw(&mut self, lease: Option<Seen>, now: Instant) {
        match lease {
            None => self.seen = None,
            Some(lease) => {
                if self.seen.as_ref().is_none_or(|(known, _)| *known != lease) {
                    self.seen = Some((lease, now));
                }
            }
        }
        if self.seen.as_ref().is_none_or(|(lease, _)| lease.holder != self.identity) {
            self.leads_until = None;
        }
    }

    /// What to do now.
    pub fn step(&self, now: Instant) -> Step {
        let Some((lease, since)) = &self.seen else { return Step::Create };
        let own = lease.holder == self.identity;
        let until = *since + lease.duration;
        if own || lease.holder.is_empty() || until <= now {
            let transitions = lease.transitions.saturating_add(i32::from(!own));
            return Step::Write { over: lease.resource_version.clone(), transitions };
        }
        Step::Wait { until }
    }

    /// The write that was sent at `sent` has succeeded, with this result.
    pub fn wrote(&mut self, lease: Seen, sent: Instant) {
        self.leads_until = Some(sent + self.duration * 2 / 3);
        self.seen = Some((lease, sent));
    }

    /// Until when this candidate leads; None when it does not at `now`.
    pub fn leads(&self, now: Instant) -> Option<Instant> {
        self.leads_until.filter(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(15);

    fn lease(holder: &str, version: u32, transitions: i32) -> Seen {
        Seen {
            holder: holder.to_owned(),
            duration: DURATION,
            transitions,
            resource_version: version.to_string(),
        }
    }

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn the_first_creates_and_leads_for_less_than_the_others_wait() {
        let start = Instant::now();
        let (mut a, mut b) = (Election::new("a", DURATION), Election::new("b", DURATION));
        a.saw(None, start);
        assert_eq!(a.step(start), Step::Create);
        assert_eq!(a.leads(start), None, "not before the write has succeeded");
        a.wrote(lease("a", 1, 0), start);
        assert_eq!(a.leads(start), Some(at(start, 10.0)));

        b.saw(Some(lease("a", 1, 0)), at(start, 1.0));
        assert_eq!(b.step(at(start, 1.0)), Step::Wait { until: at(start, 16.0) });
        // Nothing is heard of a any more.
        assert_eq!(a.leads(at(start, 10.0)), None);
        assert_eq!(b.step(at(start, 15.9)), Step::Wait { until: at(start, 16.0) });
        let taken = Step::Write { over: "1".to_owned(), transitions: 1 };
        assert_eq!(b.step(at(start, 16.0)), taken);
        b.wrote(lease("b", 2, 1), at(start, 16.0));
        assert!(b.leads(at(start, 17.0)).is_some() && a.leads(at(start, 17.0)).is_none());
        a.saw(Some(lease("b", 2, 1)), at(start, 17.0));
        assert!(matches!(a.step(at(start, 18.0)), Step::Wait { .. }));
    }

    #[test]
    fn a_renewed_lease_is_waited_for_anew() {
        let start = Instant::now();
        let mut b = Election::new("b", DURATION);
        for renewal in 0..20 {
            let now = at(start, f64::from(renewal) * 10.0);
            b.saw(Some(lease("a", renewal, 0)), now);
            assert_eq!(b.step(at(now.max(start), 0.0)), Step::Wait { until: now + DURATION });
            // Seen once more, unchanged: still counted from when it changed.
            b.saw(Some(lease("a", renewal, 0)), now + Duration::from_secs(9));
            assert_eq!(b.step(now + Duration::from_secs(9)), Step::Wait { until: now + DURATION });
        }
    }

    #[test]
    fn a_late_answer_counts_from_when_it_was_asked() {
        let start = Instant::now();
        let mut a = Election::new("a", DURATION);
        a.saw(None, start);
        a.wrote(lease("a", 1, 0), start);
        // The answer took nine seconds.
        assert_eq!(a.leads(at(start, 9.0)), Some(at(start, 10.0)));
        assert_eq!(a.leads(at(start, 11.0)), None);
        // Still ours: written again, without a transition.
        assert_eq!(a.step(at(start, 11.0)), Step::Write { over: "1".to_owned(), transitions: 0 });
    }

    #[test]
    fn who_sees_another_holder_stops_at_once() {
        let start = Instant::now();
        let mut a = Election::new("a", DURATION);
        a.wrote(lease("a", 1, 0), start);
        a.saw(Some(lease("b", 2, 1)), at(start, 1.0));
        assert_eq!(a.leads(at(start, 1.0)), None);
        a.wrote(lease("a", 3, 2), at(start, 20.0));
        a.saw(None, at(start, 21.0));
        assert_eq!((a.leads(at(start, 21.0)), a.step(at(start, 21.0))), (None, Step::Create));
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let start = Instant::now();
        let mut b = Election::new("b", DURATION);
        b.saw(Some(lease("", 4, 1)), start);
        assert_eq!(b.step(start), Step::Write { over: "4".to_owned(), transitions: 2 });
    }

    #[test]
    fn a_restarted_candidate_of_another_name_waits_for_its_former_self() {
        let start = Instant::now();
        let mut again = Election::new("a-2", DURATION);
        again.saw(Some(lease("a-1", 1, 0)), start);
        assert_eq!(again.step(start), Step::Wait { until: start + DURATION });
    }
}
