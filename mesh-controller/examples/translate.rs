//! Measures a whole translation: `cargo run --release -p culvert-controller --example translate [PODS [SERVICES [ROUTES [ROUNDS]]]]`.
//! Asserts what it measures: every pod is an endpoint of one Service, and every route, of ten rules, is
//! accepted at its Service. The first round starts from nothing, the others after an edit of one route, in the even ones of one
//! Service's endpoints, too.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use culvert_controller::translate::{Environment, Memory, translate_again, workloads_again};
use culvert_objects::mesh_config::LastGood;
use culvert_objects::{Kind, Object, Objects};
use mimalloc::MiMalloc;
use serde_json::json;

// As in the program.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

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

fn route(n: usize, services: usize) -> serde_json::Value {
    let rule = |rule: usize| {
        json!({"matches": [
                {"path": {"type": "PathPrefix", "value": format!("/v{rule}/items")}, "method": "GET"},
                {"path": {"type": "Exact", "value": format!("/v{rule}")},
                    "headers": [{"name": "x-canary", "value": "yes"}, {"name": "x-user", "type": "RegularExpression", "value": "a[0-9]+"}]}],
            "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-rule", "value": rule.to_string()}]}}],
            "timeouts": {"request": "10s"},
            "backendRefs": [{"name": format!("s{}", n % services), "port": 80, "weight": 90},
                {"name": format!("s{}", (n + 1) % services), "port": 80, "weight": 10}]})
    };
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": format!("r{n}"), "namespace": "shop", "generation": 1},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": format!("s{}", n % services)}],
            "rules": (0..10).map(rule).collect::<Vec<_>>()}})
}

fn cluster(pods: usize, services: usize, routes: usize) -> anyhow::Result<Objects> {
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
    for n in 0..routes {
        objects.push(object(route(n, services))?);
    }
    Ok(objects.into_iter().collect())
}

fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<usize>());
    let pods = numbers.next().transpose()?.unwrap_or(10_000);
    let services = numbers.next().transpose()?.unwrap_or(1_000);
    let routes = numbers.next().transpose()?.unwrap_or(5_000);
    let rounds = numbers.next().transpose()?.unwrap_or(5);
    let mut objects = cluster(pods, services, routes)?;
    let environment = Environment { cluster: "c".into(), network: "n".into(), ..Default::default() };
    let last = LastGood::default();
    let mut memory = Memory::default();
    for round in 1..=rounds {
        if routes > 0 {
            objects.insert(Arc::new(object(route(round % routes, services))?));
        }
        if round % 2 == 0 {
            let slice = objects.find(Kind::EndpointSlice, "shop", "s0").context("a slice")?;
            objects.insert(Arc::new((**slice).clone()));
        }
        let started = Instant::now();
        let translation = translate_again(&objects, &environment, &last, &mut memory.routes);
        let of_mesh = started.elapsed();
        let known = &mut memory.workloads;
        let made = workloads_again(&objects, &environment, &translation.in_force, &last, known);
        let all = started.elapsed();
        let members = made.facts.values().filter(|facts| facts.workload.memberships.len() == 1).count();
        anyhow::ensure!(members == pods && translation.services.len() == services);
        anyhow::ensure!(
            translation
                .routes
                .values()
                .flat_map(|route| &route.rules)
                .filter(|rule| rule.refuse.is_empty())
                .count()
                == 10 * routes
        );
        println!(
            "round {round}: {pods} pods, {services} services, {routes} routes: mesh {of_mesh:?}, workloads {:?}",
            all - of_mesh
        );
    }
    Ok(())
}
