//! Measures a whole translation: `cargo run --release -p culvert-controller --example translate [PODS [SERVICES]]`.
//! Asserts what it measures: every pod is an endpoint of one Service, and in the first snapshot.

use std::time::Instant;

use culvert_controller::translate::{Environment, translate, workloads};
use culvert_objects::mesh_config::LastGood;
use culvert_objects::{Object, Objects};
use serde_json::json;

fn object(value: serde_json::Value) -> anyhow::Result<Object> {
    Ok(serde_json::from_value(value)?)
}

fn pod(n: usize, service: usize, address: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("p{n}"), "namespace": "shop", "uid": format!("u{n}"),
            "labels": {"app": format!("s{service}"), "version": "v1"}},
        "spec": {"nodeName": format!("n{}", n % 100), "serviceAccountName": format!("s{service}"),
            "containers": [{"name": "c", "image": "culvert/echo", "ports": [{"containerPort": 8080}],
                "readinessProbe": {"httpGet": {"path": "/", "port": 8080}}}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}})
}

fn cluster(pods: usize, services: usize) -> anyhow::Result<Objects> {
    let mut objects = vec![object(json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"culvert.dev/mesh": "enabled"}}}))?];
    let address = |net: usize, n: usize| format!("10.{net}.{}.{}", n / 250, n % 250 + 1);
    let mut endpoints = vec![Vec::new(); services];
    for n in 0..pods {
        let (service, address) = (n % services, address(1 + n / 60_000, n % 60_000));
        endpoints[service].push(json!({"addresses": [address], "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": format!("p{n}"), "uid": format!("u{n}")}}));
        objects.push(object(pod(n, service, &address))?);
    }
    for (n, endpoints) in endpoints.into_iter().enumerate() {
        let name = format!("s{n}");
        objects.push(object(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"clusterIP": address(200, n), "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}))?);
        objects.push(object(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints}))?);
    }
    Ok(objects.into_iter().collect())
}

fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<usize>());
    let pods = numbers.next().transpose()?.unwrap_or(10_000);
    let services = numbers.next().transpose()?.unwrap_or(1_000);
    let objects = cluster(pods, services)?;
    let environment = Environment { cluster: "c".into(), network: "n".into(), ..Default::default() };
    let last = LastGood::default();
    for round in 1..=5 {
        let started = Instant::now();
        let translation = translate(&objects, &environment, &last);
        let of_mesh = started.elapsed();
        let made = workloads(&objects, &environment, &translation.in_force, &last);
        let all = started.elapsed();
        let members = made.facts.values().filter(|facts| facts.workload.memberships.len() == 1).count();
        anyhow::ensure!(members == pods && translation.services.len() == services);
        println!(
            "round {round}: {pods} pods, {services} services: mesh {of_mesh:?}, workloads {:?}",
            all - of_mesh
        );
    }
    Ok(())
}
