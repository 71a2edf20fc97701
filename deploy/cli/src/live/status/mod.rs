//! `culvert status`: the mesh in a cluster at a glance. [`of`] is pure.

mod render;
mod routes;

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;
use culvert_api::names::{MESH_LABEL, NODE_RELEASED, SYSTEM_NAMESPACE};
use culvert_check::cluster::{
    ClusterFacts, Component, Reading, Role, Root, Stage, components, network_plugins, roots,
};
use culvert_objects::{Kind, Object};
use futures::StreamExt as _;
use futures::stream;
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::target::{Cluster, ClusterArgs};
use super::{gather, proxies};
use crate::cli::output::{Format, print};
use crate::ejected::{self, Ejected};
use crate::sandbox::status::{PodReport, pods};
use crate::sandbox::store::Statuses;

pub use routes::RefusedRoute;

/// Node proxies that are asked at once.
const AT_ONCE: usize = 32;
/// For all of them.
const ALL_PROXIES: Duration = Duration::from_secs(60);

/// The mesh in the cluster: parts and versions, nodes, enrolment by namespace, refused routes, certificates.
#[derive(Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// URL of the API server.
    pub cluster: String,
    pub kubernetes: String,
    pub network_plugins: Vec<String>,
    pub components: Vec<Component>,
    pub nodes: Vec<NodeStatus>,
    /// With pods that are, or are to be, in the mesh.
    pub namespaces: Vec<NamespaceStatus>,
    /// Of all other namespaces.
    pub pods_outside: usize,
    pub refused_routes: Vec<RefusedRoute>,
    pub roots: Vec<Root>,
    /// What could not be read or asked, and why.
    pub unknown: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    pub name: String,
    pub kernel: String,
    /// `ready`, `not ready`, or `none`.
    pub node_proxy: &'static str,
    pub released: bool,
    /// Pods that are enrolled there.
    pub enrolled: usize,
    /// What its node proxy says; None where it could not be asked.
    pub proxy: Option<ProxySays>,
}

/// What a node's proxy says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxySays {
    pub version: String,
    /// Whether its stream from the controller is up.
    pub connected: bool,
    /// It serves what it has kept from before its last start.
    pub stale: bool,
    /// Resources of the controller's that it has refused.
    pub refused: Vec<String>,
    /// When the first certificate of the node ends.
    pub first_end: Option<DateTime<Utc>>,
    /// Endpoints that its pods pass over because they fail.
    pub ejected: Vec<Ejected>,
    /// Identities without a certificate, or with one that cannot be renewed, and why.
    pub failing: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceStatus {
    pub name: String,
    /// Value of the label `culvert.dev/mesh`; empty without.
    pub label: String,
    pub enrolled: usize,
    /// To be enrolled, and not yet.
    pub waiting: usize,
    pub leaving: usize,
    pub outside: usize,
    /// Why pods wait or have failed, each reason once.
    pub reasons: Vec<Reason>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    pub why: String,
    pub pods: usize,
    /// One of them.
    pub pod: String,
}

/// Reads and prints.
///
/// # Errors
/// When the API server does not answer.
pub async fn run(arguments: &StatusArgs) -> anyhow::Result<()> {
    let cluster = arguments.cluster.connect().await?;
    let kinds = [&[Kind::Namespace, Kind::Node, Kind::Pod], Kind::ROUTES].concat();
    let facts = Box::pin(gather::facts(&cluster, Stage::Installed, &kinds)).await?;
    let said = ask_proxies(&cluster, &facts).await;
    let status = of(&cluster.url, &facts, &said);
    print(arguments.output, &render::text(&status, facts.now), &serde_json::to_value(&status)?)
}

/// By node.
type Said = BTreeMap<String, Result<ProxySays, String>>;

async fn ask_proxies(cluster: &Cluster, facts: &ClusterFacts) -> Said {
    let parts = components(&facts.objects).into_iter();
    let parts = parts.filter(|part| part.role == Role::NodeProxy && !part.ending && !part.node.is_empty());
    let asked = parts.map(|part| async move {
        let pod = facts.objects.find(Kind::Pod, SYSTEM_NAMESPACE, &part.pod);
        let answer = match pod {
            Some(pod) => {
                proxies::json(
                    &cluster.client,
                    pod,
                    "/config?only=node,controller,certificates,refused,ejected",
                )
                .await
            }
            None => Err(proxies::AdminError::NoProxy(part.node.clone())),
        };
        let says = answer.map(|value| says(&part.node, &value)).map_err(|error| error.to_string());
        (part.node, says)
    });
    let mut said = Said::new();
    let mut answers = std::pin::pin!(stream::iter(asked).buffer_unordered(AT_ONCE));
    let deadline = Instant::now() + ALL_PROXIES;
    while let Ok(Some((node, answer))) = timeout_at(deadline, answers.next()).await {
        said.insert(node, answer);
    }
    // Of the others nothing is known, and that is said too.
    for part in components(&facts.objects)
        .into_iter()
        .filter(|part| part.role == Role::NodeProxy && !part.node.is_empty())
    {
        said.entry(part.node).or_insert_with(|| Err(format!("not asked within {ALL_PROXIES:?}")));
    }
    said
}

