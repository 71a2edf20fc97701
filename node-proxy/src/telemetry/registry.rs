//! Every metric of the process and the handles by which the rest of it counts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::access_log::{self, AccessLog, Ended};
use super::connection::{ConnectionMeta, ConnectionRecord, Failure, Security, WhyPlaintext};
use super::labels::TcpLabels;
use super::live::Live;
use super::request::{EndedRequest, Mirrored, Retried};
use super::request_series::{RequestSeriesSet, SeriesCache};
use super::scrape::{counters, gauges};
use super::series::{TcpSeries, TcpSeriesSet};
use super::{process, spec};
use crate::balance::{Endpoints, Step};
use crate::identity::Certificates;
use crate::pods::{Phase, PodReports};
use crate::reason::Reason;
use crate::state::{ControlStatus, Snapshots};

/// How often series without use are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// Which way a connection goes, seen from the pod of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Outbound,
    Inbound,
}

impl Direction {
    pub const ALL: [Self; 2] = [Self::Outbound, Self::Inbound];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// How something that can fail went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Success,
    Failure,
}

impl Outcome {
    pub const ALL: [Self; 2] = [Self::Success, Self::Failure];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
        }
    }
}

/// Which tunnel carries an outbound connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// One that was open.
    Reused,
    /// One that was opened for it.
    New,
}

impl Carrier {
    pub const ALL: [Self; 2] = [Self::Reused, Self::New];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reused => "reused",
            Self::New => "new",
        }
    }
}

/// The number of ways a connection can be protected or not: mutual TLS, and each reason for plaintext.
const SECURITIES: usize = 1 + WhyPlaintext::ALL.len();

fn security_index(security: Security) -> usize {
    match security {
        Security::MutualTls => 0,
        Security::Plaintext(why) => 1 + why as usize,
    }
}

fn securities() -> impl Iterator<Item = Security> {
    std::iter::once(Security::MutualTls).chain(WhyPlaintext::ALL.map(Security::Plaintext))
}

/// Counters with a closed set of labels: all exist from the start, none is looked up.
#[derive(Debug, Default)]
struct Counts {
    connections: [[Counter; SECURITIES]; 2],
    connections_open: [[Gauge; 2]; 2],
    refused: Refusals,
    tunnels_open: [Gauge; 2],
    handshakes: [[Counter; 2]; 2],
    pool_streams: [Counter; 2],
    accept_pauses: Counter,
    handed_over: Counter,
    past_routes: Counter,
    request_streams: [Counter; 2],
    mirrors: [Counter; Mirrored::ALL.len()],
    retries: [Counter; Retried::ALL.len()],
    rule_repairs: [Counter; 2],
    control_connects: [Counter; 2],
    certificate_requests: [Counter; 2],
    snapshots: Counter,
}

/// By reason.
#[derive(Debug)]
struct Refusals([Counter; Reason::ALL.len()]);

impl Default for Refusals {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

/// What is read when it is scraped.
#[derive(Debug)]
struct Sources {
    certificates: Certificates,
    pods: watch::Receiver<PodReports>,
    control: ControlStatus,
}

#[derive(Debug)]
struct Inner {
    snapshots: Snapshots,
    access_log: AccessLog,
    series: TcpSeriesSet,
    requests: RequestSeriesSet,
    live: Live,
    counts: Counts,
    sources: OnceLock<Sources>,
    endpoints: OnceLock<Arc<Endpoints>>,
}

/// The metrics and the access log. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    inner: Arc<Inner>,
    registry: Arc<Registry>,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Telemetry")
    }
}

impl Telemetry {
    pub fn new(snapshots: Snapshots, access_log: AccessLog) -> Self {
        let inner = Arc::new(Inner {
            snapshots,
            access_log,
            series: TcpSeriesSet::new(),
            requests: RequestSeriesSet::new(),
            live: Live::new(),
            counts: Counts::default(),
            sources: OnceLock::new(),
            endpoints: OnceLock::new(),
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Everything(inner.clone())));
        Self { inner, registry: Arc::new(registry) }
    }

    /// Tells where certificates, pods and the controller's stream are read from. The first call holds.
    pub fn attach(
        &self,
        certificates: Certificates,
        pods: watch::Receiver<PodReports>,
        control: ControlStatus,
    ) {
        let _ = self.inner.sources.set(Sources { certificates, pods, control });
    }

