//! What the authority counts.

use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::authority::Issuing;
use crate::refusal::Refusal;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    result: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RootLabels {
    phase: &'static str,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    in_flight: Gauge,
    signing_seconds: Histogram,
    roots: Family<RootLabels, Gauge>,
    root_not_after: Family<RootLabels, Gauge>,
    serving_not_after: Gauge,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            in_flight: Gauge::default(),
            signing_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 12)),
            roots: Family::default(),
            root_not_after: Family::default(),
            serving_not_after: Gauge::default(),
        };
        registry.register(
            "culvert_ca_requests",
            "Certificate requests, by result and the reason of a refusal",
            metrics.requests.clone(),
        );
        registry.register(
            "culvert_ca_requests_in_flight",
            "Certificate requests being answered",
            metrics.in_flight.clone(),
        );
        registry.register(
            "culvert_ca_signing_seconds",
            "Time to sign one certificate",
            metrics.signing_seconds.clone(),
        );
        registry.register("culvert_ca_roots", "Roots in the trust bundle, by phase", metrics.roots.clone());
        registry.register(
            "culvert_ca_root_not_after_seconds",
            "When the first root of a phase ends, seconds since 1970",
            metrics.root_not_after.clone(),
        );
        registry.register(
            "culvert_ca_serving_certificate_not_after_seconds",
            "When the authority's own serving certificate ends, seconds since 1970",
            metrics.serving_not_after.clone(),
        );
        metrics
    }

    pub fn granted(&self) {
        self.requests.get_or_create(&RequestLabels { result: "granted", reason: "" }).inc();
    }

    pub fn refused(&self, refusal: &Refusal) {
        self.requests.get_or_create(&RequestLabels { result: "refused", reason: refusal.reason() }).inc();
    }

    /// Counts one request as being answered until the returned value is dropped.
    pub fn in_flight(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    pub fn signed(&self, took: Duration) {
        self.signing_seconds.observe(took.as_secs_f64());
    }

    pub fn serving_until(&self, not_after: SystemTime) {
        self.serving_not_after.set(seconds(not_after));
    }

    /// Shows the roots in force.
    pub fn show_roots(&self, issuing: &Issuing) {
        self.roots.clear();
        self.root_not_after.clear();
        for root in issuing.roots() {
            let labels = RootLabels { phase: root.phase.as_str() };
            self.roots.get_or_create(&labels).inc();
            let end = seconds(root.not_after);
            let gauge = self.root_not_after.get_or_create(&labels);
            if gauge.get() == 0 || end < gauge.get() {
                gauge.set(end);
            }
        }
    }
}

/// See [`Metrics::in_flight`].
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
