//! What is found in a cluster and what is nearly found, beyond the examples of `docs/check.md`: one healthy cluster, and what
//! becomes of it by one change.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside test functions are tests too")]

use culvert_check::Code;
use culvert_check::cluster::{ClusterFacts, ClusterFinding, Reading, Stage, Unread, check, findings, text};
use serde::Deserialize as _;
use serde_json::{Value, json};

const ROOT: &str = include_str!("roots/root.pem");
const ENDING: &str = include_str!("roots/ending.pem");
const ENDED: &str = include_str!("roots/ended.pem");

const CRDS: &[&str] = &[
    "httproutes.gateway.networking.k8s.io",
    "grpcroutes.gateway.networking.k8s.io",
    "gatewayclasses.gateway.networking.k8s.io",
    "gateways.gateway.networking.k8s.io",
    "referencegrants.gateway.networking.k8s.io",
    "tlsroutes.gateway.networking.k8s.io",
    "tcproutes.gateway.networking.k8s.io",
    "udproutes.gateway.networking.k8s.io",
    "backendtlspolicies.gateway.networking.k8s.io",
    "listenersets.gateway.networking.k8s.io",
    "xbackendtrafficpolicies.gateway.networking.x-k8s.io",
    "xmeshes.gateway.networking.x-k8s.io",
];

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {}},
        "status": {"nodeInfo": {"kernelVersion": "6.8.0-45-generic", "operatingSystem": "linux",
            "containerRuntimeVersion": "containerd://2.1.0"}}})
}

fn part(role: &str, name: &str, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "culvert-system", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app.kubernetes.io/name": "culvert", "app.kubernetes.io/component": role}},
        "spec": {"nodeName": node, "containers": [{"name": role, "image": format!("registry.example:5000/culvert:1.0.0@sha256:00")}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn pod(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": name}, "annotations": {}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "conditions": [{"type": "culvert.dev/Enrolled", "status": "True", "reason": "Enrolled"}]}})
}

fn namespace(name: &str, label: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"culvert.dev/mesh": label}, "annotations": {}}})
}

fn definition(name: &str, version: &str, channel: &str) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": name,
        "annotations": {"gateway.networking.k8s.io/bundle-version": version, "gateway.networking.k8s.io/channel": channel}}})
}

fn config_map(namespace: &str, name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data})
}

fn policy(spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "shop"}, "spec": spec})
}

fn daemon_set(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {"selector": {}, "template": {}}})
}

/// By kind and name, so that one is put in the place of another.
#[derive(Clone)]
struct Documents(Vec<Value>);

impl Documents {
    fn healthy() -> Self {
        let mut all = vec![
            json!({"gitVersion": "v1.36.3"}),
            node("n1"),
            part("ca", "culvert-ca-1", "n1"),
            part("controller", "culvert-controller-1", "n1"),
            part("node-proxy", "culvert-node-proxy-1", "n1"),
            config_map("culvert-system", "culvert-trust-bundle", json!({"roots.pem": ROOT})),
            daemon_set("kube-flannel-ds"),
            namespace("shop", "enabled"),
            pod("shop", "cart"),
            definition("meshconfigs.culvert.dev", "", ""),
        ];
        all.extend(CRDS.iter().map(|name| definition(name, "v1.6.1", "experimental")));
        Self(all)
    }

    fn key(document: &Value) -> (String, String) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&document["kind"]), text(&document["metadata"]["name"]))
    }

    fn with(mut self, document: Value) -> Self {
        let key = Self::key(&document);
        self.0.retain(|of| Self::key(of) != key);
        self.0.push(document);
        self
    }

    fn without(mut self, kind: &str, name: &str) -> Self {
        self.0.retain(|of| Self::key(of) != (kind.to_owned(), name.to_owned()));
        self
    }

    fn facts(self, stage: Stage) -> ClusterFacts {
        let mut facts = ClusterFacts::empty(stage, "2026-06-01T00:00:00Z".parse().unwrap());
        self.0.into_iter().for_each(|document| facts.add(document).unwrap());
        facts
    }

    fn found(self) -> Vec<ClusterFinding> {
        findings(&self.facts(Stage::Installed))
    }

    fn codes(self) -> Vec<String> {
        let mut codes: Vec<String> = self.found().iter().map(|of| of.code.to_string()).collect();
        codes.sort();
        codes
    }
}

