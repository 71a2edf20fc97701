//! Service objects to Service resources.

use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_api::mesh as pb;
use culvert_objects::types::{Protocol, ServicePort, ServiceSpec, ServiceType};
use culvert_objects::{Kind, Object, Objects};

use super::routes::session_message;
use super::traffic_policies::TrafficPolicies;

/// Every Service that carries TCP, by `namespace/name`. An ExternalName is only a name for resolvers.
pub fn resources(objects: &Objects, policies: &TrafficPolicies) -> BTreeMap<String, pb::Service> {
    objects.of_kind(Kind::Service).filter_map(|service| resource(service, policies)).collect()
}

fn resource(service: &Object, policies: &TrafficPolicies) -> Option<(String, pb::Service)> {
    let spec: ServiceSpec = service.spec().ok()?;
    if spec.kind == ServiceType::ExternalName {
        return None;
    }
    let local = spec.internal_traffic_policy == "Local";
    let policy = if local { pb::InternalTrafficPolicy::Local } else { pb::InternalTrafficPolicy::Cluster };
    let (namespace, name) = (service.namespace(), service.name());
    let session = policies.sessions.of(namespace, name).map(|of| of.of_service(namespace, name));
    let resource = pb::Service {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        vips: spec.vips().into_iter().map(address_bytes).collect(),
        ports: tcp_ports(&spec).map(port).collect(),
        headless: spec.is_headless(),
        publish_not_ready_addresses: spec.publish_not_ready_addresses,
        internal_traffic_policy: policy.into(),
        client_ip_affinity_seconds: spec.client_ip_affinity_seconds().unwrap_or(0),
        traffic_distribution: spec.traffic_distribution.clone(),
        retry_budget: policies.budgets.get(&(namespace.to_owned(), name.to_owned())).copied(),
        session: session.as_ref().map(session_message),
    };
    Some((key(namespace, name), resource))
}

/// `namespace/name`.
pub fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// 4 or 16 bytes in network order.
pub fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// UDP and SCTP pass by the mesh.
pub fn tcp_ports(spec: &ServiceSpec) -> impl Iterator<Item = &ServicePort> {
    spec.ports.iter().filter(|port| port.protocol == Protocol::Tcp)
}

fn port(port: &ServicePort) -> pb::ServicePort {
    let declared = declared(port.app_protocol.as_deref(), &port.name);
    pb::ServicePort { port: port.port.into(), name: port.name.clone(), app_protocol: declared.into() }
}

/// What a port carries, by its `appProtocol`, else by its name.
pub fn declared(app_protocol: Option<&str>, name: &str) -> pb::AppProtocol {
    match app_protocol {
        Some(declared) if !declared.is_empty() => by_app_protocol(declared),
        _ => by_name(name),
    }
}

/// `appProtocol`: the names of Kubernetes and those in common use. An unknown one declares nothing.
fn by_app_protocol(declared: &str) -> pb::AppProtocol {
    match declared.to_ascii_lowercase().as_str() {
        "kubernetes.io/h2c" => pb::AppProtocol::Http2,
        "kubernetes.io/ws" => pb::AppProtocol::Http1,
        "kubernetes.io/wss" => pb::AppProtocol::Tls,
        other => by_word(other),
    }
}

/// The convention `PROTOCOL` or `PROTOCOL-ANYTHING` for port names.
fn by_name(name: &str) -> pb::AppProtocol {
    by_word(name.split('-').next().unwrap_or_default())
}

fn by_word(word: &str) -> pb::AppProtocol {
    match word {
        // A WebSocket begins as a request of HTTP/1.1 (RFC 6455, 1.2).
        "http" | "ws" => pb::AppProtocol::Http1,
        "http2" | "h2c" => pb::AppProtocol::Http2,
        "grpc" => pb::AppProtocol::Grpc,
        "https" | "wss" | "tls" => pb::AppProtocol::Tls,
        "tcp" | "mongo" | "mysql" | "postgres" | "postgresql" | "redis" => pb::AppProtocol::Tcp,
        _ => pb::AppProtocol::Unspecified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_declared_by_app_protocol_then_by_name() {
        use pb::AppProtocol::*;
        let cases = [
            ("grpc", None, Grpc),
            ("http-web", None, Http1),
            ("httpx", None, Unspecified),
            ("http", Some("kubernetes.io/h2c"), Http2),
            ("tcp", Some("http"), Http1),
            ("tcp", Some("h2c"), Http2),
            ("tcp", Some("grpc"), Grpc),
            ("tcp", Some("ws"), Http1),
            ("tcp", Some("kubernetes.io/ws"), Http1),
            ("http", Some("wss"), Tls),
            ("http", Some("kubernetes.io/wss"), Tls),
            ("http", Some("https"), Tls),
            ("http", Some("HTTPS"), Tls),
            ("http", Some("tls"), Tls),
            ("ws-chat", None, Http1),
            ("http", Some("tcp"), Tcp),
            ("http", Some("example.com/own"), Unspecified),
            ("http", Some(""), Http1),
        ];
        for (name, declared, expected) in cases {
            let found = port(&ServicePort {
                name: name.to_owned(),
                port: 80,
                app_protocol: declared.map(str::to_owned),
                ..ServicePort::default()
            });
            assert_eq!(found.app_protocol(), expected, "{name} {declared:?}");
        }
    }
}
