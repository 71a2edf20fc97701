//! What came of the requests of a run.

use std::time::Duration;

use serde::Serialize;

use crate::percentiles::Latencies;

#[derive(Serialize)]
pub struct Report {
    pub seconds: f64,
    pub answered: usize,
    pub failed: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
}

impl Report {
    /// `latencies`: of what was answered.
    pub fn new(took: Duration, latencies: Vec<Duration>, failed: usize) -> Self {
        let answered = latencies.len();
        let latencies = Latencies::from(latencies);
        let [p50_ms, p99_ms, p999_ms] = [500, 990, 999].map(|share| latencies.permille(share));
        Self { seconds: took.as_secs_f64(), answered, failed, p50_ms, p99_ms, p999_ms }
    }
}