fn says(node: &str, value: &Value) -> ProxySays {
    let at = |path: &str| value.pointer(path);
    let text = |path: &str| at(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let is = |path: &str| at(path).and_then(Value::as_bool).unwrap_or_default();
    let list = |path: &str| at(path).and_then(Value::as_array).into_iter().flatten();
    let mut says = ProxySays {
        version: text("/node/proxy_version"),
        connected: is("/controller/connected"),
        stale: is("/node/stale"),
        ejected: ejected::of(node, value),
        ..ProxySays::default()
    };
    let refused = |one: &Value| {
        let of = |field: &str| one.get(field).and_then(Value::as_str).unwrap_or_default();
        format!("{} {}: {}", of("kind"), of("name"), of("reason"))
    };
    says.refused = list("/refused").map(refused).collect();
    for certificate in list("/certificates") {
        let end = certificate
            .get("not_after")
            .and_then(Value::as_i64)
            .and_then(|at| DateTime::from_timestamp(at, 0));
        says.first_end = [says.first_end, end].into_iter().flatten().min();
        if let Some(error) = certificate.get("last_error").and_then(Value::as_str) {
            let identity = certificate.get("identity").and_then(Value::as_str).unwrap_or_default();
            says.failing.push(format!("{identity}: {error}"));
        }
    }
    says
}

fn of(url: &str, facts: &ClusterFacts, said: &Said) -> Status {
    let objects = &facts.objects;
    let parts = components(objects);
    let pods = pods(objects, &Statuses::default());
    let mut unknown: Vec<String> =
        facts.unread.iter().map(|unread| format!("{}: {}", unread.what, unread.why)).collect();
    unknown.extend(
        said.iter().filter_map(|(node, answer)| Some(format!("node {node}: {}", answer.as_ref().err()?))),
    );
    let roots = match &facts.trust_bundle {
        Reading::There(pem) => roots(pem).unwrap_or_else(|error| {
            unknown.push(format!("trust bundle: {error}"));
            Vec::new()
        }),
        Reading::Absent | Reading::NotRead => Vec::new(),
    };
    let (namespaces, pods_outside) = namespaces(facts, &pods);
    let nodes = objects.of_kind(Kind::Node).map(|node| self::node(node, &parts, &pods, said));
    Status {
        cluster: url.to_owned(),
        kubernetes: facts.server.clone().unwrap_or_default(),
        network_plugins: network_plugins(facts),
        nodes: nodes.collect(),
        components: parts,
        namespaces,
        pods_outside,
        refused_routes: routes::refused(objects),
        roots,
        unknown,
    }
}

fn node(node: &Object, parts: &[Component], pods: &[PodReport], said: &Said) -> NodeStatus {
    let name = node.name();
    let mut own =
        parts.iter().filter(|part| part.role == Role::NodeProxy && part.node == name && !part.ending);
    let kernel = node.body.get("status").and_then(|of| of.get("nodeInfo")?.get("kernelVersion")?.as_str());
    NodeStatus {
        name: name.to_owned(),
        kernel: kernel.unwrap_or_default().to_owned(),
        node_proxy: match own.next().map(|part| part.ready) {
            Some(true) => "ready",
            Some(false) => "not ready",
            None => "none",
        },
        released: node.label(MESH_LABEL) == Some(NODE_RELEASED),
        enrolled: pods.iter().filter(|pod| pod.node == name && pod.enrolment == "Enrolled").count(),
        proxy: said.get(name).and_then(|answer| answer.clone().ok()),
    }
}

/// And how many pods are in namespaces that have nothing to do with the mesh.
fn namespaces(facts: &ClusterFacts, pods: &[PodReport]) -> (Vec<NamespaceStatus>, usize) {
    let mut all: BTreeMap<&str, NamespaceStatus> = BTreeMap::new();
    for namespace in facts.objects.of_kind(Kind::Namespace) {
        let label = namespace.label(MESH_LABEL).unwrap_or_default().to_owned();
        all.entry(namespace.name()).or_default().label = label;
    }
    let mut reasons: BTreeMap<(&str, &str), Reason> = BTreeMap::new();
    for pod in pods {
        let status = all.entry(&pod.namespace).or_default();
        match pod.enrolment.as_str() {
            "Enrolled" => status.enrolled += 1,
            "Leaving" => status.leaving += 1,
            "NotEnrolled" => status.outside += 1,
            _ => {
                status.waiting += 1;
                let new = || Reason { why: pod.message.clone(), pods: 0, pod: pod.name.clone() };
                reasons.entry((&pod.namespace, &pod.message)).or_insert_with(new).pods += 1;
            }
        }
    }
    for ((namespace, _), reason) in reasons {
        all.entry(namespace).or_default().reasons.push(reason);
    }
    let (mut concerned, mut outside) = (Vec::new(), 0);
    for (name, status) in all {
        match status.label.is_empty() && status.enrolled + status.waiting + status.leaving == 0 {
            true => outside += status.outside,
            false => concerned.push(NamespaceStatus { name: name.to_owned(), ..status }),
        }
    }
    (concerned, outside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(namespace: &str, name: &str, enrolled: Option<(&str, &str, &str)>) -> Value {
        let condition = enrolled.map(|(status, reason, message)| {
            json!({"type": "culvert.dev/Enrolled", "status": status, "reason": reason, "message": message})
        });
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "registry.example/culvert:1.2.3"}]},
            "status": {"phase": "Running", "conditions": condition.into_iter().collect::<Vec<_>>()}})
    }

    fn facts() -> ClusterFacts {
        let mut facts = ClusterFacts::empty(Stage::Installed, DateTime::UNIX_EPOCH);
        let mut proxy = pod("culvert-system", "culvert-node-proxy-x", None);
        proxy["metadata"]["labels"] =
            json!({"app.kubernetes.io/name": "culvert", "app.kubernetes.io/component": "node-proxy"});
        let waits = Some(("False", "Waiting", "no certificate yet"));
        let documents = [
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"culvert.dev/mesh": "released"}},
                "status": {"nodeInfo": {"kernelVersion": "6.18.5"}}}),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"culvert.dev/mesh": "enabled"}}}),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}}),
            proxy,
            pod("shop", "cart", Some(("True", "Enrolled", "in force"))),
            pod("shop", "web-1", waits),
            pod("shop", "web-2", waits),
            pod("other", "db", None),
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "split", "namespace": "shop"},
                "status": {"parents": [
                    {"controllerName": "culvert.dev/node-proxy", "parentRef": {"kind": "Service", "name": "cart", "port": 80}, "conditions": [
                        {"type": "Accepted", "status": "True", "reason": "Accepted", "message": ""},
                        {"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound", "message": "Service shop/v9 not found"}]},
                    {"controllerName": "other.example/mesh", "parentRef": {"kind": "Gateway", "name": "edge"}, "conditions": [
                        {"type": "Accepted", "status": "False", "reason": "NoMatchingParent", "message": ""}]}]}}),
        ];
        documents.into_iter().for_each(|document| facts.add(document).unwrap());
        facts
    }

    #[test]
    fn pods_are_counted_by_namespace_with_the_reasons_of_those_that_wait() {
        let answer = json!({"node": {"proxy_version": "1.2.3", "stale": false}, "controller": {"connected": true},
            "ejected": [{"service": "shop/cart", "port": 80, "carried": "requests", "workload": "shop/cart-1", "uid": "u",
                "address": "10.1.0.2:8080", "times": 1, "for_ms": 500, "trial_in_ms": 700}],
            "refused": [{"kind": "route", "name": "shop/split", "reason": "too large"}],
            "certificates": [{"identity": "spiffe://a", "not_after": 7200, "last_error": null},
                {"identity": "spiffe://b", "not_after": 3600, "last_error": "no answer"}]});
        let said = Said::from([("n1".to_owned(), Ok(says("n1", &answer)))]);
        let status = of("https://api.example", &facts(), &said);
        let [shop] = &status.namespaces[..] else { panic!("{:?}", status.namespaces) };
        assert_eq!(
            (shop.name.as_str(), shop.label.as_str(), shop.enrolled, shop.waiting),
            ("shop", "enabled", 1, 2)
        );
        assert_eq!(
            shop.reasons,
            [Reason { why: "no certificate yet".to_owned(), pods: 2, pod: "web-1".to_owned() }]
        );
        assert_eq!(status.pods_outside, 2);
        let node = &status.nodes[0];
        assert_eq!((node.node_proxy, node.released, node.enrolled), ("not ready", true, 1));
        let proxy = node.proxy.as_ref().unwrap();
        assert_eq!(proxy.first_end, DateTime::from_timestamp(3600, 0));
        assert_eq!(
            (proxy.refused.len(), proxy.failing.as_slice()),
            (1, &["spiffe://b: no answer".to_owned()][..])
        );
        assert_eq!(status.components[0].version, "1.2.3");
        let [refused] = &status.refused_routes[..] else { panic!("{:?}", status.refused_routes) };
        assert_eq!(refused.route, "HTTPRoute shop/split");
        assert_eq!(
            (refused.parent.as_str(), refused.reason.as_str()),
            ("Service cart:80", "BackendNotFound")
        );
        let text = render::text(&status, DateTime::UNIX_EPOCH);
        for expected in [
            "no certificate yet (2 pods, web-1 among them)",
            "BackendNotFound",
            "1.2.3",
            "released",
            "spiffe://b: no answer",
            "shop/cart:80 (requests)",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }

    #[test]
    fn what_could_not_be_asked_is_said() {
        let said = Said::from([("n1".to_owned(), Err("no port-forward".to_owned()))]);
        let mut facts = facts();
        facts
            .unread
            .push(culvert_check::cluster::Unread { what: "pods".to_owned(), why: "forbidden".to_owned() });
        let status = of("https://api.example", &facts, &said);
        assert_eq!(status.unknown, ["pods: forbidden", "node n1: no port-forward"]);
        assert!(render::text(&status, facts.now).contains("not known: node n1: no port-forward"));
    }
}
