//! What the controller counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::hub::enrolment::Missing;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabels {
    node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: StatusResult,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MissingLabels {
    reason: Missing,
}

/// How the writing of a status ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum StatusResult {
    Written,
    Unchanged,
    Removed,
    Failed,
}

/// The controller's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    streams: Gauge,
    batches: Counter,
    resources_sent: Counter,
    refused: Family<NodeLabels, Counter>,
    reports_ignored: Counter,
    missing: Family<MissingLabels, Gauge>,
    unfollowed: Gauge,
    translate: Histogram,
    objects: Gauge,
    problems: Gauge,
    statuses: Family<ResultLabels, Counter>,
    certificate_expiry: Gauge,
    certificate_failures: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        // From 1 ms to half a minute; one series set for the process.
        let buckets = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];
        Self {
            inner: Arc::new(Inner {
                streams: Gauge::default(),
                batches: Counter::default(),
                resources_sent: Counter::default(),
                refused: Family::default(),
                reports_ignored: Counter::default(),
                missing: Family::default(),
                unfollowed: Gauge::default(),
                translate: Histogram::new(buckets),
                objects: Gauge::default(),
                problems: Gauge::default(),
                statuses: Family::default(),
                certificate_expiry: Gauge::default(),
                certificate_failures: Counter::default(),
            }),
        }
    }
}

impl Metrics {
    /// Adds every metric to a registry, under the prefix `culvert_controller`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("culvert_controller");
        let Inner {
            streams,
            batches,
            resources_sent,
            refused,
            reports_ignored,
            missing,
            unfollowed,
            translate,
            objects,
            problems,
            statuses,
            certificate_expiry,
            certificate_failures,
        } = &*self.inner;
        registry.register("streams", "Streams of node proxies open now", streams.clone());
        registry.register("batches", "Consistent batches sent to node proxies", batches.clone());
        registry.register("resources_sent", "Resources sent or removed by name", resources_sent.clone());
        registry.register("resources_refused", "Resources refused by node proxies", refused.clone());
        registry.register(
            "reports_ignored",
            "Reports about workloads that are not on the reporting node, or are gone",
            reports_ignored.clone(),
        );
        registry.register(
            "pods_not_enrolled",
            "Pods that should be enrolled and are not, by reason",
            missing.clone(),
        );
        registry.register(
            "replicas_unfollowed",
            "Other replicas that should be there and cannot be followed",
            unfollowed.clone(),
        );
        registry.register_with_unit(
            "translate_duration",
            "Time to make resources of all objects",
            Unit::Seconds,
            translate.clone(),
        );
        registry.register("objects", "Objects read", objects.clone());
        registry.register("object_problems", "Objects that cannot be read at present", problems.clone());
        registry.register("status_writes", "Statuses by how writing them ended", statuses.clone());
        registry.register_with_unit(
            "certificate_expiry_timestamp",
            "When the controller's own certificate expires, since 1970; 0 before there is one",
            Unit::Seconds,
            certificate_expiry.clone(),
        );
        registry.register(
            "certificate_failures",
            "Failed attempts to get the controller's own certificate",
            certificate_failures.clone(),
        );
    }

    pub fn stream_opened(&self) {
        self.inner.streams.inc();
    }

    pub fn stream_closed(&self) {
        self.inner.streams.dec();
    }

    pub fn batch_sent(&self, resources: usize) {
        self.inner.batches.inc();
        self.inner.resources_sent.inc_by(resources as u64);
    }

    pub fn refused(&self, node: &str) {
        self.inner.refused.get_or_create(&NodeLabels { node: node.to_owned() }).inc();
    }

    pub fn report_ignored(&self) {
        self.inner.reports_ignored.inc();
    }

    pub fn missing(&self, counts: &BTreeMap<Missing, usize>) {
        for (reason, count) in counts {
            let gauge = self.inner.missing.get_or_create(&MissingLabels { reason: *reason });
            gauge.set((*count).try_into().unwrap_or(i64::MAX));
        }
    }

    pub fn unfollowed(&self, replicas: usize) {
        self.inner.unfollowed.set(replicas.try_into().unwrap_or(i64::MAX));
    }

    pub fn translated(&self, took: Duration, objects: usize, problems: usize) {
        self.inner.translate.observe(took.as_secs_f64());
        self.inner.objects.set(objects.try_into().unwrap_or(i64::MAX));
        self.inner.problems.set(problems.try_into().unwrap_or(i64::MAX));
    }

    pub fn status_written(&self, result: StatusResult) {
        self.inner.statuses.get_or_create(&ResultLabels { result }).inc();
    }

    /// `not_after` in seconds since 1970.
    pub fn certificate(&self, not_after: i64) {
        self.inner.certificate_expiry.set(not_after);
    }

    pub fn certificate_failed(&self) {
        self.inner.certificate_failures.inc();
    }
}
