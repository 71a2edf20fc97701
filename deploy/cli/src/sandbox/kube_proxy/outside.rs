//! The world outside the cluster: routes from there to the addresses of Services of type LoadBalancer, by way of the nodes
//! that have endpoints, as a load balancer that asks nodes for their health does it. So the client's address is kept.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use culvert_objects::types::{EndpointSlice, ServiceSpec};
use culvert_objects::{Kind, Objects};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::frontends::{backends, slices};
use crate::sandbox::cluster::{Cluster, NodeInfo};
use crate::sandbox::controllers::ingress;
use crate::sandbox::network::Network;
use crate::sandbox::store::Store;

/// How long changes are gathered before routes follow.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Before a route that was refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Nodes on the way to an address, each with the number of endpoints it has there.
pub type Ways = BTreeMap<String, u8>;

/// Keeps the routes equal to the store until cancelled.
pub async fn run(store: Store, cluster: Arc<Cluster>, network: Arc<Network>, cancel: CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = follow(store, &cluster, &network) => {}
    }
}

async fn follow(store: Store, cluster: &Cluster, network: &Network) {
    let mut changed = store.changed();
    let mut in_force: BTreeMap<IpAddr, Ways> = BTreeMap::new();
    loop {
        changed.mark_unchanged();
        let wanted = ways(&store.objects(), &cluster.nodes);
        let mut failed = false;
        let gone: Vec<IpAddr> =
            in_force.keys().filter(|address| !wanted.contains_key(*address)).copied().collect();
        for address in gone {
            match network.leave_unreachable(address).await {
                Ok(()) => drop(in_force.remove(&address)),
                Err(error) => failed = report(address, &error),
            }
        }
        for (address, ways) in wanted {
            if in_force.get(&address) == Some(&ways) {
                continue;
            }
            match network.reach_by(address, &ways).await {
                Ok(()) => drop(in_force.insert(address, ways)),
                Err(error) => failed = report(address, &error),
            }
        }
        if failed {
            sleep(RETRY).await;
        } else if changed.changed().await.is_err() {
            return;
        } else {
            sleep(DEBOUNCE).await;
        }
    }
}

fn report(address: IpAddr, error: &impl std::fmt::Display) -> bool {
    warn!(%address, %error, "the way from outside does not follow");
    true
}

/// By way of which nodes each address is reached: those with endpoints, else all, where connections are refused. Pure.
fn ways(objects: &Objects, nodes: &[NodeInfo]) -> BTreeMap<IpAddr, Ways> {
    let mut all = BTreeMap::new();
    for service in objects.of_kind(Kind::Service) {
        let Ok(spec) = service.spec::<ServiceSpec>() else { continue };
        let slices = slices(objects, service);
        for address in ingress(service) {
            let mut ways = Ways::new();
            for node in nodes {
                let here = endpoints(&slices, &spec, address, &node.name);
                if here > 0 {
                    ways.insert(node.name.clone(), u8::try_from(here).unwrap_or(u8::MAX));
                }
            }
            if ways.is_empty() {
                ways.extend(nodes.iter().map(|node| (node.name.clone(), 1)));
            }
            all.insert(address, ways);
        }
    }
    all
}

/// Endpoints on the node, of the port that has most.
fn endpoints(slices: &[EndpointSlice], spec: &ServiceSpec, address: IpAddr, node: &str) -> usize {
    let of_port = |port| {
        let all: Vec<SocketAddr> = backends(slices, port, address, Some(node));
        all.len()
    };
    spec.ports.iter().map(of_port).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_objects::Object;
    use serde_json::{Value, json};

    fn objects(endpoints: Value) -> Objects {
        [
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "edge", "namespace": "shop"},
                "spec": {"type": "LoadBalancer", "clusterIP": "10.96.1.1", "ports": [{"name": "http", "port": 80}]},
                "status": {"loadBalancer": {"ingress": [{"ip": "10.90.0.10"}]}}}),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": "x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "edge"}},
                "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints}),
        ]
        .into_iter()
        .map(|value| serde_json::from_value::<Object>(value).unwrap())
        .collect()
    }

    fn way(endpoints: Value) -> Vec<(String, u8)> {
        let cluster = Cluster::new("test", 3);
        let all = ways(&objects(endpoints), &cluster.nodes);
        all[&"10.90.0.10".parse::<IpAddr>().unwrap()].clone().into_iter().collect()
    }

    #[test]
    fn nodes_with_endpoints_are_on_the_way() {
        let endpoint = |address: &str, node: &str, ready: bool| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": ready, "serving": ready}});
        let two = way(json!([
            endpoint("10.244.1.2", "node1", true),
            endpoint("10.244.1.3", "node1", true),
            endpoint("10.244.2.2", "node2", true),
            endpoint("10.244.3.2", "node3", false),
        ]));
        assert_eq!(two, [("node1".to_owned(), 2), ("node2".to_owned(), 1)]);
        assert_eq!(way(json!([])).len(), 3, "somebody must refuse the connection");
    }
}
