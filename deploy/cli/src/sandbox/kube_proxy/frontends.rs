//! Which Service addresses lead where, as one node sees it. Pure.

use std::net::{IpAddr, SocketAddr};

use culvert_objects::types::{Endpoint, EndpointSlice, ServicePort, ServiceSpec, SessionAffinity};
use culvert_objects::{Kind, Object, Objects};

use super::frontend::{Choice, Entry, Frontend, Without};
use crate::sandbox::controllers::ingress;

/// Every address and port of every Service.
#[must_use]
pub fn frontends(objects: &Objects, node: &str) -> Vec<Frontend> {
    let mut frontends = Vec::new();
    for service in objects.of_kind(Kind::Service) {
        let Ok(spec) = service.spec::<ServiceSpec>() else { continue };
        let vips = if spec.is_headless() { Vec::new() } else { spec.vips() };
        let external = ingress(service);
        if vips.is_empty() && external.is_empty() {
            continue;
        }
        let slices = slices(objects, service);
        let internal_on = (spec.internal_traffic_policy == "Local").then_some(node);
        let addresses = vips.into_iter().map(|vip| (vip, Entry::Anywhere, internal_on));
        // Pods and nodes reach any endpoint; from outside only those of the node that the packet came to, so that their
        // answers come back by it and the client's address can stay.
        let external = external
            .into_iter()
            .flat_map(|address| [(address, Entry::Anywhere, None), (address, Entry::Outside, Some(node))]);
        for (vip, entry, on) in addresses.chain(external) {
            for port in &spec.ports {
                let backends = backends(&slices, port, vip, on);
                let elsewhere = entry == Entry::Outside
                    && backends.is_empty()
                    && !self::backends(&slices, port, vip, None).is_empty();
                frontends.push(Frontend {
                    service: format!("{}/{}", service.namespace(), service.name()),
                    vip,
                    port: port.port,
                    protocol: port.protocol,
                    entry,
                    choice: match spec.session_affinity {
                        SessionAffinity::ClientIp => Choice::ClientAddress,
                        SessionAffinity::None => Choice::Random,
                    },
                    backends,
                    without: if elsewhere { Without::Drop } else { Without::Refuse },
                });
            }
        }
    }
    frontends
}

pub(super) fn slices(objects: &Objects, service: &Object) -> Vec<EndpointSlice> {
    objects
        .in_namespace(Kind::EndpointSlice, service.namespace())
        .filter(|slice| slice.label(EndpointSlice::SERVICE_NAME_LABEL) == Some(service.name()))
        .filter_map(|slice| slice.root().ok())
        .collect()
}

/// Ready endpoints, perhaps only those on one node; where there are none, those that still serve while they terminate.
pub(super) fn backends(
    slices: &[EndpointSlice],
    port: &ServicePort,
    vip: IpAddr,
    on: Option<&str>,
) -> Vec<SocketAddr> {
    let (mut ready, mut last) = (Vec::new(), Vec::new());
    for slice in slices {
        let matching = slice.ports.iter().find(|own| own.name == port.name && own.protocol == port.protocol);
        let Some(number) = matching.and_then(|own| own.port) else { continue };
        for endpoint in &slice.endpoints {
            let Some(address) = address(endpoint, vip) else { continue };
            if on.is_some() && endpoint.node_name.as_deref() != on {
                continue;
            }
            let backend = SocketAddr::new(address, number);
            if endpoint.conditions.is_ready() {
                ready.push(backend);
            } else if endpoint.conditions.is_serving() && endpoint.conditions.is_terminating() {
                last.push(backend);
            }
        }
    }
    let mut chosen = if ready.is_empty() { last } else { ready };
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

fn address(endpoint: &Endpoint, vip: IpAddr) -> Option<IpAddr> {
    let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
    (address.is_ipv4() == vip.is_ipv4()).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn objects(spec: Value, endpoints: Value) -> Objects {
        let mut spec = spec;
        spec["clusterIP"] = "10.96.1.1".into();
        spec["ports"] = json!([{"name": "http", "port": 80}, {"name": "other", "port": 81}]);
        [
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "cart", "namespace": "shop"},
                "spec": spec}),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": "x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "cart"}},
                "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints}),
        ]
        .into_iter()
        .map(|value| serde_json::from_value::<Object>(value).unwrap())
        .collect()
    }

    fn endpoint(address: &str, node: &str, conditions: Value) -> Value {
        json!({"addresses": [address], "nodeName": node, "conditions": conditions})
    }

    fn chosen(spec: Value, endpoints: Value) -> Vec<String> {
        let frontends = frontends(&objects(spec, endpoints), "node1");
        assert_eq!(frontends.len(), 2);
        assert!(frontends[1].backends.is_empty(), "the slice does not have that port");
        frontends[0].backends.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn endpoints_that_are_not_ready_are_left_out_unless_nothing_else_is_there() {
        let ready = endpoint("10.244.1.2", "node1", json!({"ready": true}));
        let starting = endpoint("10.244.1.3", "node1", json!({"ready": false, "serving": false}));
        let leaving =
            endpoint("10.244.1.4", "node1", json!({"ready": false, "serving": true, "terminating": true}));
        assert_eq!(chosen(json!({}), json!([ready, starting, leaving])), ["10.244.1.2:8080"]);
        assert_eq!(chosen(json!({}), json!([starting, leaving])), ["10.244.1.4:8080"]);
        assert!(chosen(json!({}), json!([starting])).is_empty());
    }

    #[test]
    fn local_traffic_stays_on_the_node() {
        let here = endpoint("10.244.1.2", "node1", json!({}));
        let there = endpoint("10.244.2.2", "node2", json!({}));
        let local = json!({"internalTrafficPolicy": "Local"});
        assert_eq!(chosen(local.clone(), json!([here, there])), ["10.244.1.2:8080"]);
        assert!(chosen(local, json!([there])).is_empty());
        assert_eq!(chosen(json!({}), json!([there, here])), ["10.244.1.2:8080", "10.244.2.2:8080"]);
    }

    #[test]
    fn from_outside_only_the_endpoints_of_the_node_are_reached() {
        let here = endpoint("10.244.1.2", "node1", json!({}));
        let there = endpoint("10.244.2.2", "node2", json!({}));
        let frontends = |endpoints: Value| {
            let mut all = objects(json!({"type": "LoadBalancer"}), endpoints);
            let key = all.of_kind(Kind::Service).next().unwrap().key();
            let mut service = Object::clone(all.get(&key).unwrap());
            service
                .body
                .insert("status".to_owned(), json!({"loadBalancer": {"ingress": [{"ip": "10.90.0.10"}]}}));
            all.insert(std::sync::Arc::new(service));
            let external: IpAddr = "10.90.0.10".parse().unwrap();
            let all = super::frontends(&all, "node1").into_iter();
            all.filter(|one| one.vip == external && one.port == 80)
                .map(|one| (one.entry, one.backends.len(), one.without))
                .collect::<Vec<_>>()
        };
        let (refuse, dropped) = (Without::Refuse, Without::Drop);
        assert_eq!(
            frontends(json!([here, there])),
            [(Entry::Anywhere, 2, refuse), (Entry::Outside, 1, refuse)]
        );
        assert_eq!(frontends(json!([there])), [(Entry::Anywhere, 1, refuse), (Entry::Outside, 0, dropped)]);
        assert_eq!(frontends(json!([])), [(Entry::Anywhere, 0, refuse), (Entry::Outside, 0, refuse)]);
    }
}
