//! Kernels, operating systems, container runtimes and network plugins of the nodes, and the version of Kubernetes.

use std::collections::BTreeSet;

use culvert_objects::{Kind, Object};

use super::facts::ClusterFacts;
use super::report::ClusterFinding;
use super::{finding, version};
use crate::code::Code;

/// The first kernel with `tproxy` in nft's rules.
const KERNEL: (u32, u32) = (4, 19);
/// The first with `net.ipv4.tcp_migrate_req`.
const MIGRATING_KERNEL: (u32, u32) = (5, 14);
/// The first that takes the Gateway API's CRDs as they are: they have rules in CEL.
const KUBERNETES: (u32, u32) = (1, 26);
/// The first that serves ServiceCIDR without being told to.
const SERVICE_CIDR: (u32, u32) = (1, 33);
/// Runtimes whose nodes the mesh is tried on.
const RUNTIMES: [&str; 2] = ["containerd", "cri-o"];
/// DaemonSets by which network plugins are known.
const PLUGINS: &[(&str, &str)] = &[
    ("cilium", "Cilium"),
    ("calico-node", "Calico"),
    ("canal", "Canal"),
    ("kube-flannel-ds", "Flannel"),
    ("kube-flannel", "Flannel"),
    ("kindnet", "kindnet"),
    ("aws-node", "AWS VPC CNI"),
    ("azure-cns", "Azure CNI"),
    ("azure-npm", "Azure CNI"),
    ("netd", "GKE"),
    ("anetd", "GKE Dataplane V2 (Cilium)"),
    ("antrea-agent", "Antrea"),
    ("kube-router", "kube-router"),
    ("weave-net", "Weave Net"),
    ("ovnkube-node", "OVN-Kubernetes"),
    ("kube-ovn-cni", "Kube-OVN"),
    ("kube-multus-ds", "Multus"),
    ("multus", "Multus"),
];
/// Distributions whose network plugin is no DaemonSet, by what their versions say.
const BUILT_IN: &[(&str, &str)] = &[("+k3s", "k3s (Flannel)"), ("+rke2", "RKE2"), ("+k0s", "k0s")];

pub fn find(facts: &ClusterFacts) -> Vec<ClusterFinding> {
    let mut all: Vec<ClusterFinding> = facts.of_kind(Kind::Node).flat_map(node).collect();
    all.extend(kubernetes(facts));
    if network_plugins(facts).is_empty() && facts.of_kind(Kind::Node).next().is_some() {
        let unread = facts.unread.iter().any(|unread| unread.what == "daemonsets");
        let why =
            if unread { "DaemonSets could not be read" } else { "no DaemonSet of one is in the cluster" };
        all.push(finding(
            Code::UnknownCni,
            "",
            "",
            format!("which network plugin is in use is not known: {why}. Culvert works with those that give every pod an address of its own in a network namespace of its own, and translate Service addresses outside of it"),
            "try Culvert in one namespace first; `culvert status` says whether its pods are enrolled",
        ));
    }
    all
}

/// Their names, each once.
pub fn network_plugins(facts: &ClusterFacts) -> Vec<String> {
    let names = facts.daemon_sets.iter().filter_map(|set| set.metadata.name.as_deref());
    let known =
        names.filter_map(|name| PLUGINS.iter().find(|(of, _)| *of == name).map(|(_, plugin)| *plugin));
    let mut found: BTreeSet<&str> = known.collect();
    let server = facts.server.as_deref().unwrap_or_default();
    if found.is_empty() {
        found.extend(BUILT_IN.iter().filter(|(mark, _)| server.contains(mark)).map(|(_, plugin)| *plugin));
    }
    found.into_iter().map(str::to_owned).collect()
}

/// Each once.
pub fn kernels(facts: &ClusterFacts) -> Vec<String> {
    let kernels: BTreeSet<&str> = facts
        .of_kind(Kind::Node)
        .map(|node| info(node, "kernelVersion"))
        .filter(|of| !of.is_empty())
        .collect();
    kernels.into_iter().map(str::to_owned).collect()
}

/// Whether node proxies can run there; unless the node says something else, it can.
pub fn is_linux(node: &Object) -> bool {
    matches!(info(node, "operatingSystem"), "" | "linux")
}

fn info<'a>(node: &'a Object, field: &str) -> &'a str {
    let value = node.body.get("status").and_then(|status| status.get("nodeInfo")?.get(field)?.as_str());
    value.unwrap_or_default()
}

fn node(node: &Object) -> Vec<ClusterFinding> {
    let title = node.key().to_string();
    let at = |field: &str| format!("status.nodeInfo.{field}");
    if !is_linux(node) {
        return vec![finding(
            Code::NotLinux,
            title,
            at("operatingSystem"),
            format!("the node runs {}: its pods stay outside the mesh", info(node, "operatingSystem")),
            "nothing; pods that must be in the mesh belong on nodes with Linux (nodeSelector kubernetes.io/os: linux)",
        )];
    }
    let mut all = Vec::new();
    let kernel = info(node, "kernelVersion");
    match version::numbers(kernel) {
        Some(numbers) if numbers < KERNEL => all.push(finding(
            Code::OldKernel,
            &title,
            at("kernelVersion"),
            format!("kernel {kernel} is older than 4.19: the rules that capture a pod's connections cannot be set"),
            "update the node's kernel, or keep the namespaces whose pods run there out of the mesh",
        )),
        Some(numbers) if numbers < MIGRATING_KERNEL => all.push(finding(
            Code::NoMigration,
            &title,
            at("kernelVersion"),
            format!("kernel {kernel} is older than 5.14 and has no net.ipv4.tcp_migrate_req: a connection that comes in while a node proxy ends without handing its sockets over may be reset"),
            "nothing for ordinary upgrades, which hand the sockets over; a kernel from 5.14 on covers the rest",
        )),
        _ => {}
    }
    let runtime = info(node, "containerRuntimeVersion");
    let name = runtime.split("://").next().unwrap_or_default();
    if !name.is_empty() && !RUNTIMES.contains(&name) {
        all.push(finding(
            Code::ContainerRuntime,
            &title,
            at("containerRuntimeVersion"),
            format!("Culvert was never tried with {runtime}: pods that run already may not be found when their namespace is labelled, new ones are, by the CNI plugin"),
            "containerd and CRI-O are known to work; else restart pods after labelling their namespace",
        ));
    }
    all
}

fn kubernetes(facts: &ClusterFacts) -> Option<ClusterFinding> {
    let server = facts.server.as_deref()?;
    let numbers = version::numbers(server)?;
    if numbers < KUBERNETES {
        return Some(finding(
            Code::OldKubernetes,
            "",
            "",
            format!(
                "Kubernetes {server} is older than 1.26: it does not take the CRDs of the Gateway API 1.2 and later"
            ),
            "update Kubernetes",
        ));
    }
    (numbers < SERVICE_CIDR).then(|| {
        finding(
            Code::NoServiceRanges,
            "",
            "",
            format!("Kubernetes {server} does not tell the ranges of Service addresses (ServiceCIDR is served from 1.33 on): a connection to a Service that is news to a node proxy is not held for it, but taken for one to the outside"),
            "give the controller the API server's --service-cluster-ip-range by --service-cidr",
        )
    })
}
