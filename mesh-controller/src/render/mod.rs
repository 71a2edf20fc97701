//! Resources in words, for golden cases: enumerations by name, addresses as text, what is unset left out.

mod routes;

use std::net::IpAddr;

use culvert_api::mesh as pb;
use pb::probe::Check;
use serde_json::{Map, Value, json};

use crate::translate::Facts;

pub use routes::{listener, route};

/// Drops what says nothing: zero, false, empty.
fn trimmed(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let says = |value: &Value| match value {
                Value::Null | Value::Bool(false) => false,
                Value::Number(number) => number.as_u64() != Some(0),
                Value::String(text) => !text.is_empty(),
                Value::Array(items) => !items.is_empty(),
                Value::Object(map) => !map.is_empty(),
                Value::Bool(true) => true,
            };
            let fields = map.into_iter().map(|(key, value)| (key, trimmed(value)));
            fields.filter(|(_, value)| says(value)).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => items.into_iter().map(trimmed).collect(),
        other => other,
    }
}

fn address(bytes: &[u8]) -> String {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let sixteen = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| sixteen()).map_or_else(|_| format!("{bytes:?}"), |address| address.to_string())
}

fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_owned()
}

fn ranges(ranges: &[pb::PortRange]) -> Vec<String> {
    ranges.iter().map(|range| format!("{}-{}", range.first, range.last)).collect()
}

/// The settings of the mesh.
pub fn mesh(mesh: &pb::MeshSettings) -> Value {
    let interception = mesh.interception.unwrap_or_default();
    let log = mesh.access_log.unwrap_or_default();
    let pb::Interception { proxy_mark, outbound_mark, reply_mark, inbound_mark, .. } = interception;
    let marks = [proxy_mark, outbound_mark, reply_mark, inbound_mark];
    trimmed(json!({
        "trustDomain": mesh.trust_domain,
        "trustDomainAliases": mesh.trust_domain_aliases,
        "cluster": mesh.cluster,
        "network": mesh.network,
        "podCidrs": mesh.pod_cidrs,
        "serviceCidrs": mesh.service_cidrs,
        "interception": {
            "mask": format!("{:#x}", interception.mark_mask),
            "marks": marks.map(|mark| format!("{mark:#x}")),
            "table": interception.route_table,
            "priority": interception.rule_priority,
            "ports": [interception.outbound_port, interception.inbound_port, interception.hbone_port],
        },
        "accessLog": {
            "filter": word(log.filter().as_str_name(), "ACCESS_LOG_FILTER_"),
            "format": word(log.format().as_str_name(), "ACCESS_LOG_FORMAT_"),
        },
        // Never the secrets.
        "sessionKeys": mesh.session_keys.iter().map(|key| format!("{:08x}", key.id)).collect::<Vec<_>>(),
    }))
}

/// A Service.
pub fn service(service: &pb::Service) -> Value {
    let port = |port: &pb::ServicePort| {
        let protocol = word(port.app_protocol().as_str_name(), "APP_PROTOCOL_");
        json!({"port": port.port, "name": port.name, "protocol": protocol.replace("UNSPECIFIED", "")})
    };
    let local = service.internal_traffic_policy() == pb::InternalTrafficPolicy::Local;
    trimmed(json!({
        "vips": service.vips.iter().map(|vip| address(vip)).collect::<Vec<_>>(),
        "ports": service.ports.iter().map(port).collect::<Vec<_>>(),
        "headless": service.headless,
        "publishNotReadyAddresses": service.publish_not_ready_addresses,
        "internalTrafficPolicy": if local { "Local" } else { "" },
        "clientIpAffinitySeconds": service.client_ip_affinity_seconds,
        "trafficDistribution": service.traffic_distribution,
        "retryBudget": service.retry_budget.map(|budget| {
            format!("{} % of {} ms, at least {} in {} ms", budget.percent, budget.interval_ms, budget.min_retries,
                budget.min_interval_ms)
        }),
        "session": service.session.as_ref().map(routes::session).unwrap_or_default(),
    }))
}

/// A workload, and whether it is wanted in the mesh.
pub fn workload(facts: &Facts) -> Value {
    let workload = &facts.workload;
    let labels = workload.labels.clone().unwrap_or_default();
    let locality = workload.locality.clone().unwrap_or_default();
    let place = format!("{}/{}", locality.region, locality.zone);
    trimmed(json!({
        "wanted": facts.pod.as_ref().map(|pod| format!("{:?}", pod.wanted)),
        "identity": match workload.service_account.as_str() {
            "" => String::new(),
            account => format!("spiffe://{}/ns/{}/sa/{account}", workload.trust_domain, workload.namespace),
        },
        "name": workload.name,
        "namespace": workload.namespace,
        "node": workload.node,
        "addresses": workload.addresses.iter().map(|bytes| address(bytes)).collect::<Vec<_>>(),
        "hostNetwork": workload.host_network,
        "gateway": workload.gateway,
        "locality": place.trim_matches('/'),
        "labels": {
            "workload": format!("{} {}", labels.workload_type, labels.workload).trim(),
            "app": labels.app,
            "version": labels.version,
            "canonical": format!("{} {}", labels.canonical_service, labels.canonical_revision).trim(),
        },
        "memberships": workload.memberships.iter().map(membership).collect::<Vec<_>>(),
        "settings": workload.settings.as_ref().map(settings),
        "probes": workload.probes.iter().map(probe).collect::<Vec<_>>(),
    }))
}

