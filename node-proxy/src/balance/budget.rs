//! Retry budgets (GEP-3388): so that a backend that fails is not asked ever more often by those that it failed. One per Service and
//! node, in relaxed atomics shared by its workers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::state::model::RetryBudget;

/// Parts of an interval that are counted apart: what is older than the interval goes one part at a time.
const SLOTS: usize = 10;

/// What was asked and asked again of one Service of late.
#[derive(Debug)]
pub struct Budget {
    settings: RetryBudget,
    started: Instant,
    requests: Window,
    retries: Window,
    /// Retries again, over the shorter interval of the least rate.
    recent: Window,
}

/// Counts over an interval that moves.
#[derive(Debug)]
struct Window {
    width: Duration,
    /// The number of the part in the upper half, its count in the lower.
    slots: [AtomicU64; SLOTS],
}

impl Budget {
    pub fn new(settings: RetryBudget, started: Instant) -> Self {
        Self {
            settings,
            started,
            requests: Window::of(settings.interval),
            retries: Window::of(settings.interval),
            recent: Window::of(settings.min_interval),
        }
    }

    pub fn settings(&self) -> RetryBudget {
        self.settings
    }

    /// A request is sent for the first time.
    pub fn asked(&self, now: Instant) {
        self.requests.add(now.duration_since(self.started));
    }

    /// Whether one may be sent again; then it counts.
    pub fn take(&self, now: Instant) -> bool {
        let at = now.duration_since(self.started);
        let share = self.requests.sum(at) * u64::from(self.settings.percent);
        let may = (self.retries.sum(at) + 1) * 100 <= share
            || self.recent.sum(at) < u64::from(self.settings.min_retries);
        if may {
            self.retries.add(at);
            self.recent.add(at);
        }
        may
    }
}

impl Window {
    fn of(interval: Duration) -> Self {
        let width = (interval / SLOTS as u32).max(Duration::from_nanos(1));
        Self { width, slots: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    fn number(&self, at: Duration) -> u64 {
        // From 1, so that a slot that was never used is not the first one.
        let number = at.as_nanos() / self.width.as_nanos() + 1;
        u64::try_from(number).unwrap_or(u64::MAX) & u64::from(u32::MAX)
    }

    fn add(&self, at: Duration) {
        let number = self.number(at);
        let count = |slot: u64| {
            let is_current = slot >> 32 == number;
            let count = if is_current { (slot & u64::from(u32::MAX)).saturating_add(1) } else { 1 };
            Some(number << 32 | count.min(u64::from(u32::MAX)))
        };
        let slot = &self.slots[(number % SLOTS as u64) as usize];
        // The closure always has an answer.
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count);
    }

    fn sum(&self, at: Duration) -> u64 {
        let number = self.number(at);
        let slots = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
        let counts = slots.filter(|slot| number.wrapping_sub(slot >> 32) < SLOTS as u64);
        counts.map(|slot| slot & u64::from(u32::MAX)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(budget: &Budget, wanted: usize, now: Instant) -> usize {
        (0..wanted).filter(|_| budget.take(now)).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_fifth_of_the_requests_of_ten_seconds_and_ten_in_a_second_at_least() {
        let budget = Budget::new(RetryBudget::default(), Instant::now());
        assert_eq!(taken(&budget, 100, Instant::now()), 10, "before any request");
        tokio::time::advance(Duration::from_secs(1)).await;
        (0..1000).for_each(|_| budget.asked(Instant::now()));
        assert_eq!(taken(&budget, 1000, Instant::now()), 190, "with the ten before, a fifth of a thousand");
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(taken(&budget, 100, Instant::now()), 0);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(taken(&budget, 100, Instant::now()), 10, "the least rate goes on");
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(taken(&budget, 100, Instant::now()), 10, "what was long ago does not count");
    }

    #[tokio::test(start_paused = true)]
    async fn settings_are_kept_to_the_request() {
        for (percent, min_retries, asked, expected) in
            [(0, 0, 100, 0), (0, 3, 100, 3), (100, 0, 100, 100), (50, 1, 7, 3), (20, 0, 4, 0), (20, 0, 5, 1)]
        {
            let settings = RetryBudget { percent, min_retries, ..RetryBudget::default() };
            let budget = Budget::new(settings, Instant::now());
            (0..asked).for_each(|_| budget.asked(Instant::now()));
            assert_eq!(taken(&budget, 1000, Instant::now()), expected, "{settings:?}");
        }
    }

    /// Against a list of all that happened.
    #[tokio::test(start_paused = true)]
    async fn a_window_counts_what_happened_within_its_interval() {
        let interval = Duration::from_secs(10);
        let (window, started) = (Window::of(interval), Instant::now());
        let mut happened: Vec<Duration> = Vec::new();
        for step in 0..400_u64 {
            tokio::time::advance(Duration::from_millis(37 * (step % 7))).await;
            let at = started.elapsed();
            (0..step % 4).for_each(|_| {
                window.add(at);
                happened.push(at);
            });
            let within = |interval: Duration| happened.iter().filter(|then| at - **then < interval).count();
            let found = usize::try_from(window.sum(at)).unwrap();
            // The oldest part goes as a whole.
            let least = within(interval.mul_f64(0.9));
            assert!((least..=within(interval)).contains(&found), "{found} at {at:?}");
        }
    }
}
