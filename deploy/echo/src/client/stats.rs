//! Counts and percentiles.

use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Latencies of successful operations.
#[derive(Default)]
pub(crate) struct Latencies(Vec<u32>);

/// Milliseconds.
#[derive(Serialize)]
pub(crate) struct Percentiles {
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Latencies {
    pub(crate) fn add(&mut self, latency: Duration) {
        self.0.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    /// Nothing without a sample.
    pub(crate) fn percentiles(&mut self) -> Option<Percentiles> {
        let micros = &mut self.0;
        micros.sort_unstable();
        let millis = |micros: u32| f64::from(micros) / 1000.0;
        // The smallest value that at least this share of the samples does not exceed.
        let rank = |share: f64| {
            let index = (share * micros.len() as f64).ceil() as usize;
            micros.get(index.saturating_sub(1)).copied().map(millis)
        };
        let sum: u64 = micros.iter().copied().map(u64::from).sum();
        Some(Percentiles {
            mean: sum as f64 / micros.len().max(1) as f64 / 1000.0,
            p50: rank(0.5)?,
            p90: rank(0.9)?,
            p99: rank(0.99)?,
            max: rank(1.0)?,
        })
    }
}

/// How often each word occurred.
#[derive(Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Counts(BTreeMap<String, u64>);

impl Counts {
    pub(crate) fn add(&mut self, word: impl Into<String>) {
        *self.0.entry(word.into()).or_default() += 1;
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut latencies = Latencies::default();
        for millis in 1..=100 {
            latencies.add(Duration::from_millis(millis));
        }
        let found = latencies.percentiles().unwrap();
        assert_eq!((found.p50, found.p90, found.p99, found.max), (50.0, 90.0, 99.0, 100.0));
        assert_eq!(found.mean, 50.5);
    }

    #[test]
    fn no_sample_no_percentile() {
        assert!(Latencies::default().percentiles().is_none());
    }
}
