//! Values of the model, and resources on the wire, for tests.

use std::net::IpAddr;

use culvert_api::mesh as wire;

use super::model::{
    Ejection, Enrolment, InboundMode, Limits, Membership, OutboundPolicy, OwnWorkload, Service, ServiceKey,
    Timeouts, TunnelProtocol, UdpPolicy, Workload, WorkloadSettings, WorkloadUid,
};

pub(crate) fn uid(name: &str) -> WorkloadUid {
    WorkloadUid(format!("c/n/Pod/shop/{name}/{name}-uid").into())
}

pub(crate) fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

pub(crate) fn workload(name: &str, addresses: &[u8]) -> Workload {
    Workload {
        uid: uid(name),
        cluster: "c".into(),
        network: "n".into(),
        name: name.into(),
        namespace: "shop".into(),
        identity: "spiffe://cluster.local/ns/shop/sa/cart".parse().ok(),
        node: "one".into(),
        addresses: addresses.iter().copied().map(address).collect(),
        host_network: false,
        region: "".into(),
        zone: "".into(),
        tunnel: TunnelProtocol::Hbone,
        labels: std::sync::Arc::default(),
        memberships: Vec::new(),
        gateway: None,
        own: None,
    }
}

pub(crate) fn member(service: &str) -> Membership {
    Membership {
        service: ServiceKey(service.into()),
        ports: vec![(80, 8080)],
        ready: true,
        serving: true,
        terminating: false,
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    }
}

pub(crate) fn own() -> OwnWorkload {
    let second = std::time::Duration::from_secs(1);
    OwnWorkload {
        enrolment: Enrolment::Enrolled,
        settings: WorkloadSettings {
            inbound_mode: InboundMode::Permissive,
            port_modes: Vec::new(),
            outbound_policy: OutboundPolicy::Allow,
            udp: UdpPolicy::Allow,
            exclude_outbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            opaque_ports: Vec::new(),
            limits: Limits {
                connections: 1000,
                memory_bytes: 1 << 20,
                requests: 1000,
                request_head_bytes: 64 << 10,
                streams: 100,
            },
            timeouts: Timeouts {
                connect: second,
                tls_handshake: second,
                tunnel_handshake: second,
                unknown_destination: second,
                half_closed_idle: second,
                drain: second,
                request_head: second,
                body_idle: second,
                connection_idle: second,
            },
            ejection: Some(Ejection::default()),
        },
        probes: Vec::new(),
    }
}

pub(crate) fn service(key: &str, vips: &[u8]) -> Service {
    let (namespace, name) = key.split_once('/').unwrap();
    Service {
        key: ServiceKey(key.into()),
        name: name.into(),
        namespace: namespace.into(),
        vips: vips.iter().copied().map(address).collect(),
        ports: Vec::new(),
        headless: false,
        publish_not_ready_addresses: false,
        local_only: false,
        client_ip_affinity: None,
        traffic_distribution: None,
        retry_budget: Default::default(),
        session: None,
    }
}

/// On the wire: what [`workload`] is, of this node and enrolled.
pub(crate) fn wire_workload(name: &str, addresses: &[u8]) -> wire::Workload {
    wire::Workload {
        uid: uid(name).to_string(),
        cluster: "c".to_owned(),
        network: "n".to_owned(),
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        service_account: "cart".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        node: "one".to_owned(),
        addresses: addresses.iter().map(|last| vec![10, 0, 0, *last]).collect(),
        tunnel: wire::Tunnel::Hbone.into(),
        memberships: vec![wire::Membership {
            service: "shop/cart".to_owned(),
            ports: vec![wire::PortMapping { service_port: 80, target_port: 8080 }],
            ready: true,
            serving: true,
            ..wire::Membership::default()
        }],
        enrolment: wire::Enrolment::Enrolled.into(),
        settings: Some(wire_settings()),
        ..wire::Workload::default()
    }
}

pub(crate) fn wire_settings() -> wire::WorkloadSettings {
    wire::WorkloadSettings {
        limits: Some(wire::Limits {
            connections: 1000,
            memory_bytes: 1 << 20,
            requests: 1000,
            request_head_bytes: 64 << 10,
            streams: 100,
        }),
        timeouts: Some(wire::Timeouts {
            connect_ms: 1000,
            tls_handshake_ms: 1000,
            tunnel_handshake_ms: 1000,
            unknown_destination_ms: 0,
            half_closed_idle_ms: 1000,
            drain_ms: 1000,
            request_head_ms: 1000,
            body_idle_ms: 1000,
            connection_idle_ms: 1000,
        }),
        ..wire::WorkloadSettings::default()
    }
}

pub(crate) fn wire_mesh() -> wire::MeshSettings {
    wire::MeshSettings {
        trust_domain: "cluster.local".to_owned(),
        cluster: "c".to_owned(),
        network: "n".to_owned(),
        pod_cidrs: vec!["10.0.0.0/16".to_owned()],
        service_cidrs: vec!["10.96.0.0/16".to_owned()],
        interception: Some(wire::Interception {
            mark_mask: 0xfff,
            proxy_mark: 0x539,
            outbound_mark: 0x111,
            reply_mark: 0x112,
            inbound_mark: 0x113,
            route_table: 100,
            rule_priority: 100,
            outbound_port: 15001,
            inbound_port: 15006,
            hbone_port: 15008,
        }),
        ..wire::MeshSettings::default()
    }
}

fn resource(kind: wire::ResourceType, name: &str, body: wire::resource::Body) -> wire::Resource {
    use prost::Message as _;
    let mut resource = wire::Resource {
        key: Some(wire::ResourceKey { r#type: kind.into(), name: name.to_owned() }),
        version: String::new(),
        body: Some(body),
    };
    // Any function of the content is a version.
    resource.version =
        format!("v{}", resource.encode_to_vec().iter().map(|byte| u64::from(*byte)).sum::<u64>());
    resource
}

pub(crate) fn mesh_resource(mesh: wire::MeshSettings) -> wire::Resource {
    resource(wire::ResourceType::MeshSettings, "mesh", wire::resource::Body::MeshSettings(mesh))
}

pub(crate) fn workload_resource(workload: wire::Workload) -> wire::Resource {
    let name = workload.uid.clone();
    resource(wire::ResourceType::Workload, &name, wire::resource::Body::Workload(workload))
}

pub(crate) fn service_resource(namespace: &str, name: &str, vip: u8) -> wire::Resource {
    let service = wire::Service {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        vips: vec![vec![10, 96, 0, vip]],
        ports: vec![wire::ServicePort { port: 80, name: "http".to_owned(), app_protocol: 0 }],
        ..wire::Service::default()
    };
    resource(
        wire::ResourceType::Service,
        &format!("{namespace}/{name}"),
        wire::resource::Body::Service(service),
    )
}

pub(crate) fn namespace_resource(name: &str, enrols: bool) -> wire::Resource {
    let namespace = wire::Namespace { name: name.to_owned(), enrols };
    resource(wire::ResourceType::Namespace, name, wire::resource::Body::Namespace(namespace))
}