    /// Tells where the health of endpoints is read from. The first call holds.
    pub fn attach_endpoints(&self, endpoints: Arc<Endpoints>) {
        let _ = self.inner.endpoints.set(endpoints);
    }

    /// Counts a connection as open until its record is closed or dropped.
    pub fn open(&self, meta: ConnectionMeta) -> ConnectionRecord {
        let direction = meta.direction() as usize;
        let counts = &self.inner.counts;
        counts.connections[direction][security_index(meta.security)].inc();
        counts.connections_open[direction][usize::from(meta.security != Security::MutualTls)].inc();
        let series = self.inner.series.acquire(TcpLabels::new(&meta, None));
        series.opened.inc();
        ConnectionRecord::open(self.clone(), meta, series)
    }

    /// Counts and logs a connection that was refused before it was open.
    pub fn refused(&self, meta: ConnectionMeta, reason: Reason, message: &dyn fmt::Display) {
        self.inner.counts.refused.0[reason as usize].inc();
        self.inner.series.touch(TcpLabels::new(&meta, Some(reason))).failed.inc();
        let failure = Failure::new(reason, message);
        let settings = self.inner.snapshots.load().mesh().access_log;
        self.inner.access_log.write(settings, &Ended::refused(&meta, &failure));
    }

    pub(super) fn ended(&self, series: &TcpSeries, ended: &Ended<'_>) {
        let meta = ended.meta;
        let counts = &self.inner.counts;
        counts.connections_open[meta.direction() as usize][usize::from(meta.security != Security::MutualTls)]
            .dec();
        match ended.failure {
            None => {
                series.closed.inc();
            }
            Some(failure) => {
                counts.refused.0[failure.reason as usize].inc();
                let failed = self.inner.series.touch(TcpLabels::new(meta, Some(failure.reason)));
                failed.closed.inc();
                failed.failed.inc();
            }
        }
        self.inner.series.release(series);
        let settings = self.inner.snapshots.load().mesh().access_log;
        self.inner.access_log.write(settings, ended);
    }

    /// Counts and logs a request.
    pub(super) fn request_ended(&self, cache: &SeriesCache, ended: &EndedRequest<'_>) {
        if let Some(failure) = ended.failure {
            self.inner.counts.refused.0[failure.reason as usize].inc();
        }
        self.inner.requests.count(cache, ended);
        let settings = self.inner.snapshots.load().mesh().access_log;
        self.inner.access_log.write_request(settings, ended);
        if self.inner.live.is_followed() {
            self.inner.live.tell(access_log::request_line(ended));
        }
    }

    /// Every request that ends from now on, as lines of JSON with the access log's keys, whatever the log's filter is.
    pub fn follow_requests(&self) -> impl Stream<Item = Bytes> + Send + 'static {
        self.inner.live.follow()
    }

    /// Counts a tunnel as open until the guard is dropped.
    pub fn tunnel_opened(&self, direction: Direction) -> OpenTunnel {
        let gauge = self.inner.counts.tunnels_open[direction as usize].clone();
        gauge.inc();
        OpenTunnel(gauge)
    }

    pub fn handshake(&self, direction: Direction, outcome: Outcome) {
        self.inner.counts.handshakes[direction as usize][outcome as usize].inc();
    }

    /// Counts an outbound connection by the tunnel that carries it.
    pub fn pool_stream(&self, carrier: Carrier) {
        self.inner.counts.pool_streams[carrier as usize].inc();
    }

    /// Counts a listener's pause because descriptors or memory were exhausted.
    pub fn accept_paused(&self) {
        self.inner.counts.accept_pauses.inc();
    }

    /// Counts a connection that a busy worker gave to a less busy one.
    pub fn connection_handed_over(&self) {
        self.inner.counts.handed_over.inc();
    }

    /// Counts a call to a pod's own address although calls to its Service are routed.
    pub fn past_routes(&self) {
        self.inner.counts.past_routes.inc();
    }

    /// Counts a request by the inner connection that carries it.
    pub fn request_carried(&self, carrier: Carrier) {
        self.inner.counts.request_streams[carrier as usize].inc();
    }

    /// Counts what became of the wish to send a request again.
    pub fn retried(&self, how: Retried) {
        self.inner.counts.retries[how as usize].inc();
    }

    /// Counts what became of a copy for a mirror.
    pub fn mirrored(&self, how: Mirrored) {
        self.inner.counts.mirrors[how as usize].inc();
    }

    /// Counts interception rules that were missing or changed, put back or not.
    pub fn rules_repaired(&self, outcome: Outcome) {
        self.inner.counts.rule_repairs[outcome as usize].inc();
    }

    pub fn control_connect(&self, outcome: Outcome) {
        self.inner.counts.control_connects[outcome as usize].inc();
    }

    pub fn certificate_request(&self, outcome: Outcome) {
        self.inner.counts.certificate_requests[outcome as usize].inc();
    }

    pub fn snapshot_published(&self) {
        self.inner.counts.snapshots.inc();
    }

    /// Drops series whose workloads are gone, until cancelled.
    pub async fn run_sweeps(self, cancel: CancellationToken) {
        let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while cancel.run_until_cancelled(ticks.tick()).await.is_some() {
            let snapshot = self.inner.snapshots.load_full();
            self.inner.series.sweep(&snapshot);
            self.inner.requests.sweep(&snapshot);
        }
    }

    /// For the admin server.
    pub fn registry(&self) -> Arc<Registry> {
        self.registry.clone()
    }

    /// Everything, in the OpenMetrics text format.
    ///
    /// # Errors
    /// Never: writing to memory does not fail.
    pub fn scrape(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    #[cfg(test)]
    pub(super) fn series_count(&self) -> usize {
        self.inner.series.len()
    }
}

