//! What must not grow with the cluster: choosing an endpoint, and taking up what has become of one pod.
//! `cargo bench -p culvert-node-proxy --bench large`. The budgets: 1 us for a pick, 100 us for a pod's event.
#![allow(clippy::unwrap_used, reason = "what the benchmark is made of is valid")]

use std::net::IpAddr;
use std::sync::Arc;

use culvert_node_proxy::balance::{Balancer, Carried, Family, Wanted};
use culvert_node_proxy::state::model::{
    AppProtocol, Ejection, Membership, Service, ServiceKey, ServicePort, TunnelProtocol, Workload,
    WorkloadUid,
};
use culvert_node_proxy::state::{Builder, Endpoint, EndpointSet, Origin, Snapshot};
use divan::Bencher;
use divan::counter::ItemsCount;

const SERVICES: usize = 1_000;

fn main() {
    divan::main();
}

/// A pod that is a ready endpoint of the Service.
fn workload(number: usize, service: &str) -> Workload {
    let [_, high, middle, low] = u32::try_from(number).unwrap().to_be_bytes();
    Workload {
        uid: WorkloadUid(format!("Kubernetes//Pod/shop/pod-{number}/uid-{number}").into()),
        cluster: "Kubernetes".into(),
        network: "".into(),
        name: format!("pod-{number}").into(),
        namespace: "shop".into(),
        identity: Some("spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()),
        node: format!("node-{}", number / 100).into(),
        addresses: vec![IpAddr::from([10, high, middle, low])],
        host_network: false,
        region: "".into(),
        zone: "a".into(),
        tunnel: TunnelProtocol::Hbone,
        labels: Arc::default(),
        memberships: vec![Membership {
            service: ServiceKey(service.into()),
            ports: vec![(80, 8080)],
            ready: true,
            serving: true,
            terminating: false,
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
        }],
        gateway: None,
        own: None,
    }
}

fn service() -> Arc<Service> {
    Arc::new(Service {
        key: ServiceKey("shop/cart".into()),
        name: "cart".into(),
        namespace: "shop".into(),
        vips: Vec::new(),
        ports: vec![ServicePort { port: 80, name: "http".to_owned(), app_protocol: AppProtocol::Undeclared }],
        headless: false,
        publish_not_ready_addresses: false,
        local_only: false,
        client_ip_affinity: None,
        traffic_distribution: None,
        retry_budget: Default::default(),
        session: None,
    })
}

/// Of a Service with so many endpoints, with ejection as it is by default; what is picked counts as under way while the next
/// is.
#[divan::bench(args = [10, 1_000, 10_000])]
fn pick(bencher: Bencher<'_, '_>, endpoints: usize) {
    let service = service();
    let members = (0..endpoints).map(|number| workload(number, &service.key.0));
    let endpoints =
        members.map(|workload| Endpoint { workload: Arc::new(workload), membership: 0 }).collect();
    let set = Arc::new(EndpointSet { endpoints });
    let balancer = Balancer::new(Arc::default(), "node-0".into());
    let second = std::time::Duration::from_secs(1);
    let ejection =
        Ejection { failures: 5, connect_failures: 1, base: second, max: second * 60, max_percent: 50 };
    let wanted = Wanted {
        service: &service,
        port: 80,
        family: Family::V4,
        client: IpAddr::from([10, 9, 0, 1]),
        zone: "a",
        carried: Carried::Requests,
        ejection: Some(&ejection),
    };
    let mut under_way = None;
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        let picked = balancer.pick(Some(&set), divan::black_box(&wanted), &[]).unwrap();
        under_way.replace(picked.begin())
    });
}

fn freeze(builder: &mut Builder) -> Snapshot {
    builder.freeze(Origin::Controller, "v")
}

/// A pod becomes unready, or ready again: a snapshot is made, the one before it dropped.
#[divan::bench(args = [10_000, 100_000])]
fn pod_event(bencher: Bencher<'_, '_>, workloads: usize) {
    let make = |number: usize| workload(number, &format!("shop/service-{}", number % SERVICES));
    let mut builder = Builder::new();
    for number in 0..workloads {
        builder.upsert_workload(make(number));
    }
    let mut in_force = freeze(&mut builder);
    let mut number = 0;
    let next = || {
        number += 1;
        let mut one = make(number * 17 % workloads);
        one.memberships[0].ready = number / workloads % 2 == 1;
        one
    };
    // The old snapshot is dropped inside of what is measured, as a proxy has to do.
    bencher.counter(ItemsCount::new(1_usize)).with_inputs(next).bench_local_values(|one| {
        builder.upsert_workload(one);
        in_force = freeze(&mut builder);
    });
    assert_eq!(in_force.workload_count(), workloads);
}
