//! The mesh as this node sees it: checked values, built from the controller's resources once and then only read.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_identity::{Identity, TrustDomain};
use culvert_routing::model::{Hostname, SessionPersistence};
use ipnet::IpNet;

use crate::session::SessionKeys;

/// Names a workload for as long as it lives; never reused, unlike its address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadUid(pub Arc<str>);

impl WorkloadUid {
    /// The pod's `metadata.uid`: the last element of a pod's workload uid.
    pub fn pod_uid(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl std::fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey(pub Arc<str>);

/// For lookups by text; equal and hashed as the text is.
impl std::borrow::Borrow<str> for ServiceKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelProtocol {
    /// Its node has not said yet whether it captures the workload: connections to it wait, and are never plaintext.
    Undecided,
    Plaintext,
    Hbone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub uid: WorkloadUid,
    pub cluster: Arc<str>,
    pub network: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    /// None for endpoints without a pod.
    pub identity: Option<Identity>,
    pub node: Arc<str>,
    pub addresses: Vec<IpAddr>,
    /// The addresses are the node's; they do not name this workload.
    pub host_network: bool,
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub tunnel: TunnelProtocol,
    pub labels: Arc<WorkloadLabels>,
    pub memberships: Vec<Membership>,
    /// `namespace/name` of the Gateway whose pod it is.
    pub gateway: Option<Arc<str>>,
    /// Some for workloads of this node.
    pub own: Option<Arc<OwnWorkload>>,
}

/// For metrics and logs; empty strings where unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct WorkloadLabels {
    pub workload: String,
    pub workload_type: String,
    pub app: String,
    pub version: String,
    pub canonical_service: String,
    pub canonical_revision: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    pub service: ServiceKey,
    /// Service port to target port.
    pub ports: Vec<(u16, u16)>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// Zones and nodes whose clients are meant to use it.
    pub zone_hints: Vec<String>,
    pub node_hints: Vec<String>,
}

/// What only the workload's own node is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnWorkload {
    pub enrolment: Enrolment,
    pub settings: WorkloadSettings,
    pub probes: Vec<Probe>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    NotEnrolled,
    Enrolled,
    /// Peers are being told plaintext: keep capturing, accept plaintext, until `NotEnrolled`.
    Leaving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboundMode {
    Permissive,
    Strict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboundPolicy {
    Allow,
    RegistryOnly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpPolicy {
    Allow,
    Deny,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadSettings {
    pub inbound_mode: InboundMode,
    /// Overrides of `inbound_mode` by destination port.
    pub port_modes: Vec<(u16, InboundMode)>,
    pub outbound_policy: OutboundPolicy,
    pub udp: UdpPolicy,
    pub exclude_outbound_ports: Vec<PortRange>,
    pub exclude_outbound_cidrs: Vec<IpNet>,
    pub exclude_inbound_ports: Vec<PortRange>,
    pub opaque_ports: Vec<PortRange>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    /// When endpoints that the workload calls are passed over; `None`: never.
    pub ejection: Option<Ejection>,
}

/// First and last port, both included; first is not above last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections of the workload, both directions together.
    pub connections: u32,
    /// Bytes buffered for the workload.
    pub memory_bytes: u64,
    /// Requests of the workload that are under way.
    pub requests: u32,
    /// Bytes of one request's head.
    pub request_head_bytes: u32,
    /// Requests under way on one HTTP/2 connection of a client.
    pub streams: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    pub tls_handshake: Duration,
    /// HTTP/2 settings, and then the CONNECT reply.
    pub tunnel_handshake: Duration,
    /// How long an unknown address of the cluster's ranges is held for its workload.
    pub unknown_destination: Duration,
    /// After one side has closed: how long the connection may carry nothing.
    pub half_closed_idle: Duration,
    pub drain: Duration,
    /// From a head's first byte to its last; on a port with routes also from the connection's start to the first byte.
    pub request_head: Duration,
    /// Between two pieces of a body that the client sends or takes.
    pub body_idle: Duration,
    /// Of a client's connection that carries requests, without one; of a gRPC call, without a message.
    pub connection_idle: Duration,
}

/// When an endpoint that fails is passed over, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ejection {
    /// Requests or connections in a row; never 0.
    pub failures: u32,
    /// Attempts in a row to connect; never 0.
    pub connect_failures: u32,
    /// How long the first time.
    pub base: Duration,
    /// How long at most; not below `base`.
    pub max: Duration,
    /// Of the endpoints of a Service's port that may be out at once, at most 100.
    pub max_percent: u32,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            failures: 5,
            connect_failures: 1,
            base: Duration::from_secs(1),
            max: Duration::from_secs(60),
            max_percent: 50,
        }
    }
}

/// A declared kubelet probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub port: u16,
    pub check: ProbeCheck,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeCheck {
    HttpGet { path: String, headers: Vec<(String, String)>, https: bool },
    TcpConnect,
    GrpcHealth { service: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppProtocol {
    Undeclared,
    Http1,
    Http2,
    Grpc,
    Tcp,
    Tls,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub key: ServiceKey,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    /// Empty for a headless Service.
    pub vips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    pub headless: bool,
    pub publish_not_ready_addresses: bool,
    /// `internalTrafficPolicy: Local`: only endpoints of the client's node.
    pub local_only: bool,
    /// `sessionAffinity: ClientIP` with its timeout.
    pub client_ip_affinity: Option<Duration>,
    pub traffic_distribution: Option<String>,
    pub retry_budget: RetryBudget,
    /// Of requests that no route decides about.
    pub session: Option<SessionPersistence>,
}

/// How much of the requests to a Service may be ones that are sent again (GEP-3388).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Of the requests of `interval`.
    pub percent: u32,
    pub interval: Duration,
    /// Allowed in each `min_interval`, however few requests there are.
    pub min_retries: u32,
    pub min_interval: Duration,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            percent: 20,
            interval: Duration::from_secs(10),
            min_retries: 10,
            min_interval: Duration::from_secs(1),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub port: u16,
    pub name: String,
    pub app_protocol: AppProtocol,
}

/// A listener of a Gateway, which is opened in the namespaces of the Gateway's own pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Of the resource: `GATEWAY_NAMESPACE/GATEWAY/LISTENER`.
    pub name: Arc<str>,
    /// `namespace/name`.
    pub gateway: Arc<str>,
    pub port: u16,
    /// `None`: any.
    pub hostname: Option<Hostname>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshSettings {
    pub trust_domain: TrustDomain,
    pub trust_domain_aliases: Vec<TrustDomain>,
    pub cluster: Arc<str>,
    pub network: Arc<str>,
    pub pod_cidrs: Vec<IpNet>,
    pub service_cidrs: Vec<IpNet>,
    pub interception: Interception,
    pub access_log: AccessLog,
    /// Of sessions that routes keep; the same for every node proxy.
    pub session_keys: Arc<SessionKeys>,
}

/// Marks, table and ports of the interception (`intercept::rules`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interception {
    pub mark_mask: u32,
    pub proxy_mark: u32,
    pub outbound_mark: u32,
    pub reply_mark: u32,
    pub inbound_mark: u32,
    pub route_table: u32,
    pub rule_priority: u32,
    pub outbound_port: u16,
    pub inbound_port: u16,
    pub hbone_port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessLog {
    pub filter: AccessLogFilter,
    pub format: AccessLogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLogFilter {
    Failures,
    All,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLogFormat {
    Json,
    Text,
}
