//! `/config`: what is in force, as JSON.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::AdminSources;
use crate::balance::{Carried, Ejected};
use crate::pods::PodReport;
use crate::state::Snapshot;
use crate::state::model::{
    AccessLogFilter, AccessLogFormat, Enrolment, InboundMode, MeshSettings, OutboundPolicy, PortRange,
    Service, TunnelProtocol, UdpPolicy, Workload, WorkloadSettings, WorkloadUid,
};
use crate::worker::Workers;

/// The parts, in the order in which they are written.
const PARTS: [&str; 10] = [
    "node",
    "controller",
    "mesh",
    "workloads",
    "services",
    "certificates",
    "pods",
    "connections",
    "ejected",
    "refused",
];

/// A part that does not exist was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnknownPart(String);

impl fmt::Display for UnknownPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no part {:?}; ?only= takes some of {}", self.0, PARTS.join(","))
    }
}

/// Everything, or the parts named in `only`, separated by commas.
pub(super) fn render(sources: &AdminSources, only: Option<&str>) -> Result<String, UnknownPart> {
    let wanted: Vec<&str> = only.map_or_else(|| PARTS.to_vec(), |only| only.split(',').collect());
    if let Some(unknown) = wanted.iter().find(|part| !PARTS.contains(part)) {
        return Err(UnknownPart((*unknown).to_owned()));
    }
    let snapshot = sources.snapshots.load_full();
    let mut parts = serde_json::Map::new();
    for name in PARTS.into_iter().filter(|name| wanted.contains(name)) {
        parts.insert(name.to_owned(), part(name, &snapshot, sources));
    }
    Ok(Value::Object(parts).to_string())
}

fn part(name: &str, snapshot: &Snapshot, sources: &AdminSources) -> Value {
    match name {
        "node" => json!({
            "name": snapshot.node(),
            "version": snapshot.version(),
            "origin": snapshot.origin(),
            "stale": snapshot.is_stale(),
            "proxy_version": env!("CARGO_PKG_VERSION"),
        }),
        "controller" => controller(sources),
        "mesh" => mesh(snapshot.mesh()),
        "workloads" => sorted(snapshot.workloads().map(|one| (one.uid.0.clone(), workload(one)))),
        "services" => sorted(snapshot.services().map(|one| (one.key.0.clone(), service(one, snapshot)))),
        "certificates" => json!(sources.certificates.statuses()),
        "pods" => sources.pods.borrow().iter().map(|(uid, report)| pod(uid, report)).collect(),
        "connections" => json!(sources.workers.get().map(Workers::pods).unwrap_or_default()),
        "ejected" => {
            let ejected = sources.workers.get().map(|workers| workers.ejected(snapshot));
            ejected.unwrap_or_default().iter().map(self::ejected).collect()
        }
        _ => json!(snapshot.refused()),
    }
}

fn ejected(ejected: &Ejected) -> Value {
    json!({
        "service": ejected.service.0,
        "port": ejected.port,
        "carried": match ejected.carried {
            Carried::Connections => "connections",
            Carried::Requests => "requests",
        },
        "workload": format!("{}/{}", ejected.workload.namespace, ejected.workload.name),
        "uid": ejected.workload.uid.0,
        "address": ejected.address,
        "times": ejected.times,
        "for_ms": milliseconds(ejected.since),
        "trial_in_ms": milliseconds(ejected.trial_in),
    })
}

fn sorted<K: Ord>(all: impl Iterator<Item = (K, Value)>) -> Value {
    let mut all: Vec<(K, Value)> = all.collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all.into_iter().map(|(_, value)| value).collect()
}

fn controller(sources: &AdminSources) -> Value {
    let reading = sources.control.read();
    let age = |at: Option<tokio::time::Instant>| at.map(|at| at.elapsed().as_secs());
    json!({
        "connected": reading.connected_since.is_some(),
        "connected_for_seconds": age(reading.connected_since),
        "last_heard_seconds_ago": age(reading.last_heard),
        "last_error": reading.last_error,
    })
}

