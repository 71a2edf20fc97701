//! From the controller's messages to checked values. What does not make sense is refused, by field, before anything
//! is decided on it.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::mesh as wire;
use culvert_identity::{Identity, IdentityError, TrustDomain};
use ipnet::IpNet;
use thiserror::Error;

use super::intern::Interner;
use super::model::{
    AccessLog, AccessLogFilter, AccessLogFormat, AppProtocol, Ejection, Enrolment, InboundMode, Interception,
    Limits, Membership, MeshSettings, OutboundPolicy, OwnWorkload, PortRange, Probe, ProbeCheck, RetryBudget,
    Service, ServiceKey, ServicePort, Timeouts, TunnelProtocol, UdpPolicy, Workload, WorkloadLabels,
    WorkloadSettings, WorkloadUid,
};
use super::snapshot::address_from_bytes;
use crate::session::{BadKeys, SessionKeys};

pub(super) mod routes;

/// Why a resource cannot be accepted. Fields are named as in the contract.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConversionError {
    #[error("{0}: missing")]
    Missing(&'static str),
    #[error("the resource is named {name:?}, its body {body:?}")]
    OtherName { name: String, body: String },
    #[error("the body is not of the type that the key names")]
    OtherType,
    #[error("{field}: {value} is not a port (1 to 65535)")]
    Port { field: &'static str, value: u32 },
    #[error("{field}: the first port {first} is above the last {last}")]
    InvertedRange { field: &'static str, first: u32, last: u32 },
    #[error("{field}: an address has {length} bytes; 4 or 16 are expected")]
    AddressLength { field: &'static str, length: usize },
    #[error("{field}: {value:?} is not a CIDR")]
    Cidr { field: &'static str, value: String },
    #[error("{field}: the value {value} is not known to this version")]
    UnknownValue { field: &'static str, value: i32 },
    #[error("{field}: {value} is not usable; at least 1 is expected")]
    Zero { field: &'static str, value: u64 },
    #[error("{field}: {error}")]
    Name { field: &'static str, error: IdentityError },
    #[error("tunnel: HBONE without an identity (service_account is empty)")]
    HboneWithoutIdentity,
    #[error("enrolment: enrolled without an identity (service_account is empty)")]
    EnrolledWithoutIdentity,
    #[error("memberships: {0} is named more than once")]
    MembershipTwice(String),
    #[error("interception: marks reach outside mark_mask {mask:#x}, or two are equal")]
    Marks { mask: u32 },
    #[error("{field}: {value:?} is not {expected}")]
    Text { field: &'static str, value: String, expected: &'static str },
    #[error("session_keys: {0}")]
    SessionKeys(#[from] BadKeys),
    #[error("the route does not compile: {0}")]
    Compile(String),
}

type Result<T> = std::result::Result<T, ConversionError>;

/// Converts resources and shares equal texts among them: a hundred thousand workloads name few nodes and namespaces.
#[derive(Debug, Default)]
pub struct Converter {
    texts: Interner<str>,
    labels: Interner<WorkloadLabels>,
}

impl Converter {
    /// # Errors
    /// Which field is wrong, and what is expected.
    pub fn workload(&mut self, name: &str, workload: wire::Workload) -> Result<Workload> {
        same_name(name, &workload.uid)?;
        let identity = identity(&workload)?;
        let tunnel = match wire::Tunnel::try_from(workload.tunnel) {
            Ok(wire::Tunnel::None) => TunnelProtocol::Plaintext,
            Ok(wire::Tunnel::Hbone) if identity.is_none() => {
                return Err(ConversionError::HboneWithoutIdentity);
            }
            Ok(wire::Tunnel::Hbone) => TunnelProtocol::Hbone,
            Ok(wire::Tunnel::Unspecified) => TunnelProtocol::Undecided,
            Err(_) => return Err(unknown("tunnel", workload.tunnel)),
        };
        let own = own(&workload)?;
        if identity.is_none() && own.as_ref().is_some_and(|own| own.enrolment != Enrolment::NotEnrolled) {
            return Err(ConversionError::EnrolledWithoutIdentity);
        }
        let locality = workload.locality.unwrap_or_default();
        Ok(Workload {
            uid: WorkloadUid(workload.uid.into()),
            cluster: self.texts.share(&workload.cluster),
            network: self.texts.share(&workload.network),
            name: workload.name.into(),
            namespace: self.texts.share(&workload.namespace),
            identity,
            node: self.texts.share(&workload.node),
            addresses: addresses("addresses", &workload.addresses)?,
            host_network: workload.host_network,
            region: self.texts.share(&locality.region),
            zone: self.texts.share(&locality.zone),
            tunnel,
            labels: self.labels(workload.labels.unwrap_or_default()),
            memberships: self.memberships(workload.memberships)?,
            gateway: Some(workload.gateway.as_str()).filter(|name| !name.is_empty()).map(Arc::from),
            own: own.map(Arc::new),
        })
    }

    fn labels(&mut self, labels: wire::WorkloadLabels) -> Arc<WorkloadLabels> {
        self.labels.share(&WorkloadLabels {
            workload: labels.workload,
            workload_type: labels.workload_type,
            app: labels.app,
            version: labels.version,
            canonical_service: labels.canonical_service,
            canonical_revision: labels.canonical_revision,
        })
    }

    fn memberships(&mut self, memberships: Vec<wire::Membership>) -> Result<Vec<Membership>> {
        let mut converted: Vec<Membership> = Vec::with_capacity(memberships.len());
        for membership in memberships {
            let service = ServiceKey(self.texts.share(&membership.service));
            if converted.iter().any(|other| other.service == service) {
                return Err(ConversionError::MembershipTwice(membership.service));
            }
            let ports = membership
                .ports
                .iter()
                .map(|mapping| {
                    Ok((
                        port("memberships.ports.service_port", mapping.service_port)?,
                        port("memberships.ports.target_port", mapping.target_port)?,
                    ))
                })
                .collect::<Result<_>>()?;
            converted.push(Membership {
                service,
                ports,
                ready: membership.ready,
                serving: membership.serving,
                terminating: membership.terminating,
                zone_hints: membership.zone_hints,
                node_hints: membership.node_hints,
            });
        }
        Ok(converted)
    }

    /// # Errors
    /// Which field is wrong, and what is expected.
    pub fn service(&mut self, name: &str, service: wire::Service) -> Result<Service> {
        let key = format!("{}/{}", service.namespace, service.name);
        same_name(name, &key)?;
        let affinity = service.client_ip_affinity_seconds;
        Ok(Service {
            key: ServiceKey(self.texts.share(&key)),
            name: service.name.into(),
            namespace: self.texts.share(&service.namespace),
            vips: addresses("vips", &service.vips)?,
            ports: service.ports.into_iter().map(service_port).collect::<Result<_>>()?,
            headless: service.headless,
            publish_not_ready_addresses: service.publish_not_ready_addresses,
            local_only: match wire::InternalTrafficPolicy::try_from(service.internal_traffic_policy) {
                Ok(wire::InternalTrafficPolicy::Cluster) => false,
                Ok(wire::InternalTrafficPolicy::Local) => true,
                Err(_) => return Err(unknown("internal_traffic_policy", service.internal_traffic_policy)),
            },
            client_ip_affinity: (affinity > 0).then(|| Duration::from_secs(affinity.into())),
            traffic_distribution: Some(service.traffic_distribution).filter(|text| !text.is_empty()),
            retry_budget: service.retry_budget.map(retry_budget).unwrap_or_default(),
            session: service.session.map(routes::session).transpose()?,
        })
    }

    /// Lets go of texts that nothing uses any more.
    pub fn prune(&mut self) {
        self.texts.prune();
        self.labels.prune();
    }
}

fn retry_budget(wire: wire::RetryBudget) -> RetryBudget {
    RetryBudget {
        percent: wire.percent,
        interval: Duration::from_millis(wire.interval_ms),
        min_retries: wire.min_retries,
        min_interval: Duration::from_millis(wire.min_interval_ms),
    }
}

impl TryFrom<wire::MeshSettings> for MeshSettings {
    type Error = ConversionError;

    fn try_from(settings: wire::MeshSettings) -> Result<Self> {
        let access_log = settings.access_log.unwrap_or_default();
        Ok(Self {
            trust_domain: trust_domain("trust_domain", &settings.trust_domain)?,
            trust_domain_aliases: settings
                .trust_domain_aliases
                .iter()
                .map(|alias| trust_domain("trust_domain_aliases", alias))
                .collect::<Result<_>>()?,
            session_keys: Arc::new(SessionKeys::new(
                settings.session_keys.iter().map(|key| (key.id, &key.secret[..])),
            )?),
            cluster: settings.cluster.into(),
            network: settings.network.into(),
            pod_cidrs: cidrs("pod_cidrs", &settings.pod_cidrs)?,
            service_cidrs: cidrs("service_cidrs", &settings.service_cidrs)?,
            interception: settings
                .interception
                .ok_or(ConversionError::Missing("interception"))?
                .try_into()?,
            access_log: AccessLog {
                filter: match wire::AccessLogFilter::try_from(access_log.filter) {
                    Ok(wire::AccessLogFilter::Failures) => AccessLogFilter::Failures,
                    Ok(wire::AccessLogFilter::All) => AccessLogFilter::All,
                    Ok(wire::AccessLogFilter::None) => AccessLogFilter::None,
                    Err(_) => return Err(unknown("access_log.filter", access_log.filter)),
                },
                format: match wire::AccessLogFormat::try_from(access_log.format) {
                    Ok(wire::AccessLogFormat::Json) => AccessLogFormat::Json,
                    Ok(wire::AccessLogFormat::Text) => AccessLogFormat::Text,
                    Err(_) => return Err(unknown("access_log.format", access_log.format)),
                },
            },
        })
    }
}

impl TryFrom<wire::Interception> for Interception {
    type Error = ConversionError;

    fn try_from(wire: wire::Interception) -> Result<Self> {
        let marks = [wire.proxy_mark, wire.outbound_mark, wire.reply_mark, wire.inbound_mark];
        let distinct: HashSet<u32> = marks.into_iter().collect();
        let outside = marks.iter().any(|mark| *mark == 0 || *mark & !wire.mark_mask != 0);
        if outside || distinct.len() != marks.len() {
            return Err(ConversionError::Marks { mask: wire.mark_mask });
        }
        Ok(Self {
            mark_mask: wire.mark_mask,
            proxy_mark: wire.proxy_mark,
            outbound_mark: wire.outbound_mark,
            reply_mark: wire.reply_mark,
            inbound_mark: wire.inbound_mark,
            route_table: positive("interception.route_table", wire.route_table)?,
            rule_priority: positive("interception.rule_priority", wire.rule_priority)?,
            outbound_port: port("interception.outbound_port", wire.outbound_port)?,
            inbound_port: port("interception.inbound_port", wire.inbound_port)?,
            hbone_port: port("interception.hbone_port", wire.hbone_port)?,
        })
    }
}

impl TryFrom<wire::WorkloadSettings> for WorkloadSettings {
    type Error = ConversionError;

    fn try_from(settings: wire::WorkloadSettings) -> Result<Self> {
        let limits = settings.limits.ok_or(ConversionError::Missing("settings.limits"))?;
        Ok(Self {
            inbound_mode: inbound_mode("settings.inbound_mode", settings.inbound_mode)?,
            port_modes: settings
                .port_modes
                .iter()
                .map(|over| {
                    let mode = inbound_mode("settings.port_modes.mode", over.mode)?;
                    Ok((port("settings.port_modes.port", over.port)?, mode))
                })
                .collect::<Result<_>>()?,
            outbound_policy: match wire::OutboundPolicy::try_from(settings.outbound_policy) {
                Ok(wire::OutboundPolicy::Allow) => OutboundPolicy::Allow,
                Ok(wire::OutboundPolicy::RegistryOnly) => OutboundPolicy::RegistryOnly,
                Err(_) => return Err(unknown("settings.outbound_policy", settings.outbound_policy)),
            },
            udp: match wire::UdpPolicy::try_from(settings.udp) {
                Ok(wire::UdpPolicy::Allow) => UdpPolicy::Allow,
                Ok(wire::UdpPolicy::Deny) => UdpPolicy::Deny,
                Err(_) => return Err(unknown("settings.udp", settings.udp)),
            },
            exclude_outbound_ports: ranges(
                "settings.exclude_outbound_ports",
                &settings.exclude_outbound_ports,
            )?,
            exclude_outbound_cidrs: cidrs(
                "settings.exclude_outbound_cidrs",
                &settings.exclude_outbound_cidrs,
            )?,
            exclude_inbound_ports: ranges("settings.exclude_inbound_ports", &settings.exclude_inbound_ports)?,
            opaque_ports: ranges("settings.opaque_ports", &settings.opaque_ports)?,
            limits: Limits {
                connections: positive("settings.limits.connections", limits.connections)?,
                memory_bytes: positive("settings.limits.memory_bytes", limits.memory_bytes)?,
                requests: positive("settings.limits.requests", limits.requests)?,
                request_head_bytes: positive(
                    "settings.limits.request_head_bytes",
                    limits.request_head_bytes,
                )?,
                streams: positive("settings.limits.streams", limits.streams)?,
            },
            timeouts: settings.timeouts.ok_or(ConversionError::Missing("settings.timeouts"))?.try_into()?,
            // A controller of before does not speak of it.
            ejection: ejection(settings.ejection)?,
        })
    }
}

fn ejection(wire: Option<wire::Ejection>) -> Result<Option<Ejection>> {
    let Some(wire) = wire else { return Ok(Some(Ejection::default())) };
    if wire.disabled {
        return Ok(None);
    }
    let base = milliseconds("settings.ejection.base_ms", wire.base_ms)?;
    Ok(Some(Ejection {
        failures: positive("settings.ejection.failures", wire.failures)?,
        connect_failures: positive("settings.ejection.connect_failures", wire.connect_failures)?,
        base,
        max: milliseconds("settings.ejection.max_ms", wire.max_ms)?.max(base),
        max_percent: wire.max_percent.min(100),
    }))
}

impl TryFrom<wire::Timeouts> for Timeouts {
    type Error = ConversionError;

    fn try_from(timeouts: wire::Timeouts) -> Result<Self> {
        Ok(Self {
            connect: milliseconds("settings.timeouts.connect_ms", timeouts.connect_ms)?,
            tls_handshake: milliseconds("settings.timeouts.tls_handshake_ms", timeouts.tls_handshake_ms)?,
            tunnel_handshake: milliseconds(
                "settings.timeouts.tunnel_handshake_ms",
                timeouts.tunnel_handshake_ms,
            )?,
            // Not to hold unknown destinations at all is a choice.
            unknown_destination: Duration::from_millis(timeouts.unknown_destination_ms),
            half_closed_idle: milliseconds(
                "settings.timeouts.half_closed_idle_ms",
                timeouts.half_closed_idle_ms,
            )?,
            drain: milliseconds("settings.timeouts.drain_ms", timeouts.drain_ms)?,
            request_head: milliseconds("settings.timeouts.request_head_ms", timeouts.request_head_ms)?,
            body_idle: milliseconds("settings.timeouts.body_idle_ms", timeouts.body_idle_ms)?,
            connection_idle: milliseconds(
                "settings.timeouts.connection_idle_ms",
                timeouts.connection_idle_ms,
            )?,
        })
    }
}

impl TryFrom<wire::Probe> for Probe {
    type Error = ConversionError;

    fn try_from(probe: wire::Probe) -> Result<Self> {
        let check = match probe.check.ok_or(ConversionError::Missing("probes.check"))? {
            wire::probe::Check::HttpGet(get) => ProbeCheck::HttpGet {
                path: get.path,
                headers: get.headers.into_iter().map(|header| (header.name, header.value)).collect(),
                https: get.https,
            },
            wire::probe::Check::TcpConnect(wire::TcpConnect {}) => ProbeCheck::TcpConnect,
            wire::probe::Check::GrpcHealth(health) => ProbeCheck::GrpcHealth { service: health.service },
        };
        Ok(Self { port: port("probes.port", probe.port)?, check })
    }
}

fn identity(workload: &wire::Workload) -> Result<Option<Identity>> {
    if workload.service_account.is_empty() {
        return Ok(None);
    }
    let trust_domain = trust_domain("trust_domain", &workload.trust_domain)?;
    Identity::new(&trust_domain, &workload.namespace, &workload.service_account)
        .map(Some)
        .map_err(|error| ConversionError::Name { field: "service_account", error })
}

/// `None` for workloads of other nodes.
fn own(workload: &wire::Workload) -> Result<Option<OwnWorkload>> {
    let enrolment = match wire::Enrolment::try_from(workload.enrolment) {
        Ok(wire::Enrolment::Unspecified) => return Ok(None),
        Ok(wire::Enrolment::NotEnrolled) => Enrolment::NotEnrolled,
        Ok(wire::Enrolment::Enrolled) => Enrolment::Enrolled,
        Ok(wire::Enrolment::Leaving) => Enrolment::Leaving,
        Err(_) => return Err(unknown("enrolment", workload.enrolment)),
    };
    let settings = workload.settings.clone().ok_or(ConversionError::Missing("settings"))?.try_into()?;
    let probes = workload.probes.iter().cloned().map(Probe::try_from).collect::<Result<_>>()?;
    Ok(Some(OwnWorkload { enrolment, settings, probes }))
}

fn service_port(wire: wire::ServicePort) -> Result<ServicePort> {
    let app_protocol = match wire::AppProtocol::try_from(wire.app_protocol) {
        Ok(wire::AppProtocol::Unspecified) => AppProtocol::Undeclared,
        Ok(wire::AppProtocol::Http1) => AppProtocol::Http1,
        Ok(wire::AppProtocol::Http2) => AppProtocol::Http2,
        Ok(wire::AppProtocol::Grpc) => AppProtocol::Grpc,
        Ok(wire::AppProtocol::Tcp) => AppProtocol::Tcp,
        Ok(wire::AppProtocol::Tls) => AppProtocol::Tls,
        Err(_) => return Err(unknown("ports.app_protocol", wire.app_protocol)),
    };
    Ok(ServicePort { port: port("ports.port", wire.port)?, name: wire.name, app_protocol })
}

/// A namespace's name, and whether it enrols pods that say nothing themselves.
///
/// # Errors
/// When the resource is named otherwise.
pub fn namespace(name: &str, wire: wire::Namespace) -> Result<(Arc<str>, bool)> {
    same_name(name, &wire.name)?;
    Ok((wire.name.into(), wire.enrols))
}

fn same_name(name: &str, body: &str) -> Result<()> {
    if name == body && !name.is_empty() {
        return Ok(());
    }
    Err(ConversionError::OtherName { name: name.to_owned(), body: body.to_owned() })
}

fn unknown(field: &'static str, value: i32) -> ConversionError {
    ConversionError::UnknownValue { field, value }
}

fn inbound_mode(field: &'static str, value: i32) -> Result<InboundMode> {
    match wire::InboundMode::try_from(value) {
        Ok(wire::InboundMode::Permissive) => Ok(InboundMode::Permissive),
        Ok(wire::InboundMode::Strict) => Ok(InboundMode::Strict),
        Err(_) => Err(unknown(field, value)),
    }
}

fn trust_domain(field: &'static str, text: &str) -> Result<TrustDomain> {
    text.parse().map_err(|error| ConversionError::Name { field, error })
}

fn addresses(field: &'static str, all: &[Vec<u8>]) -> Result<Vec<IpAddr>> {
    all.iter()
        .map(|bytes| {
            address_from_bytes(bytes).ok_or(ConversionError::AddressLength { field, length: bytes.len() })
        })
        .collect()
}

fn cidrs(field: &'static str, all: &[String]) -> Result<Vec<IpNet>> {
    all.iter()
        .map(|text| text.parse().map_err(|_| ConversionError::Cidr { field, value: text.clone() }))
        .collect()
}

fn port(field: &'static str, value: u32) -> Result<u16> {
    u16::try_from(value).ok().filter(|port| *port > 0).ok_or(ConversionError::Port { field, value })
}

fn ranges(field: &'static str, all: &[wire::PortRange]) -> Result<Vec<PortRange>> {
    all.iter()
        .map(|range| {
            if range.first > range.last {
                let (first, last) = (range.first, range.last);
                return Err(ConversionError::InvertedRange { field, first, last });
            }
            Ok(PortRange { first: port(field, range.first)?, last: port(field, range.last)? })
        })
        .collect()
}

fn positive<T: Copy + PartialEq + From<u8> + Into<u64>>(field: &'static str, value: T) -> Result<T> {
    if value == T::from(0) {
        return Err(ConversionError::Zero { field, value: value.into() });
    }
    Ok(value)
}

fn milliseconds(field: &'static str, value: u64) -> Result<Duration> {
    positive(field, value).map(Duration::from_millis)
}

#[cfg(test)]
mod tests;
