//! A live cluster: its objects as the controller reads them, and what the client's node proxy has in force.

use culvert_api::names::SYSTEM_NAMESPACE;
use culvert_controller::cluster as controller;
use culvert_controller::translate::Environment;
use culvert_objects::Kind;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr};

use super::data::{Explanation, InForce, NodeProxy, NodeProxyAnswer};
use super::facts::{Facts, Source};
use crate::ejected;
use crate::live::{Cluster, proxies};

/// Stands for a client outside the cluster, whose number does not matter (TEST-NET-3).
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));

/// Everything that the controller reads.
///
/// # Errors
/// When something of that may not be listed.
pub async fn facts(cluster: &Cluster) -> anyhow::Result<Facts> {
    let kinds: Vec<Kind> = controller::kinds().collect();
    let (objects, ranges) =
        tokio::join!(cluster.objects(&kinds, None), controller::service_cidrs(&cluster.client));
    let mut assumed = vec![
        "the controller's flags are the defaults (--cluster, --network, ranges)".to_owned(),
        "the cluster's DNS domain is cluster.local".to_owned(),
    ];
    let service_cidrs = ranges.unwrap_or_else(|error| {
        assumed.push(format!("no range of Service addresses is known ({error})"));
        Vec::new()
    });
    let environment = Environment { service_cidrs, ..super::facts::default_environment() };
    let source = Source::Cluster { url: cluster.url.clone(), assumed };
    Ok(Facts::of(objects?, &environment, OUTSIDE, source))
}

/// What the node proxy of the client says; None for a client without a node.
pub async fn node_proxy(cluster: &Cluster, facts: &Facts, explanation: &Explanation) -> Option<NodeProxy> {
    let node = explanation.client.node.as_deref()?;
    let answer = ask(cluster, facts, explanation, node)
        .await
        .unwrap_or_else(|error| NodeProxyAnswer::Not { unreachable: error.to_string() });
    Some(NodeProxy { node: node.to_owned(), answer })
}

async fn ask(
    cluster: &Cluster,
    facts: &Facts,
    explanation: &Explanation,
    node: &str,
) -> Result<NodeProxyAnswer, proxies::AdminError> {
    let part = proxies::on_node(&facts.objects, node)?;
    let pod = facts.objects.find(Kind::Pod, SYSTEM_NAMESPACE, &part.pod);
    let pod = pod.ok_or_else(|| proxies::AdminError::NoProxy(node.to_owned()))?;
    let config =
        proxies::json(&cluster.client, pod, "/config?only=node,controller,pods,refused,ejected").await?;
    Ok(NodeProxyAnswer::InForce(in_force(node, &config, &uid(facts, explanation))))
}

/// Of the client's pod; the last part of its workload's uid.
fn uid(facts: &Facts, explanation: &Explanation) -> String {
    let name = explanation.client.pod.as_deref().and_then(|pod| pod.split_once('/'));
    let pod = name.and_then(|(namespace, name)| facts.objects.find(Kind::Pod, namespace, name));
    pod.map(|pod| pod.uid().to_owned()).unwrap_or_default()
}

fn in_force(node: &str, config: &Value, uid: &str) -> InForce {
    let text = |path: &str| config.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let is = |path: &str| config.pointer(path).and_then(Value::as_bool).unwrap_or_default();
    let list = |path: &str| config.pointer(path).and_then(Value::as_array).into_iter().flatten();
    let of =
        |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let refused = |one: &Value| format!("{} {}: {}", of(one, "kind"), of(one, "name"), of(one, "reason"));
    let own = list("/pods").find(|pod| !uid.is_empty() && of(pod, "uid").ends_with(uid));
    InForce {
        version: text("/node/version"),
        connected: is("/controller/connected"),
        stale: is("/node/stale"),
        pod: own.map(|pod| match of(pod, "message") {
            message if message.is_empty() => of(pod, "phase"),
            message => format!("{}: {message}", of(pod, "phase")),
        }),
        refused: list("/refused").map(refused).collect(),
        ejected: ejected::of(node, config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_node_proxy_says_of_the_client_is_told() {
        let config = json!({"node": {"version": "v7", "stale": true}, "controller": {"connected": false},
            "pods": [{"uid": "Kubernetes//Pod/shop/x/1", "phase": "Enrolled", "message": ""},
                {"uid": "Kubernetes//Pod/shop/web/2", "phase": "Waiting", "message": "no certificate yet"}],
            "refused": [{"kind": "route", "name": "shop/split", "reason": "too large"}]});
        let found = in_force("n1", &config, "2");
        assert_eq!((found.version.as_str(), found.stale, found.connected), ("v7", true, false));
        assert_eq!(found.pod.as_deref(), Some("Waiting: no certificate yet"));
        assert_eq!(found.refused, ["route shop/split: too large"]);
        assert_eq!(in_force("n1", &config, "").pod, None);
    }
}
