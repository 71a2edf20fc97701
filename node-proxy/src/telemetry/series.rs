//! The series of Istio's TCP metrics: made with a connection's first use, gone after their workloads.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use super::labels::{Peer, TcpLabels};
use super::scrape::descriptor;
use super::spec::{self, Spec};
use crate::state::Snapshot;

/// How long a series stays after its last use, once the workloads of one of its ends are gone.
const GONE: Duration = Duration::from_secs(60);
/// How long a series without an open connection stays while its workloads live. Long, because a counter that comes
/// back at 1 hides what it counted from `rate()`.
const UNUSED: Duration = Duration::from_secs(60 * 60);

/// The counters of one set of labels.
#[derive(Debug)]
pub(super) struct TcpSeries {
    labels: TcpLabels,
    pub opened: Counter,
    pub closed: Counter,
    pub failed: Counter,
    pub sent: Counter,
    pub received: Counter,
    open: AtomicU64,
    /// Milliseconds since the set was made.
    last_used: AtomicU64,
}

impl TcpSeries {
    fn new(labels: TcpLabels) -> Self {
        Self {
            labels,
            opened: Counter::default(),
            closed: Counter::default(),
            failed: Counter::default(),
            sent: Counter::default(),
            received: Counter::default(),
            open: AtomicU64::new(0),
            last_used: AtomicU64::new(0),
        }
    }
}

/// Every series of this process.
#[derive(Debug)]
pub(super) struct TcpSeriesSet {
    started: Instant,
    series: RwLock<HashMap<TcpLabels, Arc<TcpSeries>>>,
}

impl TcpSeriesSet {
    pub fn new() -> Self {
        Self { started: Instant::now(), series: RwLock::new(HashMap::new()) }
    }

    /// The series of a connection that opens; it stays until [`TcpSeriesSet::release`].
    pub fn acquire(&self, labels: TcpLabels) -> Arc<TcpSeries> {
        self.with(labels, |series| {
            series.open.fetch_add(1, Ordering::Relaxed);
        })
    }

    pub fn release(&self, series: &TcpSeries) {
        series.last_used.store(self.now(), Ordering::Relaxed);
        series.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// The series of something that happened at once.
    pub fn touch(&self, labels: TcpLabels) -> Arc<TcpSeries> {
        self.with(labels, |_| {})
    }

    /// `mark` runs under the lock, so that a sweep cannot come between finding a series and using it.
    fn with(&self, labels: TcpLabels, mark: impl Fn(&TcpSeries)) -> Arc<TcpSeries> {
        let now = self.now();
        let used = |series: &Arc<TcpSeries>| {
            series.last_used.store(now, Ordering::Relaxed);
            mark(series);
            series.clone()
        };
        if let Some(series) = self.series.read().get(&labels) {
            return used(series);
        }
        let mut all = self.series.write();
        used(all.entry(labels.clone()).or_insert_with(|| Arc::new(TcpSeries::new(labels))))
    }

    /// Forgets series whose workloads are gone, and those unused for long; never one with an open connection.
    pub fn sweep(&self, snapshot: &Snapshot) {
        let now = self.now();
        self.series.write().retain(|labels, series| {
            let idle = now.saturating_sub(series.last_used.load(Ordering::Relaxed));
            let uses = if series.open.load(Ordering::Relaxed) > 0 { Uses::InUse } else { Uses::Idle(idle) };
            is_kept(labels, uses, snapshot)
        });
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut all: Vec<Arc<TcpSeries>> = self.series.read().values().cloned().collect();
        let (clean, failed): (Vec<_>, Vec<_>) =
            all.drain(..).partition(|series| series.labels.failure.is_none());
        encode_one(encoder, &spec::TCP_OPENED, clean.iter().map(|series| (series, &series.opened)))?;
        let closed = clean.iter().chain(failed.iter().filter(|series| series.closed.get() > 0));
        encode_one(encoder, &spec::TCP_CLOSED, closed.map(|series| (series, &series.closed)))?;
        encode_one(encoder, &spec::TCP_FAILED, failed.iter().map(|series| (series, &series.failed)))?;
        encode_one(encoder, &spec::TCP_SENT, clean.iter().map(|series| (series, &series.sent)))?;
        encode_one(encoder, &spec::TCP_RECEIVED, clean.iter().map(|series| (series, &series.received)))
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.series.read().len()
    }
}

fn encode_one<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    spec: &Spec,
    samples: impl Iterator<Item = (&'a Arc<TcpSeries>, &'a Counter)>,
) -> Result<(), fmt::Error> {
    let mut metric = descriptor(encoder, spec)?;
    for (series, counter) in samples {
        counter.encode(metric.encode_family(&series.labels)?)?;
    }
    Ok(())
}

/// How a series is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Uses {
    InUse,
    /// For so many milliseconds.
    Idle(u64),
}

/// Whether a series stays: while it is in use, for a while after its workloads are gone, for long otherwise.
pub(super) fn is_kept(labels: &TcpLabels, uses: Uses, snapshot: &Snapshot) -> bool {
    match uses {
        Uses::InUse => true,
        Uses::Idle(for_ms) => {
            Duration::from_millis(for_ms) < if lives(labels, snapshot) { UNUSED } else { GONE }
        }
    }
}

/// Whether this node still runs the near end, and the mesh the far one. Ends that were never a workload live on.
fn lives(labels: &TcpLabels, snapshot: &Snapshot) -> bool {
    let near = |peer: &Peer| {
        peer.workload
            .as_ref()
            .is_none_or(|workload| snapshot.has_own_workloads_labelled(&workload.namespace, &workload.labels))
    };
    let far = |peer: &Peer| {
        peer.workload
            .as_ref()
            .is_none_or(|workload| snapshot.has_workloads_labelled(&workload.namespace, &workload.labels))
    };
    near(labels.own()) && far(labels.other())
}
