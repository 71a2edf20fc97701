//! `culvert` on a real API server (without kubelets, so that node proxies are named and cannot be asked).

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside test functions are tests too")]

use std::path::Path;
use std::process::Command;

use culvert_api_server::ApiServer;
use serde_json::{Value, json};

const ROOT: &str = include_str!("../../../mesh-controller/check/tests/roots/root.pem");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");

struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Done {
    fn of(mut command: Command) -> Self {
        let output = command.output().unwrap();
        Self {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", self.stdout, self.stderr))
    }

    /// Of errors and warnings.
    fn codes(&self) -> Vec<String> {
        let report = self.json();
        let findings = report["findings"].as_array().unwrap().iter().filter(|of| of["severity"] != "notice");
        findings.map(|of| of["code"].as_str().unwrap().to_owned()).collect()
    }
}

/// Away from the user's own kubeconfig and sandboxes.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    let empty = env!("CARGO_TARGET_TMPDIR");
    command.args(arguments).env("HOME", empty).env("XDG_RUNTIME_DIR", empty).env_remove("KUBECONFIG");
    command.env_remove("CULVERT_SANDBOX").env_remove("KUBERNETES_SERVICE_HOST");
    command
}

/// On that cluster, whatever sandboxes run on this machine.
fn culvert(kubeconfig: &Path, arguments: &[&str]) -> Done {
    Done::of(command(&[arguments, &["--kubeconfig", kubeconfig.to_str().unwrap()]].concat()))
}

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";

/// A Service with a pod behind it and one that calls it, both on one node.
const SHOP: &str = "apiVersion: v1
kind: Namespace
metadata:
  name: shop
  labels: {culvert.dev/mesh: enabled}
  annotations: {culvert.dev/connect-timeout: 3s}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {culvert.dev/inbound-mode: strict}}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: cart}]
  rules: [{name: all, backendRefs: [{name: cart, port: 80}]}]
";

fn slice(uid: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: cart-1, namespace: shop, labels: {{kubernetes.io/service-name: cart}}}}\n\
         ports: [{{name: http, port: 8080}}]\n\
         endpoints: [{{addresses: [10.244.0.5], nodeName: n1, conditions: {{ready: true}}, \
         targetRef: {{kind: Pod, name: cart, namespace: shop, uid: {uid}}}}}]\n"
    )
}

async fn run(server: &ApiServer, pod: &str, address: &str, enrolled: Value) {
    let conditions = json!([{"type": "Ready", "status": "True"}, enrolled]);
    let status =
        json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": conditions});
    server.set_status("v1", "Pod", "shop", pod, status).await;
}

async fn install_shop(server: &ApiServer) {
    server.apply(NODE).await;
    let info = json!({"nodeInfo": {"architecture": "amd64", "bootID": "", "containerRuntimeVersion": "containerd://2.1.0",
        "kernelVersion": "6.8.0", "kubeProxyVersion": "", "kubeletVersion": "v1.36.3", "machineID": "", "operatingSystem": "linux",
        "osImage": "", "systemUUID": ""}});
    server.set_status("v1", "Node", "", "n1", info).await;
    server.apply(SHOP).await;
    let cart = server.get("v1", "Pod", "shop", "cart").await.unwrap();
    server.apply(&slice(cart["metadata"]["uid"].as_str().unwrap())).await;
    let enrolled = json!({"type": "culvert.dev/Enrolled", "status": "True", "reason": "Enrolled", "message": "in force"});
    run(server, "web", "10.244.0.4", enrolled.clone()).await;
    run(server, "cart", "10.244.0.5", enrolled).await;
}

/// Culvert's own pods, as the chart labels them.
async fn install_mesh(server: &ApiServer) {
    server.install_culvert().await;
    server
        .apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default, namespace: culvert-system}\n")
        .await;
    for role in ["ca", "controller", "node-proxy"] {
        server
            .apply(&format!(
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: culvert-{role}-1\n  namespace: culvert-system\n  labels: \
                 {{app.kubernetes.io/name: culvert, app.kubernetes.io/component: {role}}}\n\
                 spec: {{nodeName: n1, containers: [{{name: c, image: 'registry.example/culvert:1.2.3'}}]}}\n"
            ))
            .await;
        let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        server.set_status("v1", "Pod", "culvert-system", &format!("culvert-{role}-1"), ready).await;
    }
    let pem = ROOT.trim_end().replace('\n', "\n    ");
    server
        .apply(&format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: culvert-trust-bundle, namespace: culvert-system}}\n\
             data:\n  roots.pem: |\n    {pem}\n"
        ))
        .await;
}