fn mesh(mesh: &MeshSettings) -> Value {
    let interception = mesh.interception;
    json!({
        "trust_domain": mesh.trust_domain,
        "trust_domain_aliases": mesh.trust_domain_aliases,
        "cluster": mesh.cluster,
        "network": mesh.network,
        "pod_cidrs": mesh.pod_cidrs,
        "service_cidrs": mesh.service_cidrs,
        "interception": {
            "mark_mask": interception.mark_mask,
            "proxy_mark": interception.proxy_mark,
            "outbound_mark": interception.outbound_mark,
            "reply_mark": interception.reply_mark,
            "inbound_mark": interception.inbound_mark,
            "route_table": interception.route_table,
            "rule_priority": interception.rule_priority,
            "outbound_port": interception.outbound_port,
            "inbound_port": interception.inbound_port,
            "hbone_port": interception.hbone_port,
        },
        "access_log": {
            "filter": match mesh.access_log.filter {
                AccessLogFilter::Failures => "failures",
                AccessLogFilter::All => "all",
                AccessLogFilter::None => "none",
            },
            "format": match mesh.access_log.format {
                AccessLogFormat::Json => "json",
                AccessLogFormat::Text => "text",
            },
        },
    })
}

fn workload(workload: &Workload) -> Value {
    let memberships: Vec<Value> = workload
        .memberships
        .iter()
        .map(|membership| {
            json!({
                "service": membership.service.0,
                "ports": membership.ports,
                "ready": membership.ready,
                "serving": membership.serving,
                "terminating": membership.terminating,
                "zone_hints": membership.zone_hints,
                "node_hints": membership.node_hints,
            })
        })
        .collect();
    json!({
        "uid": workload.uid.0,
        "namespace": workload.namespace,
        "name": workload.name,
        "workload": workload.labels.workload,
        "node": workload.node,
        "zone": workload.zone,
        "identity": workload.identity,
        "addresses": workload.addresses,
        "host_network": workload.host_network,
        "tunnel": match workload.tunnel {
            TunnelProtocol::Undecided => "undecided",
            TunnelProtocol::Plaintext => "none",
            TunnelProtocol::Hbone => "hbone",
        },
        "memberships": memberships,
        "own": workload.own.as_ref().map(|own| json!({
            "enrolment": match own.enrolment {
                Enrolment::NotEnrolled => "not_enrolled",
                Enrolment::Enrolled => "enrolled",
                Enrolment::Leaving => "leaving",
            },
            "settings": settings(&own.settings),
            "probes": own.probes.len(),
        })),
    })
}

