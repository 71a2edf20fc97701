//! What a cloud does for Services of type LoadBalancer: an address outside the cluster's own ranges, of each family that
//! the Service has.

use std::collections::BTreeSet;
use std::net::IpAddr;

use culvert_objects::types::{ServiceSpec, ServiceType};
use culvert_objects::{Kind, Object, Objects};
use serde_json::{Value, json};

use crate::sandbox::cluster::load_balancer_range;
use crate::sandbox::store::Change;

/// First address that is given out.
const FIRST: u32 = 10;
/// Last one.
const LAST: u32 = 250;

/// Gives addresses to those that have none, and takes them from those that are no longer of the type.
pub fn reconcile(objects: &Objects) -> Vec<Change> {
    let mut taken: BTreeSet<IpAddr> =
        objects.of_kind(Kind::Service).flat_map(|service| ingress(service)).collect();
    let mut changes = Vec::new();
    for service in objects.of_kind(Kind::Service) {
        let Ok(spec) = service.spec::<ServiceSpec>() else { continue };
        let held = ingress(service);
        let wanted = match spec.kind {
            ServiceType::LoadBalancer => addresses(&spec, &held, &mut taken),
            _ => Vec::new(),
        };
        if wanted != held {
            changes.push(Change::Status(service.key(), status(service, &wanted)));
        }
    }
    changes
}

/// The addresses that a Service has outside the cluster.
pub fn ingress(service: &Object) -> Vec<IpAddr> {
    let entries = service.body.get("status").and_then(|status| status.pointer("/loadBalancer/ingress"));
    let entries = entries.and_then(Value::as_array).into_iter().flatten();
    entries.filter_map(|entry| entry.get("ip")?.as_str()?.parse().ok()).collect()
}

/// One per family; both of the same place in their ranges, if that is free. None without a free one.
fn addresses(spec: &ServiceSpec, held: &[IpAddr], taken: &mut BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let wants = |v4: bool| match spec.ip_families.is_empty() {
        true => v4,
        false => spec.ip_families.iter().any(|family| (family == "IPv4") == v4),
    };
    let mut addresses = Vec::new();
    for v4 in [true, false] {
        if !wants(v4) {
            continue;
        }
        let kept = held.iter().copied().find(|address| address.is_ipv4() == v4);
        let place = |n: u32| {
            let pair = load_balancer_range().nth(n);
            if v4 { IpAddr::V4(pair.v4) } else { IpAddr::V6(pair.v6) }
        };
        let address = kept.or_else(|| (FIRST..=LAST).map(place).find(|address| !taken.contains(address)));
        taken.extend(address);
        addresses.extend(address);
    }
    addresses
}

fn status(service: &Object, addresses: &[IpAddr]) -> Value {
    let mut status = service.body.get("status").cloned().unwrap_or_else(|| json!({}));
    let ingress: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
    status["loadBalancer"] = if ingress.is_empty() { json!({}) } else { json!({ "ingress": ingress }) };
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, kind: &str, families: &[&str], status: Value) -> Object {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"type": kind, "ipFamilies": families, "ports": [{"port": 80}]}, "status": status}))
        .unwrap()
    }

    fn given(objects: Vec<Object>) -> Vec<(String, Value)> {
        let objects: Objects = objects.into_iter().collect();
        let changes = reconcile(&objects).into_iter().map(|change| match change {
            Change::Status(key, status) => (key.name, status["loadBalancer"].clone()),
            other => panic!("{other:?}"),
        });
        changes.collect()
    }

    #[test]
    fn each_family_has_an_address_and_keeps_it() {
        let one = service("a", "LoadBalancer", &["IPv4", "IPv6"], json!({}));
        let two = service(
            "b",
            "LoadBalancer",
            &["IPv4"],
            json!({"loadBalancer": {"ingress": [{"ip": "10.90.0.10"}]}}),
        );
        let none = service("c", "ClusterIP", &["IPv4"], json!({}));
        let given = given(vec![one, two, none]);
        let expected = json!({"ingress": [{"ip": "10.90.0.11", "ipMode": "VIP"}, {"ip": "fd00:10:90::a", "ipMode": "VIP"}]});
        assert_eq!(given, [("a".to_owned(), expected)]);
    }

    #[test]
    fn another_type_gives_the_address_back() {
        let was = json!({"loadBalancer": {"ingress": [{"ip": "10.90.0.10"}]}});
        assert_eq!(given(vec![service("a", "ClusterIP", &["IPv4"], was)]), [("a".to_owned(), json!({}))]);
    }
}
