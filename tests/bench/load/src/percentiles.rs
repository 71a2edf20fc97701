//! Percentiles of latencies, by nearest rank.

use std::time::Duration;

/// Latencies in ascending order.
pub struct Latencies(Vec<Duration>);

impl From<Vec<Duration>> for Latencies {
    fn from(mut latencies: Vec<Duration>) -> Self {
        latencies.sort_unstable();
        Self(latencies)
    }
}

impl Latencies {
    /// The smallest latency that at least so many of a thousand requests did not exceed, in milliseconds; 0 without any.
    pub fn permille(&self, share: usize) -> f64 {
        let rank = (self.0.len() * share).div_ceil(1000).max(1);
        self.0.get(rank - 1).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let latencies = Latencies::from((1..=1000).rev().map(Duration::from_millis).collect::<Vec<_>>());
        for (share, expected) in [(500, 500.0), (990, 990.0), (999, 999.0), (1000, 1000.0), (0, 1.0)] {
            assert!((latencies.permille(share) - expected).abs() < 1e-9, "{share}");
        }
        let one = Latencies::from(vec![Duration::from_millis(7)]);
        assert!((one.permille(999) - 7.0).abs() < 1e-9);
        assert!(Latencies::from(vec![]).permille(500).abs() < 1e-9);
    }
}