fn settings(settings: &WorkloadSettings) -> Value {
    let mode = |mode: InboundMode| match mode {
        InboundMode::Permissive => "permissive",
        InboundMode::Strict => "strict",
    };
    let ranges =
        |all: &[PortRange]| all.iter().map(|range| json!([range.first, range.last])).collect::<Value>();
    let (limits, timeouts) = (settings.limits, settings.timeouts);
    json!({
        "inbound_mode": mode(settings.inbound_mode),
        "port_modes": settings.port_modes.iter().map(|(port, over)| json!([port, mode(*over)])).collect::<Value>(),
        "outbound_policy": match settings.outbound_policy {
            OutboundPolicy::Allow => "allow",
            OutboundPolicy::RegistryOnly => "registry_only",
        },
        "udp": match settings.udp {
            UdpPolicy::Allow => "allow",
            UdpPolicy::Deny => "deny",
        },
        "exclude_outbound_ports": ranges(&settings.exclude_outbound_ports),
        "exclude_outbound_cidrs": settings.exclude_outbound_cidrs,
        "exclude_inbound_ports": ranges(&settings.exclude_inbound_ports),
        "opaque_ports": ranges(&settings.opaque_ports),
        "limits": {
            "connections": limits.connections,
            "memory_bytes": limits.memory_bytes,
            "requests": limits.requests,
            "request_head_bytes": limits.request_head_bytes,
            "streams": limits.streams,
        },
        "timeouts_ms": {
            "connect": milliseconds(timeouts.connect),
            "tls_handshake": milliseconds(timeouts.tls_handshake),
            "tunnel_handshake": milliseconds(timeouts.tunnel_handshake),
            "unknown_destination": milliseconds(timeouts.unknown_destination),
            "half_closed_idle": milliseconds(timeouts.half_closed_idle),
            "drain": milliseconds(timeouts.drain),
            "request_head": milliseconds(timeouts.request_head),
            "body_idle": milliseconds(timeouts.body_idle),
            "connection_idle": milliseconds(timeouts.connection_idle),
        },
        "ejection": settings.ejection.map(|ejection| json!({
            "failures": ejection.failures,
            "connect_failures": ejection.connect_failures,
            "base_ms": milliseconds(ejection.base),
            "max_ms": milliseconds(ejection.max),
            "max_percent": ejection.max_percent,
        })),
    })
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn service(service: &Service, snapshot: &Snapshot) -> Value {
    let ports: Vec<Value> =
        service.ports.iter().map(|port| json!({ "port": port.port, "name": port.name })).collect();
    json!({
        "service": service.key.0,
        "vips": service.vips,
        "ports": ports,
        "headless": service.headless,
        "publish_not_ready_addresses": service.publish_not_ready_addresses,
        "local_only": service.local_only,
        "client_ip_affinity_seconds": service.client_ip_affinity.map(|affinity| affinity.as_secs()),
        "traffic_distribution": service.traffic_distribution,
        "endpoints": snapshot.endpoints(&service.key).map_or(0, |set| set.endpoints.len()),
    })
}

fn pod(uid: &WorkloadUid, report: &PodReport) -> Value {
    json!({
        "uid": uid.0,
        "phase": report.phase.as_str(),
        "message": report.message,
        "uncaptured_connections": report.uncaptured_connections,
        "identity": report.identity,
        "certificate_not_after": report.certificate_not_after.map(crate::identity::seconds_since_epoch),
        "listeners": report.listeners,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, OnceLock};

    use tokio::sync::watch;

    use super::*;
    use crate::identity::Certificates;
    use crate::pods::{Phase, PodReports};
    use crate::state::testing::{
        mesh_resource, service_resource, uid, wire_mesh, wire_workload, workload_resource,
    };
    use crate::state::{ControlStatus, Origin, Resources, Snapshots};
    use crate::telemetry::{AccessLog, Telemetry};

    fn sources() -> AdminSources {
        let mut bad = wire_workload("bad", &[1]);
        bad.tunnel = 77;
        let mut resources = Resources::default();
        resources.set_node("one");
        resources.apply(culvert_api::mesh::Page {
            upserts: vec![
                mesh_resource(wire_mesh()),
                service_resource("shop", "cart", 1),
                workload_resource(wire_workload("a", &[1])),
                workload_resource(bad),
            ],
            removals: Vec::new(),
        });
        let snapshots = Snapshots::new(resources.freeze(Origin::Kept, "v1").unwrap().0);
        let report = PodReport {
            phase: Phase::Waiting,
            message: "no certificate yet".to_owned(),
            uncaptured_connections: 2,
            identity: None,
            certificate_not_after: None,
            listeners: BTreeMap::new(),
        };
        let (_, pods) = watch::channel(PodReports::from([(uid("a"), report)]));
        AdminSources {
            telemetry: Telemetry::new(snapshots.clone(), AccessLog::discarded()),
            snapshots,
            certificates: Certificates::new(),
            pods,
            control: ControlStatus::default(),
            workers: Arc::new(OnceLock::new()),
        }
    }

    #[test]
    fn what_is_in_force_can_be_read() {
        let text = render(&sources(), None).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config["node"]["name"], "one");
        assert_eq!((&config["node"]["version"], &config["node"]["stale"]), (&json!("v1"), &json!(true)));
        assert_eq!(config["workloads"][0]["own"]["enrolment"], "enrolled");
        assert_eq!(config["services"][0]["endpoints"], 1);
        assert_eq!(config["pods"][0]["phase"], "Waiting");
        assert_eq!(config["refused"][0]["kind"], "workload");
        assert_eq!(config["refused"][0]["last_good_in_force"], false);
        assert_eq!(config["controller"]["connected"], false);
        assert_eq!(config["mesh"]["interception"]["hbone_port"], 15008);
    }

    #[test]
    fn parts_can_be_read_alone() {
        let config: Value = serde_json::from_str(&render(&sources(), Some("node,pods")).unwrap()).unwrap();
        assert_eq!(config.as_object().unwrap().keys().collect::<Vec<_>>(), ["node", "pods"]);
        assert!(
            render(&sources(), Some("node,nodes"))
                .is_err_and(|error| error.to_string().contains("\"nodes\""))
        );
    }
}
