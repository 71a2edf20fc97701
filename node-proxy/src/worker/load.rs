//! How busy a worker is, as it and the others see it.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A worker busier than this, in thousandths of its time, hands new connections over...
const BUSY: u32 = 800;
/// ... to one that is less busy by this much.
const MARGIN: u32 = 250;

/// Written by one worker, read by all.
#[derive(Debug)]
pub(super) struct Load {
    busy: AtomicU32,
    /// Milliseconds since [`EPOCH`].
    heartbeat: AtomicU64,
}

impl Default for Load {
    fn default() -> Self {
        Self { busy: AtomicU32::new(0), heartbeat: AtomicU64::new(millis()) }
    }
}

fn millis() -> u64 {
    u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Load {
    /// Share of the time the worker was running tasks, in thousandths.
    pub fn busy(&self) -> u32 {
        self.busy.load(Ordering::Relaxed)
    }

    /// The worker ran tasks for `busy` of the last `elapsed`.
    pub fn sample(&self, busy: Duration, elapsed: Duration) {
        let share = busy.as_secs_f64() / elapsed.as_secs_f64().max(f64::EPSILON);
        self.busy.store((share.clamp(0.0, 1.0) * 1000.0).round() as u32, Ordering::Relaxed);
        self.heartbeat.store(millis(), Ordering::Relaxed);
    }

    pub fn silence(&self) -> Duration {
        Duration::from_millis(millis().saturating_sub(self.heartbeat.load(Ordering::Relaxed)))
    }
}

/// The worker that should take a connection accepted on `home`: another one only if home is busy and it is not.
pub(super) fn choose(home: usize, busy: &[u32]) -> usize {
    let at_home = busy[home];
    let least = (0..busy.len()).min_by_key(|index| busy[*index]).unwrap_or(home);
    if at_home > BUSY && busy[least] + MARGIN <= at_home { least } else { home }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_busy_home_hands_over_and_only_to_an_idler() {
        for (home, busy, chosen) in [
            (0, &[500, 0][..], 0),
            (0, &[900, 700], 0),
            (0, &[900, 600], 1),
            (1, &[300, 1000, 200, 250], 2),
            (0, &[1000], 0),
            (1, &[1000, 100], 1),
        ] {
            assert_eq!(choose(home, busy), chosen, "{home} {busy:?}");
        }
    }

    #[test]
    fn a_sample_is_a_share_and_a_sign_of_life() {
        let load = Load::default();
        load.sample(Duration::from_millis(40), Duration::from_millis(100));
        assert_eq!(load.busy(), 400);
        load.sample(Duration::from_millis(400), Duration::from_millis(100));
        assert_eq!(load.busy(), 1000);
        assert!(load.silence() < Duration::from_secs(5));
    }
}
