//! `culvert-controller uninstall` on a real API server, with no more rights than the chart gives it: what goes, what stays,
//! and in which order.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy takes helpers of integration tests for code outside tests"
)]

use std::path::Path;
use std::process::{Command, Stdio};

use culvert_api_server::{ApiServer, until};
use serde_json::{Value, json};

const SYSTEM: &str = "culvert-system";
const MESH_API: &str = "gateway.networking.x-k8s.io/v1alpha1";
const LABEL: &str = "/metadata/labels/culvert.dev~1mesh";

/// What a release and its programs make, on two nodes of which somebody has released the second, and a Secret of others.
const OBJECTS: &str = r#"
{apiVersion: v1, kind: Node, metadata: {name: one}}
---
{apiVersion: v1, kind: Node, metadata: {name: two, labels: {culvert.dev/mesh: released}}}
---
{apiVersion: v1, kind: Secret, metadata: {name: culvert-ca, namespace: culvert-system}}
---
{apiVersion: v1, kind: Secret, metadata: {name: culvert-session-keys, namespace: culvert-system}}
---
{apiVersion: v1, kind: Secret, metadata: {name: of-others, namespace: culvert-system}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: culvert-trust-bundle, namespace: culvert-system}}
---
{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: culvert-controller, namespace: culvert-system}}
---
{apiVersion: v1, kind: Pod, metadata: {name: cart, namespace: shop}, spec: {containers: [{name: c, image: i}]}}
"#;

const REVISION: &str = r#"
{apiVersion: apps/v1, kind: ControllerRevision, revision: 1, data: {}, metadata: {name: culvert-node-proxy-1, namespace: culvert-system,
 labels: {app.kubernetes.io/name: culvert, app.kubernetes.io/component: node-proxy}}}
"#;

/// Not bound to a node: the API server itself lets such pods end.
fn workload(kind: &str, name: &str, component: &str) -> String {
    let labels = format!("{{app.kubernetes.io/name: culvert, app.kubernetes.io/component: {component}}}");
    let template =
        format!("{{metadata: {{labels: {labels}}}, spec: {{containers: [{{name: c, image: i}}]}}}}");
    format!(
        "---\n{{apiVersion: apps/v1, kind: {kind}, metadata: {{name: {name}, namespace: {SYSTEM}}}, \
         spec: {{selector: {{matchLabels: {labels}}}, template: {template}}}}}\n\
         ---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}-1, namespace: {SYSTEM}, labels: {labels}}}, \
         spec: {{containers: [{{name: c, image: i}}]}}}}\n"
    )
}

async fn prepare(server: &ApiServer) {
    server.install_gateway_api("v1.6.1", "experimental").await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let rbac = std::fs::read_to_string(root.join("deploy/helm/culvert/files/rbac/uninstall.yaml")).unwrap();
    server.apply(&rbac).await;
    server.apply(OBJECTS).await;
    server.apply(REVISION).await;
    for (kind, name, component) in [
        ("DaemonSet", "culvert-node-proxy", "node-proxy"),
        ("Deployment", "culvert-controller", "controller"),
        ("Deployment", "culvert-ca", "ca"),
        ("DaemonSet", "culvert-cleanup", "cleanup"),
    ] {
        server.apply(&workload(kind, name, component)).await;
    }
    let spec = json!({"controllerName": "culvert.dev/node-proxy"});
    let mesh =
        json!({"apiVersion": MESH_API, "kind": "XMesh", "metadata": {"name": "culvert"}, "spec": spec});
    server.apply(&mesh.to_string()).await;
    enrolled(server, "True", "Enrolled").await;
}

async fn enrolled(server: &ApiServer, is: &str, reason: &str) {
    let condition = json!({"type": "culvert.dev/Enrolled", "status": is, "reason": reason});
    server.set_status("v1", "Pod", "shop", "cart", json!({"conditions": [condition]})).await;
}

/// As the controller of DaemonSets says how far cleaning is.
async fn cleaned(server: &ApiServer, nodes: i32) {
    let status = json!({"observedGeneration": 1, "desiredNumberScheduled": 2, "currentNumberScheduled": 2,
        "numberMisscheduled": 0, "numberReady": nodes, "numberAvailable": nodes});
    server.set_status("apps/v1", "DaemonSet", SYSTEM, "culvert-cleanup", status).await;
}

