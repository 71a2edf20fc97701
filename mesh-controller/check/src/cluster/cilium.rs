//! Cilium beside the mesh, from its agents' settings.

use std::collections::BTreeMap;

use super::facts::{CILIUM_CONFIG, ClusterFacts, Reading};
use super::finding;
use super::report::ClusterFinding;
use crate::code::Code;

/// Values of `kube-proxy-replacement` with which Cilium translates at the socket; the last three are those of versions before
/// 1.14.
const REPLACING: [&str; 4] = ["true", "strict", "probe", "partial"];
/// Settings that switch it on by themselves.
const SWITCHES: [&str; 2] = ["bpf-lb-sock", "enable-host-reachable-services"];

pub fn find(facts: &ClusterFacts) -> Vec<ClusterFinding> {
    let Reading::There(settings) = &facts.cilium else { return Vec::new() };
    let object = format!("ConfigMap {}/{}", CILIUM_CONFIG.0, CILIUM_CONFIG.1);
    let is = |key: &str, value: &str| settings.get(key).is_some_and(|set| set.trim() == value);
    let mut all = Vec::new();
    if let Some(by) = socket_load_balancer(settings).filter(|_| !is("bpf-lb-sock-hostns-only", "true")) {
        all.push(finding(
            Code::CiliumSocketLb,
            &object,
            "data.bpf-lb-sock-hostns-only",
            format!("{by} makes Cilium replace a Service's address by an endpoint's inside of connect(), in pods too: the mesh sees a call to a pod, and no route applies"),
            "set bpf-lb-sock-hostns-only: \"true\" (Helm: socketLB.hostNamespaceOnly=true) and restart Cilium's agents",
        ));
    }
    if is("cni-exclusive", "true") {
        all.push(finding(
            Code::CiliumExclusive,
            &object,
            "data.cni-exclusive",
            "Cilium renames every other file in the nodes' CNI directory, the mesh's among them: new pods start outside the mesh",
            "set cni-exclusive: \"false\" (Helm: cni.exclusive=false) and restart Cilium's agents",
        ));
    }
    all
}

/// The setting that switches it on.
fn socket_load_balancer(settings: &BTreeMap<String, String>) -> Option<String> {
    let value = |key: &str| settings.get(key).map(|value| value.trim()).unwrap_or_default();
    let replacement = value("kube-proxy-replacement");
    if REPLACING.contains(&replacement) {
        return Some(format!("kube-proxy-replacement: {replacement:?}"));
    }
    let switch = SWITCHES.into_iter().find(|key| value(key) == "true");
    switch.map(|key| format!("{key}: \"true\""))
}
