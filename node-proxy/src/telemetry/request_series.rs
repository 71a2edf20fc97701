//! The series of Istio's request metrics.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder, NoLabelSet,
};
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use super::labels::TcpLabels;
use super::request::{EndedRequest, Role};
use super::scrape::descriptor;
use super::series::{Uses, is_kept};
use super::spec::{self, REQUEST_BOUNDS, Spec};
use crate::reason::Reason;
use crate::state::Snapshot;

/// What Istio calls the protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestProtocol {
    Http,
    Grpc,
}

impl RequestProtocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// What differs between requests of one connection's labels. All of it is bounded: nothing that a client chooses freely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Outcome {
    role: Role,
    protocol: RequestProtocol,
    code: u16,
    grpc_status: Option<u8>,
    failure: Option<Reason>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RequestLabels {
    /// Its failure is the request's.
    connection: TcpLabels,
    outcome: Outcome,
}

impl EncodeLabelSet for RequestLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let reporter = match self.outcome.role {
            Role::Asked => self.connection.reporter(),
            Role::Mirrored => "mirror",
        };
        self.connection.encode_as(reporter, self.outcome.protocol.as_str(), encoder)?;
        let grpc_status = self.outcome.grpc_status.map(|status| status.to_string()).unwrap_or_default();
        ("response_code", self.outcome.code.to_string()).encode(encoder.encode_label())?;
        ("grpc_response_status", grpc_status).encode(encoder.encode_label())
    }
}

/// A histogram of fixed bounds without a lock.
#[derive(Debug)]
struct Histogram {
    buckets: [AtomicU64; REQUEST_BOUNDS.len() + 1],
    /// In the thousandth part of the unit, so that it is a whole number.
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum: AtomicU64::new(0) }
    }
}

impl Histogram {
    fn observe_thousandths(&self, value: u64) {
        let bucket = REQUEST_BOUNDS.partition_point(|bound| bound * 1000.0 < value as f64);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    fn read(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let bounds = REQUEST_BOUNDS.iter().copied().chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> =
            bounds.zip(&self.buckets).map(|(bound, count)| (bound, count.load(Ordering::Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        (self.sum.load(Ordering::Relaxed) as f64 / 1000.0, count, buckets)
    }
}

/// The metrics of one set of labels.
#[derive(Debug)]
pub(super) struct RequestSeries {
    labels: RequestLabels,
    requests: Counter,
    duration: Histogram,
    received: Histogram,
    sent: Histogram,
    last_used: AtomicU64,
}

/// The series that the requests of one destination have used, so that counting one looks up nothing.
#[derive(Debug, Default)]
pub struct SeriesCache {
    known: RefCell<Vec<(Outcome, Arc<RequestSeries>)>>,
}

/// Outcomes remembered per destination: more are looked up.
const MOST_CACHED: usize = 16;

/// Every request series of this process.
#[derive(Debug)]
pub(super) struct RequestSeriesSet {
    started: Instant,
    series: RwLock<HashMap<RequestLabels, Arc<RequestSeries>>>,
}

impl RequestSeriesSet {
    pub fn new() -> Self {
        Self { started: Instant::now(), series: RwLock::new(HashMap::new()) }
    }

    pub fn count(&self, cache: &SeriesCache, ended: &EndedRequest<'_>) {
        let series = self.find(cache, ended);
        series.requests.inc();
        series.duration.observe_thousandths(u64::try_from(ended.duration.as_micros()).unwrap_or(u64::MAX));
        series.received.observe_thousandths(ended.received.saturating_mul(1000));
        series.sent.observe_thousandths(ended.sent.saturating_mul(1000));
        series.last_used.store(self.now(), Ordering::Relaxed);
    }

    fn find(&self, cache: &SeriesCache, ended: &EndedRequest<'_>) -> Arc<RequestSeries> {
        let outcome = Outcome {
            role: ended.role,
            protocol: ended.protocol,
            code: ended.status.as_u16(),
            grpc_status: ended.grpc_status,
            failure: ended.failure.map(|failure| failure.reason),
        };
        let mut known = cache.known.borrow_mut();
        if let Some((_, series)) = known.iter().find(|(of, _)| *of == outcome) {
            return series.clone();
        }
        let mut connection = TcpLabels::new(ended.meta, outcome.failure);
        if let Some((service, _)) = &ended.routed.backend {
            connection.service = Some(service.clone());
        }
        let series = self.get(RequestLabels { connection, outcome });
        if known.len() < MOST_CACHED {
            known.push((outcome, series.clone()));
        }
        series
    }

    fn get(&self, labels: RequestLabels) -> Arc<RequestSeries> {
        if let Some(series) = self.series.read().get(&labels) {
            return series.clone();
        }
        let mut all = self.series.write();
        let new = || RequestSeries {
            labels: labels.clone(),
            requests: Counter::default(),
            duration: Histogram::default(),
            received: Histogram::default(),
            sent: Histogram::default(),
            last_used: AtomicU64::new(self.now()),
        };
        all.entry(labels.clone()).or_insert_with(|| Arc::new(new())).clone()
    }

    /// Forgets series whose workloads are gone, and those unused for long; never one that somebody holds.
    pub fn sweep(&self, snapshot: &Snapshot) {
        let now = self.now();
        self.series.write().retain(|labels, series| {
            let idle = now.saturating_sub(series.last_used.load(Ordering::Relaxed));
            let uses = if Arc::strong_count(series) > 1 { Uses::InUse } else { Uses::Idle(idle) };
            is_kept(&labels.connection, uses, snapshot)
        });
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let all: Vec<Arc<RequestSeries>> = self.series.read().values().cloned().collect();
        let mut requests = descriptor(encoder, &spec::REQUESTS)?;
        for series in &all {
            let mut family = requests.encode_family(&series.labels)?;
            family.encode_counter::<NoLabelSet, _, u64>(&series.requests.get(), None)?;
        }
        encode_one(encoder, &spec::REQUEST_DURATION, all.iter().map(|series| (series, &series.duration)))?;
        encode_one(encoder, &spec::REQUEST_BYTES, all.iter().map(|series| (series, &series.received)))?;
        encode_one(encoder, &spec::RESPONSE_BYTES, all.iter().map(|series| (series, &series.sent)))
    }
}

fn encode_one<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    spec: &Spec,
    all: impl Iterator<Item = (&'a Arc<RequestSeries>, &'a Histogram)>,
) -> Result<(), fmt::Error> {
    let mut metric = descriptor(encoder, spec)?;
    for (series, histogram) in all {
        let (sum, count, buckets) = histogram.read();
        let mut family = metric.encode_family(&series.labels)?;
        family.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    Ok(())
}