async fn is_there(server: &ApiServer, version: &str, kind: &str, name: &str) -> bool {
    let namespace = if kind == "XMesh" { "" } else { SYSTEM };
    let found = server.get(version, kind, namespace, name).await;
    // What is being deleted waits for a garbage collector that is not there.
    found.is_some_and(|object| object["metadata"]["deletionTimestamp"].is_null())
}

async fn label(server: &ApiServer, node: &str) -> Value {
    server.get("v1", "Node", "", node).await.unwrap().pointer(LABEL).cloned().unwrap_or_default()
}

/// Runs it, lets the pod go when the nodes say so, and expects it to end well. What it says.
async fn uninstall(server: &ApiServer) -> String {
    let kubeconfig = server.kubeconfig(SYSTEM, "culvert-uninstall").await;
    let log = server.path("uninstall.log");
    let mut child = Command::new(env!("CARGO_BIN_EXE_culvert-controller"))
        .args(["uninstall", "--drain", "1", "--kubeconfig"])
        .arg(kubeconfig)
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    until("the node is released", || async {
        if label(server, "one").await == "released" { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    for (is, reason) in [("True", "Enrolled"), ("False", "Leaving")] {
        enrolled(server, is, reason).await;
        assert!(
            is_there(server, "apps/v1", "DaemonSet", "culvert-node-proxy").await,
            "node proxies end after their pods were let go"
        );
    }
    enrolled(server, "False", "NotEnrolled").await;
    let ended = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    assert!(ended.success(), "{said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_programs_made_goes_and_nothing_of_others() {
    let server = ApiServer::start().await;
    prepare(&server).await;
    cleaned(&server, 2).await;
    uninstall(&server).await;
    for (version, kind, name) in [
        ("apps/v1", "DaemonSet", "culvert-node-proxy"),
        ("apps/v1", "ControllerRevision", "culvert-node-proxy-1"),
        ("apps/v1", "Deployment", "culvert-controller"),
        ("apps/v1", "Deployment", "culvert-ca"),
        ("apps/v1", "DaemonSet", "culvert-cleanup"),
        ("v1", "Secret", "culvert-ca"),
        ("v1", "Secret", "culvert-session-keys"),
        ("v1", "ConfigMap", "culvert-trust-bundle"),
        ("coordination.k8s.io/v1", "Lease", "culvert-controller"),
        (MESH_API, "XMesh", "culvert"),
    ] {
        assert!(!is_there(&server, version, kind, name).await, "{kind} {name} is left");
    }
    assert!(is_there(&server, "v1", "Secret", "of-others").await);
    assert_eq!((label(&server, "one").await, label(&server, "two").await), (Value::Null, json!("released")));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_away_are_left_to_be_cleaned_and_a_mesh_of_others_stays() {
    let server = ApiServer::start().await;
    prepare(&server).await;
    // No node is ready.
    cleaned(&server, 0).await;
    let spec = json!({"controllerName": "culvert.dev/node-proxy", "description": "ours"});
    let mesh =
        json!({"apiVersion": MESH_API, "kind": "XMesh", "metadata": {"name": "culvert"}, "spec": spec});
    server.apply(&mesh.to_string()).await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": SYSTEM, "name": "culvert-cleanup-2",
        "labels": {"app.kubernetes.io/name": "culvert", "app.kubernetes.io/component": "cleanup"}},
        "spec": {"nodeName": "one", "containers": [{"name": "stay", "image": "none"}]}});
    server.apply(&pod.to_string()).await;
    let said = uninstall(&server).await;
    let named = said.lines().any(|line| {
        line.contains(r#""nodes":"culvert-cleanup-1, one""#) && line.contains("delete daemonset")
    });
    assert!(named, "the node that is left and what to do are not named: {said}");
    assert!(is_there(&server, "apps/v1", "DaemonSet", "culvert-cleanup").await);
    assert!(!is_there(&server, "v1", "Secret", "culvert-ca").await);
    assert!(is_there(&server, MESH_API, "XMesh", "culvert").await);
}