/// A healthy cluster with this in it.
fn codes(document: Value) -> Vec<String> {
    Documents::healthy().with(document).codes()
}

/// A document that was changed.
fn but(mut document: Value, pointer: &str, value: Value) -> Value {
    *document.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
    document
}

const NONE: [&str; 0] = [];

#[test]
fn a_healthy_cluster_has_no_findings_before_and_after_installing() {
    let report = check(&Documents::healthy().facts(Stage::Installed));
    assert_eq!(report.findings, [], "{}", text(&report));
    assert_eq!(
        (report.errors, report.cluster.nodes, report.cluster.culvert),
        (0, 1, vec!["1.0.0".to_owned()])
    );
    assert_eq!(report.cluster.gateway_api.unwrap().to_string(), "v1.6.1 experimental");
    assert_eq!(report.cluster.network_plugins, ["Flannel"]);
    // Before it is installed, nothing of it is missed.
    let mut bare = Documents::healthy();
    bare.0.retain(|of| {
        of["kind"] != "Pod"
            && of["kind"] != "ConfigMap"
            && of["metadata"]["name"] != "meshconfigs.culvert.dev"
    });
    assert_eq!(findings(&bare.clone().facts(Stage::BeforeInstall)), []);
    assert!(bare.codes().contains(&Code::NotInstalled.to_string()));
}

#[test]
fn kernels_systems_and_runtimes_of_nodes() {
    let info =
        |field: &str, value: &str| codes(but(node("n1"), &format!("/status/nodeInfo/{field}"), value.into()));
    assert_eq!(info("kernelVersion", "4.18.0-553.el8"), ["CV601"]);
    assert_eq!(info("kernelVersion", "4.19.0"), ["CV602"]);
    assert_eq!(info("kernelVersion", "5.13.19"), ["CV602"]);
    assert_eq!(info("kernelVersion", "5.14.0"), NONE);
    assert_eq!(info("kernelVersion", "an odd one"), NONE);
    assert_eq!(info("containerRuntimeVersion", "docker://27.1.1"), ["CV606"]);
    assert_eq!(info("containerRuntimeVersion", "cri-o://1.33.0"), NONE);
    // A node without Linux needs no node proxy.
    let windows = but(node("w"), "/status/nodeInfo/operatingSystem", "windows".into());
    assert_eq!(codes(windows), ["CV603"]);
}

#[test]
fn versions_of_kubernetes() {
    let version = |version: &str| codes(json!({"gitVersion": version}));
    assert_eq!(version("v1.25.16"), ["CV604"]);
    assert_eq!(version("v1.26.0"), ["CV605"]);
    assert_eq!(version("v1.32.9-gke.100"), ["CV605"]);
    assert_eq!(version("v1.33.0+k3s1"), NONE);
}

#[test]
fn network_plugins_are_known_by_daemon_sets_or_by_the_distribution() {
    let none = Documents::healthy().without("DaemonSet", "kube-flannel-ds");
    assert_eq!(none.clone().codes(), ["CV607"]);
    assert_eq!(none.clone().with(daemon_set("kube-proxy")).codes(), ["CV607"]);
    assert_eq!(none.clone().with(daemon_set("calico-node")).codes(), NONE);
    assert_eq!(none.with(json!({"gitVersion": "v1.34.1+k3s1"})).codes(), NONE);
}