const FLANNEL: &str = "apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-flannel-ds, namespace: kube-flannel}
spec:
  selector: {matchLabels: {app: flannel}}
  template: {metadata: {labels: {app: flannel}}, spec: {containers: [{name: c, image: i}]}}
";
const CILIUM: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: cilium-config, namespace: kube-system}
data: {kube-proxy-replacement: 'true', cni-exclusive: 'false'}
";
const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: cart, namespace: shop}
spec:
  podSelector: {matchLabels: {app: cart}}
  policyTypes: [Ingress]
  ingress: [{ports: [{port: 8080}]}]
";

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_checked_before_and_after_installing() {
    let server = ApiServer::start().await;
    server.apply(NODE).await;
    server.apply(FLANNEL).await;
    let admin = server.admin();
    let before = culvert(&admin, &["check", "--pre", "-o", "json"]);
    assert_eq!((before.code, before.codes()), (0, vec!["CV621".to_owned()]), "{}", before.stderr);
    assert_eq!(before.json()["cluster"]["networkPlugins"], json!(["Flannel"]));
    // The bundles of the Gateway API, each named with what it lacks.
    server.install_gateway_api("v1.2.1", "standard").await;
    let old = culvert(&admin, &["check", "--pre", "-o", "json"]);
    let lacks =
        old.json()["findings"].as_array().unwrap().iter().find(|of| of["code"] == "CV623").cloned().unwrap();
    let what = lacks["what"].as_str().unwrap();
    assert!(
        what.contains("v1.2.1 standard") && what.contains("XMesh") && what.contains("TCPRoute"),
        "{what}"
    );
    server.install_gateway_api("v1.6.1", "experimental").await;
    let new = culvert(&admin, &["check", "--pre"]);
    assert_eq!(new.code, 0, "{}{}", new.stdout, new.stderr);
    assert!(
        new.stdout.contains("v1.6.1 experimental") && new.stdout.contains("0 errors, 0 warnings"),
        "{}",
        new.stdout
    );

    // Nothing is installed; then it is.
    let none = culvert(&admin, &["check", "-o", "json"]);
    assert_eq!((none.code, none.codes()[0].as_str()), (1, "CV701"));
    install_shop(&server).await;
    install_mesh(&server).await;
    let well = culvert(&admin, &["check", "-o", "json"]);
    assert_eq!((well.code, well.codes()), (0, vec![]), "{}{}", well.stdout, well.stderr);
    assert_eq!(well.json()["cluster"]["culvert"], json!(["1.2.3"]));

    server.apply(CILIUM).await;
    server.apply(POLICY).await;
    let ill = culvert(&admin, &["check", "-o", "json"]);
    assert_eq!((ill.code, ill.codes()), (1, vec!["CV608".to_owned(), "CV610".to_owned()]));
    let text = culvert(&admin, &["check"]).stdout;
    assert!(
        text.contains("socketLB.hostNamespaceOnly=true")
            && text.contains("NetworkPolicy shop/cart: spec.ingress"),
        "{text}"
    );

    // Somebody who may do little is told what, and what is known nevertheless.
    let eve = server.kubeconfig("default", "eve").await;
    let little = culvert(&eve, &["check", "--pre", "-o", "json"]);
    assert_eq!(little.code, 1, "{}", little.stderr);
    let report = little.json();
    let whats: Vec<&str> =
        report["findings"].as_array().unwrap().iter().map(|of| of["what"].as_str().unwrap()).collect();
    for expected in [
        "you may not create daemonsets.apps in namespace culvert-system",
        "networkpolicies could not be read",
        "pods could not be read",
        "cannot list resource \"pods\"",
    ] {
        assert!(whats.iter().any(|what| what.contains(expected)), "{expected}: {whats:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_explanation_and_settings_are_those_of_the_objects() {
    let server = ApiServer::start().await;
    server.install_gateway_api("v1.6.1", "standard").await;
    install_shop(&server).await;
    install_mesh(&server).await;
    let waits = json!({"type": "culvert.dev/Enrolled", "status": "False", "reason": "Waiting", "message": "no certificate yet"});
    server
        .apply("apiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: shop}\nspec: {nodeName: n1, containers: [{name: c, image: i}]}\n")
        .await;
    run(&server, "late", "10.244.0.6", waits).await;
    let admin = server.admin();

    let status = culvert(&admin, &["status", "-o", "json"]);
    assert_eq!(status.code, 0, "{}", status.stderr);
    let status = status.json();
    let shop = &status["namespaces"][0];
    assert_eq!((&shop["name"], &shop["enrolled"], &shop["waiting"]), (&json!("shop"), &json!(2), &json!(1)));
    assert_eq!(shop["reasons"], json!([{"why": "no certificate yet", "pods": 1, "pod": "late"}]));
    assert_eq!(
        (&status["nodes"][0]["nodeProxy"], &status["nodes"][0]["proxy"]),
        (&json!("ready"), &Value::Null)
    );
    assert!(
        status["unknown"][0].as_str().unwrap().contains("culvert-node-proxy-1: no port-forward"),
        "{}",
        status["unknown"]
    );
    assert_eq!(status["roots"][0]["notAfter"], "2036-01-01T00:00:00Z");
    // As kubectl is told, too.
    let mut by_variable = command(&["status"]);
    by_variable.env("KUBECONFIG", &admin);
    let text = Done::of(by_variable).stdout;
    assert!(text.contains("waiting in shop: no certificate yet (pod late)"), "{text}");

    let explained = culvert(&admin, &["explain", "--from", "shop/web", "-o", "json", "http://cart.shop/"]);
    assert_eq!(explained.code, 0, "{}", explained.stderr);
    let explained = explained.json();
    assert!(explained["source"].as_str().unwrap().starts_with("cluster https://"), "{explained}");
    assert_eq!(explained["client"]["enrolled"], true);
    assert_eq!(explained["rule"]["route"], "HTTPRoute shop/split", "{explained}");
    assert_eq!(explained["backends"][0]["endpoints"][0]["address"], "10.244.0.5:8080");
    assert!(
        explained["node_proxy"]["unreachable"].as_str().unwrap().contains("no port-forward"),
        "{explained}"
    );
    let late = culvert(&admin, &["explain", "--from", "shop/late", "http://cart.shop/"]).stdout;
    assert!(late.contains("not enrolled: no certificate yet"), "{late}");

    let settings = culvert(&admin, &["config", "effective", "shop/web", "-o", "json"]).json();
    let from = |path: &str| {
        let all = settings["settings"].as_array().unwrap();
        let one = all.iter().find(|of| of["setting"] == path).unwrap();
        format!("{} {}", one["value"].as_str().unwrap(), one["from"].as_str().unwrap())
    };
    assert_eq!(from("inboundMode"), "strict the pod: annotation culvert.dev/inbound-mode");
    assert_eq!(from("timeouts.connect"), "3s Namespace shop: annotation culvert.dev/connect-timeout");
    assert_eq!(from("udp"), "allow default");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_released_and_admitted() {
    let server = ApiServer::start().await;
    server.apply(NODE).await;
    let label = async || {
        let node = server.get("v1", "Node", "", "n1").await.unwrap();
        node["metadata"]["labels"]["culvert.dev/mesh"].as_str().map(str::to_owned)
    };
    let admin = server.admin();
    let released = culvert(&admin, &["node", "release", "n1"]);
    assert_eq!(released.code, 0, "{}", released.stderr);
    assert!(
        released.stdout.contains("outside the mesh") && released.stdout.contains("culvert node admit n1")
    );
    assert_eq!(label().await.as_deref(), Some("released"));
    assert_eq!(culvert(&admin, &["node", "release", "n1"]).code, 0, "twice is no fault");
    let admitted = culvert(&admin, &["node", "admit", "n1"]);
    assert_eq!((admitted.code, label().await), (0, None), "{}", admitted.stderr);
    assert!(culvert(&admin, &["node", "admit", "n1"]).stdout.contains("nothing is changed"));

    let missing = culvert(&admin, &["node", "release", "n2"]);
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("there is no node n2"), "{}", missing.stderr);
    let eve = server.kubeconfig("default", "eve").await;
    let refused = culvert(&eve, &["node", "release", "n1"]);
    assert_eq!((refused.code, label().await), (1, None));
    for expected in
        ["metadata.labels of node n1", "cannot patch resource \"nodes\"", "ask who administers the cluster"]
    {
        assert!(refused.stderr.contains(expected), "{expected}: {}", refused.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_use_names_what_is_wrong_and_the_remedy() {
    let fails = |command: Command, code: i32, expected: &[&str]| {
        let done = Done::of(command);
        assert_eq!(done.code, code, "{}{}", done.stdout, done.stderr);
        for expected in expected {
            assert!(done.stderr.contains(expected), "{expected}: {}", done.stderr);
        }
    };
    let explain = ["explain", "--from", "shop/web", "http://cart.shop/"];
    fails(command(&["status"]), 1, &["no kubeconfig", "~/.kube/config", "--kubeconfig"]);
    fails(command(&["check"]), 2, &["no kubeconfig"]);
    fails(command(&["status", "--kubeconfig", "/nowhere/config"]), 1, &["/nowhere/config does not exist"]);
    fails(command(&["check", "--pre", "-f", "docs"]), 2, &["cannot be used with"]);

    let directory = tempfile::tempdir().unwrap();
    let away = directory.path().join("away.conf");
    // Nobody listens on the discard port of a loopback address of its own.
    let server = "{server: 'https://127.9.9.9:9'}";
    std::fs::write(
        &away,
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: a, cluster: {server}}}]\n\
             users: [{{name: a, user: {{}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n"
        ),
    )
    .unwrap();
    let away = away.to_str().unwrap();
    fails(
        command(&["status", "--kubeconfig", away]),
        1,
        &["https://127.9.9.9:9 does not answer", "--context"],
    );
    fails(command(&["check", "--kubeconfig", away]), 2, &["https://127.9.9.9:9 does not answer"]);
    fails(
        command(&["status", "--kubeconfig", away, "--context", "b"]),
        1,
        &["b", "kubectl config get-contexts"],
    );

    let server = ApiServer::start().await;
    install_shop_without_routes(&server).await;
    let admin = server.admin();
    let admin = admin.to_str().unwrap();
    let on = |arguments: &[&str]| command(&[arguments, &["--kubeconfig", admin]].concat());
    fails(
        on(&["explain", "--from", "shop/nobody", "http://cart.shop/"]),
        1,
        &["there is no pod shop/nobody"],
    );
    fails(on(&["config", "effective", "shop/nobody"]), 1, &["there is no pod shop/nobody"]);
    fails(on(&["config", "effective", "nobody"]), 2, &["NAMESPACE/POD"]);
    fails(on(&["proxy", "certs", "n1"]), 1, &["no node proxy runs on node n1"]);
    install_mesh(&server).await;
    fails(
        on(&["proxy", "certs", "n1"]),
        1,
        &["pod culvert-system/culvert-node-proxy-1", "port-forward", "pods/portforward"],
    );
    let eve = server.kubeconfig("default", "eve").await;
    let by_eve =
        |arguments: &[&str]| command(&[arguments, &["--kubeconfig", eve.to_str().unwrap()]].concat());
    fails(
        by_eve(&explain),
        1,
        &["its objects cannot be listed", "cannot list resource", "ask who administers the cluster"],
    );
    fails(
        by_eve(&["proxy", "config", "n1"]),
        1,
        &["Pod: its objects cannot be listed", "cannot list resource \"pods\""],
    );
}

async fn install_shop_without_routes(server: &ApiServer) {
    server.apply(NODE).await;
    let (shop, _) = SHOP.split_once("---\napiVersion: gateway").unwrap();
    server.apply(shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_page_works() {
    let server = ApiServer::start().await;
    server.install_gateway_api("v1.6.1", "experimental").await;
    server.apply(FLANNEL).await;
    install_shop(&server).await;
    install_mesh(&server).await;
    let page = std::fs::read_to_string(PAGE).unwrap();
    let blocks = page.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
    let lines: Vec<&str> = blocks.flat_map(str::lines).collect();
    assert!(lines.len() > 8, "{lines:?}");
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[0], "culvert", "{line}");
        let done = culvert(&server.admin(), &words[1..]);
        // There is no kubelet here that would forward a port: that far it goes.
        let expected = if words[1] == "proxy" { 1 } else { 0 };
        assert_eq!(done.code, expected, "{line}: {}{}", done.stdout, done.stderr);
        assert!(expected == 0 || done.stderr.contains("no port-forward"), "{line}: {}", done.stderr);
    }
}