/// A tunnel that counts as open.
#[derive(Debug)]
pub struct OpenTunnel(Gauge);

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[derive(Debug)]
struct Everything(Arc<Inner>);

impl Collector for Everything {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.series.encode(&mut encoder)?;
        self.0.requests.encode(&mut encoder)?;
        self.0.encode_counts(&mut encoder)?;
        if let Some(endpoints) = self.0.endpoints.get() {
            self.0.encode_endpoints(endpoints, &mut encoder)?;
        }
        self.0.encode_snapshot(&mut encoder)?;
        if let Some(sources) = self.0.sources.get() {
            sources.encode_pods(&mut encoder)?;
            sources.encode_control(&mut encoder)?;
            sources.encode_certificates(&mut encoder)?;
        }
        process::encode(&mut encoder)
    }
}

/// Pairs a closed set of labels with the counters that stand in the same order.
fn outcomes(counts: &[Counter; 2]) -> [([&'static str; 1], u64); 2] {
    Outcome::ALL.map(|outcome| ([outcome.as_str()], counts[outcome as usize].get()))
}

impl Inner {
    fn encode_counts(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counts = &self.counts;
        let connections = Direction::ALL.into_iter().flat_map(|direction| {
            securities().map(move |security| {
                let labels = [direction.as_str(), security.as_str(), security.why().unwrap_or_default()];
                (labels, counts.connections[direction as usize][security_index(security)].get())
            })
        });
        counters(encoder, &spec::CONNECTIONS, connections)?;
        let open = Direction::ALL.into_iter().flat_map(|direction| {
            ["mutual_tls", "none"].into_iter().enumerate().map(move |(index, security)| {
                ([direction.as_str(), security], counts.connections_open[direction as usize][index].get())
            })
        });
        gauges(encoder, &spec::CONNECTIONS_OPEN, open)?;
        let refused = Reason::ALL.map(|reason| ([reason.as_str()], counts.refused.0[reason as usize].get()));
        counters(encoder, &spec::REFUSED, refused)?;
        let tunnels = Direction::ALL.map(|way| ([way.as_str()], counts.tunnels_open[way as usize].get()));
        gauges(encoder, &spec::TUNNELS_OPEN, tunnels)?;
        let handshakes = Direction::ALL.into_iter().flat_map(|way| {
            Outcome::ALL.map(|outcome| {
                ([way.as_str(), outcome.as_str()], counts.handshakes[way as usize][outcome as usize].get())
            })
        });
        counters(encoder, &spec::HANDSHAKES, handshakes)?;
        let streams =
            Carrier::ALL.map(|carrier| ([carrier.as_str()], counts.pool_streams[carrier as usize].get()));
        counters(encoder, &spec::POOL_STREAMS, streams)?;
        counters(encoder, &spec::ACCEPT_PAUSES, [([], counts.accept_pauses.get())])?;
        counters(encoder, &spec::HANDED_OVER, [([], counts.handed_over.get())])?;
        counters(encoder, &spec::PAST_ROUTES, [([], counts.past_routes.get())])?;
        let carried =
            Carrier::ALL.map(|carrier| ([carrier.as_str()], counts.request_streams[carrier as usize].get()));
        counters(encoder, &spec::REQUEST_CONNECTIONS, carried)?;
        let retries = Retried::ALL.map(|how| ([how.as_str()], counts.retries[how as usize].get()));
        counters(encoder, &spec::RETRIES, retries)?;
        let mirrors = Mirrored::ALL.map(|how| ([how.as_str()], counts.mirrors[how as usize].get()));
        counters(encoder, &spec::MIRRORS, mirrors)?;
        counters(encoder, &spec::RULE_REPAIRS, outcomes(&counts.rule_repairs))?;
        counters(encoder, &spec::CONTROL_CONNECTS, outcomes(&counts.control_connects))?;
        counters(encoder, &spec::CERTIFICATE_REQUESTS, outcomes(&counts.certificate_requests))?;
        counters(encoder, &spec::ACCESS_LOG_DROPPED, [([], self.access_log.dropped())])
    }

    fn encode_endpoints(
        &self,
        endpoints: &Endpoints,
        encoder: &mut DescriptorEncoder<'_>,
    ) -> Result<(), fmt::Error> {
        let snapshot = self.snapshots.load_full();
        let mut ejected: BTreeMap<_, u64> = endpoints.services().into_iter().map(|of| (of, 0)).collect();
        ejected.retain(|service, _| snapshot.service(service).is_some());
        for one in endpoints.ejected(&snapshot) {
            *ejected.entry(one.service).or_default() += 1;
        }
        let named = ejected.iter().map(|(service, count)| {
            let (namespace, name) = service.0.split_once('/').unwrap_or_default();
            ([name, namespace], *count)
        });
        gauges(encoder, &spec::EJECTED, named)?;
        let counts = endpoints.counts();
        let ejections = Step::ALL.map(|step| ([step.as_str()], counts.ejections(step)));
        counters(encoder, &spec::EJECTIONS, ejections)?;
        let trials = counts.trials();
        let results = Outcome::ALL.map(|outcome| ([outcome.as_str()], trials[outcome as usize]));
        counters(encoder, &spec::TRIALS, results)
    }

    fn encode_snapshot(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = self.snapshots.load_full();
        let info = snapshot.is_complete().then_some(([snapshot.version()], 1u64));
        gauges(encoder, &spec::SNAPSHOT_INFO, info)?;
        gauges(encoder, &spec::SNAPSHOT_STALE, [([], u64::from(snapshot.is_stale()))])?;
        counters(encoder, &spec::SNAPSHOTS, [([], self.counts.snapshots.get())])?;
        gauges(encoder, &spec::WORKLOADS, [([], snapshot.workload_count())])?;
        gauges(encoder, &spec::SERVICES, [([], snapshot.service_count())])?;
        gauges(encoder, &spec::REFUSED_RESOURCES, [([], snapshot.refused().len())])
    }
}

impl Sources {
    fn encode_pods(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let pods = self.pods.borrow().clone();
        let phases = [Phase::NotEnrolled, Phase::Waiting, Phase::Enrolled, Phase::Leaving, Phase::Failed];
        let by_phase = phases
            .map(|phase| ([phase.as_str()], pods.values().filter(|report| report.phase == phase).count()));
        gauges(encoder, &spec::ENROLLED_PODS, by_phase)?;
        let uncaptured: u64 = pods.values().map(|report| u64::from(report.uncaptured_connections)).sum();
        gauges(encoder, &spec::UNCAPTURED, [([], uncaptured)])
    }

    fn encode_control(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let status = self.control.read();
        let seconds =
            |since: Option<tokio::time::Instant>| since.map_or(0.0, |at| at.elapsed().as_secs_f64());
        let connected = u64::from(status.connected_since.is_some());
        gauges(encoder, &spec::CONTROL_CONNECTED, [([], connected)])?;
        gauges(encoder, &spec::CONTROL_AGE, [([], seconds(status.connected_since))])?;
        gauges(encoder, &spec::CONTROL_SILENCE, [([], seconds(status.last_heard))])
    }

    fn encode_certificates(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let statuses = self.certificates.statuses();
        let expiries =
            statuses.iter().filter_map(|status| Some(([status.identity.uri()], status.not_after?)));
        gauges(encoder, &spec::CERTIFICATE_EXPIRY, expiries)
    }
}