#[test]
fn cilium_that_stands_in_the_way() {
    let with = |data: Value| codes(config_map("kube-system", "cilium-config", data));
    let hosts_alone = "bpf-lb-sock-hostns-only";
    for on in ["true", "strict", "probe", "partial"] {
        assert_eq!(with(json!({"kube-proxy-replacement": on})), ["CV608"], "{on}");
        assert_eq!(with(json!({"kube-proxy-replacement": on, hosts_alone: "true"})), NONE, "{on}");
        assert_eq!(with(json!({"kube-proxy-replacement": on, hosts_alone: "false"})), ["CV608"], "{on}");
    }
    assert_eq!(with(json!({"kube-proxy-replacement": "false", "bpf-lb-sock": "true"})), ["CV608"]);
    assert_eq!(
        with(json!({"kube-proxy-replacement": "disabled", "enable-host-reachable-services": "true"})),
        ["CV608"]
    );
    assert_eq!(with(json!({"kube-proxy-replacement": "false", "bpf-lb-sock": "false"})), NONE);
    assert_eq!(with(json!({"cni-exclusive": "true"})), ["CV609"]);
    assert_eq!(with(json!({"cni-exclusive": "false"})), NONE);
    assert_eq!(with(json!({"kube-proxy-replacement": "true", "cni-exclusive": "true"})), ["CV608", "CV609"]);
    // Another ConfigMap of that name.
    assert_eq!(codes(config_map("shop", "cilium-config", json!({"cni-exclusive": "true"}))), NONE);
    let found = Documents::healthy()
        .with(config_map("kube-system", "cilium-config", json!({"kube-proxy-replacement": "true"})))
        .found();
    assert!(found[0].remedy.contains("socketLB.hostNamespaceOnly=true"), "{found:?}");
    assert_eq!(found[0].field, "data.bpf-lb-sock-hostns-only");
    // It matters before installing, most of all.
    let facts = Documents::healthy().with(config_map(
        "kube-system",
        "cilium-config",
        json!({"cni-exclusive": "true"}),
    ));
    assert_eq!(findings(&facts.facts(Stage::BeforeInstall)).len(), 1);
}

fn bundle(version: &str, channel: &str, kinds: &[&str]) -> Documents {
    let mut all = Documents::healthy();
    all.0.retain(|of| {
        of["kind"] != "CustomResourceDefinition" || of["metadata"]["name"] == "meshconfigs.culvert.dev"
    });
    kinds.iter().fold(all, |all, name| all.with(definition(name, version, channel)))
}

#[test]
fn each_bundle_is_told_what_it_lacks() {
    let old = &CRDS[..5];
    let lacks = |documents: Documents| {
        let found = documents.found();
        let [one] = &found[..] else { panic!("{found:?}") };
        assert_eq!(one.code, Code::BundleLacks);
        one.what.clone()
    };
    let what = lacks(bundle("v1.2.1", "standard", old));
    for kind in [
        "XMesh",
        "TLSRoute",
        "TCPRoute",
        "UDPRoute",
        "BackendTLSPolicy",
        "ListenerSet",
        "retry",
        "CORS",
        "RequestMirror",
    ] {
        assert!(what.contains(kind), "{kind}: {what}");
    }
    assert!(!what.contains("GRPCRoute (") && !what.contains("ReferenceGrant"), "{what}");
    // The experimental channel of 1.4 has ListenerSets under another name, and the filter CORS.
    let mut of_1_4: Vec<&str> =
        CRDS.iter().copied().filter(|name| !name.starts_with("listenersets")).collect();
    of_1_4.push("xlistenersets.gateway.networking.x-k8s.io");
    assert_eq!(bundle("v1.4.1", "experimental", &of_1_4).codes(), NONE);
    let what = lacks(bundle("v1.4.1", "standard", &[old, &[CRDS[8]]].concat()));
    assert!(what.contains("CORS") && what.contains("XMesh") && !what.contains("name of a rule"), "{what}");
    let what = lacks(bundle("v1.6.1", "standard", &CRDS[..10]));
    assert!(
        what.contains("retry")
            && what.contains("XMesh")
            && !what.contains("CORS")
            && !what.contains("TCPRoute"),
        "{what}"
    );
}

