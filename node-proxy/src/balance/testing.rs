//! Workloads and Services for tests.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Candidate;
use crate::state::model::{
    AppProtocol, Ejection, Membership, Service, ServiceKey, ServicePort, TunnelProtocol, Workload,
    WorkloadUid,
};
use crate::state::{Endpoint, EndpointSet};

/// As settings have it by default.
pub const EJECTION: Ejection = Ejection {
    failures: 5,
    connect_failures: 1,
    base: Duration::from_secs(1),
    max: Duration::from_secs(60),
    max_percent: 50,
};

/// A pod in namespace `ns` with identity `spiffe://cluster.local/ns/ns/sa/NAME`, enrolled.
pub fn workload(name: &str, address: &str) -> Workload {
    Workload {
        uid: WorkloadUid(format!("Kubernetes//Pod/ns/{name}/uid-{name}").into()),
        cluster: "Kubernetes".into(),
        network: "".into(),
        name: name.into(),
        namespace: "ns".into(),
        identity: Some(format!("spiffe://cluster.local/ns/ns/sa/{name}").parse().unwrap()),
        node: "here".into(),
        addresses: vec![address.parse::<IpAddr>().unwrap()],
        host_network: false,
        region: "".into(),
        zone: "".into(),
        tunnel: TunnelProtocol::Hbone,
        labels: Arc::default(),
        memberships: Vec::new(),
        gateway: None,
        own: None,
    }
}

/// A workload's port as an endpoint that is never ejected.
pub fn candidate(workload: Workload, target_port: u16) -> Candidate {
    Candidate {
        address: workload.addresses[0],
        workload: Arc::new(workload),
        target_port,
        load: Arc::default(),
        health: None,
        is_trial: false,
    }
}

/// A Service in namespace `ns` without VIPs.
pub fn service(name: &str, ports: &[(u16, &str)]) -> Service {
    Service {
        key: ServiceKey(format!("ns/{name}").into()),
        name: name.into(),
        namespace: "ns".into(),
        vips: Vec::new(),
        ports: ports
            .iter()
            .map(|(port, name)| ServicePort {
                port: *port,
                name: (*name).to_owned(),
                app_protocol: AppProtocol::Undeclared,
            })
            .collect(),
        headless: false,
        publish_not_ready_addresses: false,
        local_only: false,
        client_ip_affinity: None,
        traffic_distribution: None,
        retry_budget: Default::default(),
        session: None,
    }
}

/// Makes a workload a ready endpoint: port 80 of the Service is 8080 of the workload.
pub fn member(service: &Service) -> Membership {
    Membership {
        service: service.key.clone(),
        ports: vec![(80, 8080)],
        ready: true,
        serving: true,
        terminating: false,
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    }
}

/// The endpoint set of workloads with one membership each.
pub fn endpoint_set(workloads: impl IntoIterator<Item = Workload>) -> Arc<EndpointSet> {
    let endpoints = workloads
        .into_iter()
        .map(|workload| Endpoint { workload: Arc::new(workload), membership: 0 })
        .collect();
    Arc::new(EndpointSet { endpoints })
}
