//! What every cluster has before anybody applies anything.

use culvert_api::names::{
    CA_SERVICE_ACCOUNT, CONTROLLER_SERVICE_ACCOUNT, NODE_PROXY_SERVICE_ACCOUNT, SYSTEM_NAMESPACE,
};
use culvert_objects::types::EndpointSlice;
use culvert_objects::{Kind, Object, ObjectKey};
use serde_json::{Map, Value, json};

use crate::sandbox::cluster::{Cluster, NodeInfo};

/// Namespaces that are always there and cannot be deleted.
pub(crate) const NAMESPACES: [&str; 3] = ["default", "kube-system", SYSTEM_NAMESPACE];
/// Region of every node.
const REGION: &str = "sandbox";
/// Name of the DNS Service.
pub(crate) const DNS_SERVICE: &str = "kube-dns";
/// Most pods of one node; its address range has room for a few more.
pub(crate) const MAX_PODS: u32 = 240;

/// Service accounts of the mesh's own processes.
const ACCOUNTS: [&str; 3] = [CA_SERVICE_ACCOUNT, CONTROLLER_SERVICE_ACCOUNT, NODE_PROXY_SERVICE_ACCOUNT];

/// Namespaces, nodes, the mesh's service accounts, and the DNS Service with its endpoints. The accounts `default` follow
/// by controller.
pub(super) fn objects(cluster: &Cluster) -> Vec<Object> {
    let mut objects: Vec<Object> =
        NAMESPACES.iter().map(|name| Object::new(ObjectKey::cluster(Kind::Namespace, *name))).collect();
    objects.extend(cluster.nodes.iter().map(node));
    let account =
        |name: &&str| Object::new(ObjectKey::namespaced(Kind::ServiceAccount, SYSTEM_NAMESPACE, *name));
    objects.extend(ACCOUNTS.iter().map(account));
    objects.push(dns_service(cluster));
    for (family, address) in
        [("IPv4", cluster.control_plane.v4.to_string()), ("IPv6", cluster.control_plane.v6.to_string())]
    {
        objects.push(dns_endpoints(family, &address));
    }
    objects
}

fn node(node: &NodeInfo) -> Object {
    let mut object = Object::new(ObjectKey::cluster(Kind::Node, &node.name));
    let labels = [
        ("kubernetes.io/hostname", node.name.clone()),
        ("kubernetes.io/os", "linux".to_owned()),
        ("topology.kubernetes.io/region", REGION.to_owned()),
        ("topology.kubernetes.io/zone", format!("zone{}", node.index)),
    ];
    object.metadata.labels = labels.map(|(key, value)| (key.to_owned(), value)).into();
    let ready =
        json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "the sandbox runs"});
    object.body = fields(json!({
        "spec": {
            "podCIDR": node.pod_cidr.v4.to_string(),
            "podCIDRs": [node.pod_cidr.v4.to_string(), node.pod_cidr.v6.to_string()],
        },
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": node.address.v4.to_string()},
                {"type": "InternalIP", "address": node.address.v6.to_string()},
                {"type": "Hostname", "address": node.name},
            ],
            "capacity": {"pods": MAX_PODS.to_string()},
            "allocatable": {"pods": MAX_PODS.to_string()},
            "conditions": [ready],
        },
    }));
    object
}

fn dns_service(cluster: &Cluster) -> Object {
    let mut object = Object::new(ObjectKey::namespaced(Kind::Service, "kube-system", DNS_SERVICE));
    object.metadata.labels.insert("k8s-app".to_owned(), DNS_SERVICE.to_owned());
    let addresses = [cluster.dns.v4.to_string(), cluster.dns.v6.to_string()];
    object.body = fields(json!({
        "spec": {
            "type": "ClusterIP",
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            ],
        },
    }));
    object
}

/// The sandbox's DNS server is no pod; its endpoints are written by hand.
fn dns_endpoints(family: &str, address: &str) -> Object {
    let name = format!("{DNS_SERVICE}-{}", family.to_lowercase());
    let mut object = Object::new(ObjectKey::namespaced(Kind::EndpointSlice, "kube-system", name));
    object.metadata.labels.insert(EndpointSlice::SERVICE_NAME_LABEL.to_owned(), DNS_SERVICE.to_owned());
    object.body = fields(json!({
        "addressType": family,
        "endpoints": [{"addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false}}],
        "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        ],
    }));
    object
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