/// What is said is held against the bundles themselves.
#[test]
fn what_a_bundle_is_said_to_lack_it_lacks() {
    // As it is told, and as it stands in the schema of HTTPRoute.
    let fields = [
        ("retry", "retry:"),
        ("sessionPersistence", "sessionPersistence:"),
        ("ExternalAuth", "externalAuth:"),
        ("CORS", "cors:"),
        ("RequestMirror", "percent:"),
    ];
    for version in ["v1.2.1", "v1.4.1", "v1.6.1"] {
        for channel in ["standard", "experimental"] {
            let directory = culvert_api_server::gateway_api(version).join("config/crd").join(channel);
            let (mut documents, mut route) = (bundle(version, channel, &[]), String::new());
            for file in std::fs::read_dir(&directory).unwrap() {
                let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
                if !text.contains("kind: CustomResourceDefinition") {
                    continue;
                }
                for document in serde_yaml_ng::Deserializer::from_str(&text) {
                    let document = Value::deserialize(document).unwrap();
                    if document["kind"] != "CustomResourceDefinition" {
                        continue;
                    }
                    if document["spec"]["names"]["kind"] == "HTTPRoute" {
                        route.clone_from(&text);
                    }
                    documents = documents
                        .with(json!({"kind": "CustomResourceDefinition", "metadata": document["metadata"]}));
                }
            }
            let names: Vec<String> = documents.0.iter().map(|of| Documents::key(of).1).collect();
            let found = documents.found();
            assert!(found.iter().all(|of| of.code == Code::BundleLacks), "{version} {channel}: {found:?}");
            let what = found.first().map(|of| of.what.clone()).unwrap_or_default();
            for (said, written) in fields {
                assert_eq!(
                    what.contains(said),
                    !route.contains(&format!(" {written}\n")),
                    "{version} {channel} {said}: {what}"
                );
            }
            for (said, resource) in [
                ("TLSRoute", "tlsroutes"),
                ("ListenerSet", "listenersets"),
                ("XMesh", "xmeshes"),
                ("BackendTLSPolicy", "backendtlspolicies"),
            ] {
                let there = names
                    .iter()
                    .any(|name| name.trim_start_matches('x').starts_with(resource.trim_start_matches('x')));
                assert_eq!(what.contains(said), !there, "{version} {channel} {said}: {what}");
            }
        }
    }
}

#[test]
fn bundles_that_are_missing_old_or_mixed() {
    assert_eq!(bundle("", "", &[]).codes(), ["CV621"]);
    assert!(bundle("v1.1.0", "experimental", CRDS).codes().contains(&"CV622".to_owned()));
    assert_eq!(bundle("v1.6.0-rc.1", "experimental", CRDS).codes(), NONE);
    let mixed = bundle("v1.6.1", "experimental", CRDS).with(definition(CRDS[1], "v1.4.1", "experimental"));
    let found = mixed.found();
    assert_eq!((found.len(), found[0].code), (1, Code::MixedBundles), "{found:?}");
    assert!(found[0].what.contains("v1.4.1 experimental: grpcroutes"), "{found:?}");
    assert_eq!(
        Documents::healthy().without("CustomResourceDefinition", "meshconfigs.culvert.dev").codes(),
        ["CV625"]
    );
    // Without the right to see CRDs nothing is said of them.
    let mut facts = bundle("", "", &[]).facts(Stage::Installed);
    facts.definitions = Reading::NotRead;
    facts.unread.push(Unread { what: "customresourcedefinitions".to_owned(), why: "forbidden".to_owned() });
    let found = findings(&facts);
    assert_eq!((found.len(), found[0].code), (1, Code::Unasked), "{found:?}");
}