fn membership(membership: &pb::Membership) -> Value {
    let port = |port: &pb::PortMapping| format!("{} -> {}", port.service_port, port.target_port);
    let states = [
        (membership.ready, "ready"),
        (membership.serving, "serving"),
        (membership.terminating, "terminating"),
    ];
    json!({
        "service": membership.service,
        "ports": membership.ports.iter().map(port).collect::<Vec<_>>(),
        "state": states.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect::<Vec<_>>().join(", "),
        "zoneHints": membership.zone_hints,
        "nodeHints": membership.node_hints,
    })
}

/// Only what differs from the defaults: everything else is the same in every case.
fn settings(settings: &pb::WorkloadSettings) -> Value {
    let default = crate::translate::default_settings();
    let mode = |mode: i32| {
        let mode = pb::InboundMode::try_from(mode).unwrap_or_default();
        word(mode.as_str_name(), "INBOUND_MODE_")
    };
    let limits = settings.limits.unwrap_or_default();
    let timeouts = settings.timeouts.unwrap_or_default();
    let port_modes = settings.port_modes.iter().map(|at| format!("{}={}", at.port, mode(at.mode)));
    let mut words = json!({
        "portModes": port_modes.collect::<Vec<_>>(),
        "excludeOutboundPorts": ranges(&settings.exclude_outbound_ports),
        "excludeOutboundCidrs": settings.exclude_outbound_cidrs,
        "excludeInboundPorts": ranges(&settings.exclude_inbound_ports),
        "opaquePorts": ranges(&settings.opaque_ports),
    });
    if settings.inbound_mode != default.inbound_mode {
        words["inboundMode"] = mode(settings.inbound_mode).into();
    }
    if settings.outbound_policy != default.outbound_policy {
        words["outboundPolicy"] = word(settings.outbound_policy().as_str_name(), "OUTBOUND_POLICY_").into();
    }
    if settings.udp != default.udp {
        words["udp"] = word(settings.udp().as_str_name(), "UDP_POLICY_").into();
    }
    if settings.limits != default.limits {
        words["limits"] = limits_words(limits).into();
    }
    if settings.timeouts != default.timeouts {
        words["timeoutsMs"] = json!({
            "connect": timeouts.connect_ms,
            "tlsHandshake": timeouts.tls_handshake_ms,
            "tunnelHandshake": timeouts.tunnel_handshake_ms,
            "unknownDestination": timeouts.unknown_destination_ms,
            "halfClosedIdle": timeouts.half_closed_idle_ms,
            "drain": timeouts.drain_ms,
            "requestHead": timeouts.request_head_ms,
            "bodyIdle": timeouts.body_idle_ms,
            "connectionIdle": timeouts.connection_idle_ms,
        });
    }
    if settings.ejection != default.ejection {
        words["ejection"] = ejection_words(settings.ejection.unwrap_or_default()).into();
    }
    words
}

fn limits_words(limits: pb::Limits) -> String {
    let pb::Limits { connections, memory_bytes, requests, request_head_bytes, streams } = limits;
    format!(
        "{connections} connections, {memory_bytes} bytes, {requests} requests, {streams} of one HTTP/2 connection, \
         heads of {request_head_bytes} bytes"
    )
}

fn ejection_words(ejection: pb::Ejection) -> String {
    let pb::Ejection { disabled, failures, connect_failures, base_ms, max_ms, max_percent } = ejection;
    if disabled {
        return "disabled".to_owned();
    }
    format!(
        "after {failures} failures or {connect_failures} of connecting, {base_ms} to {max_ms} ms, at most {max_percent} %"
    )
}

fn probe(probe: &pb::Probe) -> Value {
    let check = match &probe.check {
        Some(Check::HttpGet(get)) => {
            let scheme = if get.https { "https" } else { "http" };
            let headers = get.headers.iter().map(|header| format!(" {}: {}", header.name, header.value));
            format!("{scheme} {}{}", get.path, headers.collect::<String>())
        }
        Some(Check::TcpConnect(_)) => "tcp".to_owned(),
        Some(Check::GrpcHealth(health)) => format!("grpc {}", health.service).trim().to_owned(),
        None => "nothing".to_owned(),
    };
    format!("{}: {check}", probe.port).into()
}