#[test]
fn parts_of_the_mesh_that_are_missing_not_ready_or_of_other_versions() {
    let all = ["culvert-ca-1", "culvert-controller-1", "culvert-node-proxy-1"];
    let none = all.iter().fold(Documents::healthy(), |of, name| of.without("Pod", name));
    assert_eq!(none.codes(), ["CV701"]);
    assert_eq!(Documents::healthy().without("Pod", all[0]).codes(), ["CV702"]);
    assert_eq!(Documents::healthy().without("Pod", all[2]).codes(), ["CV702", "CV703"]);
    let mut broken = but(part("controller", all[1], "n1"), "/status/conditions/0/status", "False".into());
    broken["status"]["containerStatuses"] = json!([{"name": "controller", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m"}}}]);
    let found = Documents::healthy().with(broken).found();
    assert_eq!((found.len(), found[0].code), (1, Code::NotReady), "{found:?}");
    assert!(
        found[0].what.contains("CrashLoopBackOff: back-off 5m") && found[0].object.contains(all[1]),
        "{found:?}"
    );
    // One that ends is on its way out; one that has is none.
    let mut ending =
        but(part("controller", "culvert-controller-0", "n1"), "/status/conditions/0/status", "False".into());
    ending["metadata"]["deletionTimestamp"] = "2026-05-31T23:59:00Z".into();
    assert_eq!(codes(ending), NONE);
    assert_eq!(codes(but(part("ca", "old", "n1"), "/status/phase", "Succeeded".into())), NONE);
    // Another chart's part of the same name is none of ours.
    let other =
        but(part("controller", "x", "n1"), "/metadata/labels/app.kubernetes.io~1name", "other".into());
    assert_eq!(Documents::healthy().without("Pod", all[1]).with(other).codes(), ["CV702"]);
    let newer = but(
        part("ca", all[0], "n1"),
        "/spec/containers/0/image",
        "registry.example:5000/culvert:1.1.0".into(),
    );
    assert_eq!(codes(newer), ["CV704"]);
}

#[test]
fn nodes_without_a_node_proxy_and_nodes_that_are_released() {
    assert_eq!(codes(node("n2")), ["CV703"]);
    let released = but(node("n2"), "/metadata/labels", json!({"culvert.dev/mesh": "released"}));
    assert_eq!(codes(released.clone()), ["CV706"]);
    // With a node proxy it is told as well: it may have been forgotten.
    assert_eq!(Documents::healthy().with(released).with(part("node-proxy", "b", "n2")).codes(), ["CV706"]);
}

#[test]
fn pods_that_should_be_enrolled_are_named_with_the_reason() {
    let condition = |value: Value| but(pod("shop", "cart"), "/status/conditions", value);
    let waiting = json!([{"type": "culvert.dev/Enrolled", "status": "False", "reason": "Waiting", "message": "no certificate yet"}]);
    let found = Documents::healthy().with(condition(waiting.clone())).found();
    assert_eq!(
        (found.len(), found[0].code, found[0].object.as_str()),
        (1, Code::NotCaptured, "Pod shop/cart")
    );
    assert!(found[0].what.contains("Waiting: no certificate yet"), "{found:?}");
    assert_eq!(codes(condition(json!([]))), ["CV705"]);
    // Young, ending, without a node, finished, opted out, of another namespace, on the host's network: none is missed.
    let no = condition(waiting);
    let changed = |pointer: &str, value: Value| codes(but(no.clone(), pointer, value));
    assert_eq!(changed("/metadata/creationTimestamp", "2026-05-31T23:59:30Z".into()), NONE);
    assert_eq!(changed("/spec/nodeName", "".into()), NONE);
    assert_eq!(changed("/status/phase", "Succeeded".into()), NONE);
    assert_eq!(changed("/metadata/labels", json!({"culvert.dev/mesh": "disabled"})), NONE);
    assert_eq!(changed("/metadata/namespace", "other".into()), NONE);
    assert_eq!(changed("/spec", json!({"nodeName": "n1", "hostNetwork": true})), NONE);
    let mut ending = no.clone();
    ending["metadata"]["deletionTimestamp"] = "2026-05-31T23:59:00Z".into();
    assert_eq!(codes(ending), NONE);
    // On a node that is released its pods are let go.
    let released = but(node("n1"), "/metadata/labels", json!({"culvert.dev/mesh": "released"}));
    assert_eq!(Documents::healthy().with(released).with(no).codes(), ["CV706"]);
}

#[test]
fn labels_that_mean_nothing() {
    assert_eq!(codes(namespace("other", "true")), ["CV707"]);
    assert_eq!(codes(namespace("other", "disabled")), NONE);
    assert_eq!(
        codes(but(pod("other", "x"), "/metadata/labels", json!({"culvert.dev/mesh": "yes"}))),
        ["CV707"]
    );
    assert_eq!(codes(but(node("n1"), "/metadata/labels", json!({"culvert.dev/mesh": "enabled"}))), ["CV707"]);
}

#[test]
fn roots_that_end_and_bundles_that_are_none() {
    let with =
        |pem: &str| codes(config_map("culvert-system", "culvert-trust-bundle", json!({"roots.pem": pem})));
    assert_eq!(with(ENDED), ["CV708"]);
    assert_eq!(with(""), ["CV708"]);
    assert_eq!(with("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), ["CV708"]);
    assert_eq!(with(ENDING), ["CV709"]);
    // One that is being replaced may end.
    assert_eq!(with(&format!("{ENDED}{ENDING}{ROOT}")), NONE);
    assert_eq!(Documents::healthy().without("ConfigMap", "culvert-trust-bundle").codes(), ["CV708"]);
}

#[test]
fn other_meshes_at_the_same_workloads() {
    let label = |key: &str, value: &str| {
        let mut shop = namespace("shop", "enabled");
        shop["metadata"]["labels"][key] = value.into();
        codes(shop)
    };
    assert_eq!(label("istio.io/dataplane-mode", "ambient"), ["CV721"]);
    assert_eq!(label("istio.io/dataplane-mode", "none"), NONE);
    assert_eq!(label("istio-injection", "enabled"), ["CV721"]);
    assert_eq!(label("istio-injection", "disabled"), NONE);
    assert_eq!(label("istio.io/rev", "stable"), ["CV721"]);
    let inject = |value: &str| {
        codes(but(namespace("shop", "enabled"), "/metadata/annotations", json!({"linkerd.io/inject": value})))
    };
    assert_eq!(inject("enabled"), ["CV721"]);
    assert_eq!(inject("ingress"), ["CV721"]);
    assert_eq!(inject("disabled"), NONE);
    // In another namespace, which Culvert leaves alone, it is nobody's business.
    let mut other = namespace("other", "disabled");
    other["metadata"]["labels"]["istio.io/dataplane-mode"] = "ambient".into();
    assert_eq!(codes(other), NONE);
    let sidecar =
        but(pod("shop", "cart"), "/spec/containers", json!([{"name": "app"}, {"name": "istio-proxy"}]));
    let found = Documents::healthy().with(sidecar).found();
    assert_eq!((found.len(), found[0].field.as_str()), (1, "spec.containers[1]"), "{found:?}");
    let native = json!({"nodeName": "n1", "containers": [{"name": "app"}], "initContainers": [{"name": "linkerd-proxy"}]});
    assert_eq!(codes(but(pod("shop", "cart"), "/spec", native)), ["CV721"]);
}

#[test]
fn network_policies_that_leave_out_the_tunnels() {
    let of = |spec: Value| codes(policy(spec));
    let cart = json!({"matchLabels": {"app": "cart"}});
    let ingress = |rules: Value| of(json!({"podSelector": cart, "ingress": rules}));
    assert_eq!(ingress(json!([{"ports": [{"port": 8080}]}])), ["CV610"]);
    assert_eq!(ingress(json!([{"ports": [{"port": "http"}]}])), ["CV610"]);
    assert_eq!(ingress(json!([{"ports": [{"port": 15008, "protocol": "UDP"}]}])), ["CV610"]);
    assert_eq!(ingress(json!([{"ports": [{"port": 15000, "endPort": 15007}]}])), ["CV610"]);
    assert_eq!(ingress(json!([{"ports": [{"port": 15000, "endPort": 15010}]}])), NONE);
    assert_eq!(ingress(json!([{"ports": [{"port": 8080}, {"port": 15008}]}])), NONE);
    assert_eq!(ingress(json!([{"ports": [{"protocol": "TCP"}]}])), NONE);
    assert_eq!(ingress(json!([{"from": [{"podSelector": {}}]}])), NONE);
    assert_eq!(ingress(json!([{"ports": []}])), NONE);
    // All of it is forbidden, and meant so.
    assert_eq!(ingress(json!([])), NONE);
    let egress = |types: Value| {
        of(
            json!({"podSelector": {}, "policyTypes": types, "egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}]}),
        )
    };
    assert_eq!(egress(json!(["Egress"])), ["CV610"]);
    // By default a policy with egress rules is of ingress too, and has no rules there.
    assert_eq!(of(json!({"podSelector": {}, "egress": [{"ports": [{"port": 443}]}]})), ["CV610"]);
    assert_eq!(egress(json!(["Ingress"])), NONE);
    let others =
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": [{"port": 8080}]}]});
    assert_eq!(of(others), NONE);
    let among = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["cart", "web"]}]});
    assert_eq!(of(json!({"podSelector": among, "ingress": [{"ports": [{"port": 8080}]}]})), ["CV610"]);
    // Policies add up.
    let mut second = policy(json!({"podSelector": {}, "ingress": [{"ports": [{"port": 15008}]}]}));
    second["metadata"]["name"] = "tunnels".into();
    let first = policy(json!({"podSelector": cart, "ingress": [{"ports": [{"port": 8080}]}]}));
    assert_eq!(Documents::healthy().with(first.clone()).with(second.clone()).codes(), NONE);
    second["metadata"]["namespace"] = "other".into();
    assert_eq!(Documents::healthy().with(first.clone()).with(second).codes(), ["CV610"]);
    // A pod outside the mesh has no tunnels.
    let outside =
        but(pod("shop", "cart"), "/metadata/labels", json!({"app": "cart", "culvert.dev/mesh": "disabled"}));
    assert_eq!(Documents::healthy().with(first).with(outside).codes(), NONE);
}

#[test]
fn rights_that_are_missing_are_told_with_the_command_that_asks_for_them() {
    let review = |allowed: bool| {
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes":
            {"verb": "create", "group": "apps", "resource": "daemonsets", "namespace": "culvert-system"}}, "status": {"allowed": allowed}})
    };
    assert_eq!(codes(review(true)), NONE);
    let found = Documents::healthy().with(review(false)).found();
    assert_eq!(found[0].code, Code::NoRight);
    assert!(
        found[0].remedy.contains("kubectl auth can-i create daemonsets.apps -n culvert-system"),
        "{found:?}"
    );
    // Without the right to see pods it is not said that there are none.
    let mut facts = Documents::healthy().facts(Stage::Installed);
    facts.objects = culvert_objects::Objects::default();
    facts.unread.push(Unread { what: "pods".to_owned(), why: "forbidden".to_owned() });
    let found = findings(&facts);
    assert_eq!((found.len(), found[0].code), (1, Code::Unasked), "{found:?}");
}

#[test]
fn the_worst_comes_first_and_is_counted() {
    let report = check(
        &Documents::healthy().with(node("n2")).with(json!({"gitVersion": "v1.30.0"})).facts(Stage::Installed),
    );
    assert_eq!((report.errors, report.warnings, report.notices), (1, 0, 1));
    let text = text(&report);
    assert!(text.ends_with("1 error, 0 warnings, 1 notice\n"), "{text}");
    assert!(text.find("CV703").unwrap() < text.find("CV605").unwrap(), "{text}");
    let value = serde_json::to_value(&report).unwrap();
    assert_eq!(
        (&value["findings"][0]["code"], &value["findings"][0]["severity"]),
        (&json!("CV703"), &json!("error"))
    );
    assert_eq!(value["cluster"]["kubernetes"], "v1.30.0");
}
