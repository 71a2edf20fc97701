//! Two replicas of the real program on a real API server, with no more rights than the chart gives them: who writes
//! statuses, what they say, what of others stays, and who takes over.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy takes helpers of integration tests for code outside tests"
)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use culvert_api_server::{ApiServer, until};
use culvert_controller::metrics::StatusResult;
use culvert_controller::status::{ApiStatuses, DesiredCondition, DesiredParent, DesiredStatus};
use culvert_identity::admin::Readiness;
use culvert_kubernetes::lease::{self, Election};
use culvert_kubernetes::source::CurrentStatuses;
use culvert_kubernetes::{Interest, Purpose, Server, Source, client};
use culvert_objects::{Kind, ObjectKey};
use serde_json::{Value, json};

const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const MESH_API: &str = "gateway.networking.x-k8s.io/v1alpha1";
const OURS: &str = "culvert.dev/node-proxy";

struct Replica {
    child: Child,
    admin: SocketAddr,
    log: std::path::PathBuf,
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Replica {
    /// Of this name. Its CA is not there, which keeps it from serving and from nothing else.
    async fn start(server: &ApiServer, name: &str) -> Self {
        let kubeconfig = server.kubeconfig("culvert-system", "culvert-controller").await;
        let token = server.path("token");
        std::fs::write(&token, "x").unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let roots = server.path("roots.pem");
        std::fs::write(&roots, params.self_signed(&key).unwrap().pem()).unwrap();
        let address = std::net::Ipv4Addr::from(0x7f01_0000 + rand::random_range(0..0x00fe_0000_u32));
        let admin = SocketAddr::from((address, 15000));
        let log = server.path(&format!("{name}.log"));
        let child = Command::new(env!("CARGO_BIN_EXE_culvert-controller"))
            .arg("run")
            .args(["--kubeconfig".as_ref(), kubeconfig.as_os_str()])
            .args(["--token".as_ref(), token.as_os_str()])
            .args(["--trust-bundle".as_ref(), roots.as_os_str()])
            .args(["--replica", name, "--lease-seconds", "30", "--ca", "https://127.0.0.1:1"])
            .args([
                "--admin",
                &admin.to_string(),
                "--listen",
                &SocketAddr::from((address, 15010)).to_string(),
            ])
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, admin, log }
    }

    fn get(&self, path: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(self.admin) else { return String::new() };
        let mut answer = String::new();
        let _ = stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    /// How many statuses it has written.
    fn written(&self) -> u64 {
        let metrics = self.get("/metrics");
        assert!(!metrics.is_empty());
        let line = metrics.lines().find_map(|line| {
            line.strip_prefix(r#"culvert_controller_status_writes_total{result="Written"} "#)
        });
        line.map_or(0, |number| number.parse().unwrap())
    }

    async fn has_objects(&self) {
        until("the objects are read", || async {
            let text = self.get("/healthz/ready");
            let log = || std::fs::read_to_string(&self.log).unwrap_or_default();
            if text.is_empty() || text.contains("objects:") { Err(text + &log()) } else { Ok(()) }
        })
        .await;
    }

    fn end(&mut self) {
        let ended = Command::new("kill").arg(self.child.id().to_string()).stdout(Stdio::null()).status();
        assert!(ended.unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }
}

fn route(name: &str, extra: &str) -> String {
    format!(
        "apiVersion: {GATEWAY_API}\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  parentRefs: [{{group: '', kind: Service, name: cart, port: 80}}]\n\
         \x20 rules: [{{backendRefs: [{{name: cart, port: 80}}]{extra}}}]\n"
    )
}

async fn holder(server: &ApiServer) -> String {
    let lease = server.get("coordination.k8s.io/v1", "Lease", "culvert-system", "culvert-controller").await;
    lease.and_then(|lease| Some(lease["spec"]["holderIdentity"].as_str()?.to_owned())).unwrap_or_default()
}

/// Waits until Culvert's entry of a route's status, and its `Accepted` condition, are as `holds` says; returns the status.
async fn accepted(server: &ApiServer, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let seen = std::cell::RefCell::new(Value::Null);
    until(name, || async {
        let route = server.get(GATEWAY_API, "HTTPRoute", "shop", name).await.unwrap_or_default();
        let parents = route["status"]["parents"].as_array().cloned().unwrap_or_default();
        let own = parents.iter().find(|parent| parent["controllerName"] == OURS).cloned().unwrap_or_default();
        let conditions = own["conditions"].as_array().cloned().unwrap_or_default();
        let condition = conditions.into_iter().find(|condition| condition["type"] == "Accepted");
        *seen.borrow_mut() = route["status"].clone();
        if condition.as_ref().is_some_and(&holds) { Ok(()) } else { Err(route["status"].to_string()) }
    })
    .await;
    seen.into_inner()
}

fn own(status: &Value) -> Value {
    let parents = status["parents"].as_array().unwrap();
    parents.iter().find(|parent| parent["controllerName"] == OURS).unwrap().clone()
}

async fn prepare(server: &ApiServer) {
    server.install_gateway_api("v1.6.1", "experimental").await;
    server.install_culvert().await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let rbac = std::fs::read_to_string(root.join("deploy/helm/culvert/files/rbac/controller.yaml")).unwrap();
    server.apply(&rbac).await;
    server
        .apply(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {culvert.dev/mesh: enabled}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\n\
             spec: {selector: {app: cart}, ports: [{port: 80}]}\n---\n\
             apiVersion: v1\nkind: Node\nmetadata: {name: one}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {name: cart, namespace: shop, labels: {app: cart}}\n\
             spec: {nodeName: one, containers: [{name: c, image: i}]}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {name: stranger, namespace: other}\n\
             spec: {nodeName: one, containers: [{name: c, image: i}]}\n",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_writes_statuses_and_another_takes_over() {
    let mut server = ApiServer::start().await;
    prepare(&server).await;
    let mut first = Replica::start(&server, "first").await;
    until("the first leads", || async {
        match holder(&server).await.as_str() {
            "first" => Ok(()),
            other => Err(other.to_owned() + &std::fs::read_to_string(&first.log).unwrap_or_default()),
        }
    })
    .await;
    let mut second = Replica::start(&server, "second").await;
    second.has_objects().await;

    // The keys of sessions: one of them has made a Secret for both.
    until("session keys", || async {
        let secret =
            server.get("v1", "Secret", "culvert-system", "culvert-session-keys").await.unwrap_or_default();
        if secret["data"]["keys.json"].is_string() { Ok(()) } else { Err(secret["metadata"].to_string()) }
    })
    .await;

    // The mesh's own object.
    until("the XMesh is accepted", || async {
        let mesh = server.get(MESH_API, "XMesh", "", "culvert").await.unwrap_or_default();
        let features = mesh["status"]["supportedFeatures"].as_array().map_or(0, Vec::len);
        let yes = mesh["status"]["conditions"][0]["status"] == "True" && features > 9;
        if yes && mesh["spec"] == json!({"controllerName": OURS}) { Ok(()) } else { Err(mesh.to_string()) }
    })
    .await;

    // A route, beside what another controller says of the same parent.
    server.apply(&route("r", "")).await;
    let status = accepted(&server, "r", |condition| condition["status"] == "True").await;
    assert_eq!(
        own(&status)["parentRef"],
        json!({"group": "", "kind": "Service", "name": "cart", "port": 80})
    );
    let foreign = json!({"controllerName": "example.com/x", "parentRef": own(&status)["parentRef"],
        "conditions": [{"type": "Accepted", "status": "False", "reason": "X", "message": "",
            "lastTransitionTime": "2020-01-01T00:00:00Z"}]});
    let both = json!({"parents": [own(&status), foreign]});
    server.set_status(GATEWAY_API, "HTTPRoute", "shop", "r", both).await;
    server.apply(&route("r", ", name: changed")).await;
    let later = accepted(&server, "r", |condition| condition["observedGeneration"] == 2).await;
    assert_eq!(later["parents"].as_array().unwrap().len(), 2);
    assert!(later["parents"].as_array().unwrap().contains(&foreign), "{later:#}");
    let time = |status: &Value| own(status)["conditions"][0]["lastTransitionTime"].clone();
    assert_eq!(time(&status), time(&later), "no flip");

    // Pods: the enrolled one is told so, the other is left alone.
    until("the pod's condition", || async {
        let pod = server.get("v1", "Pod", "shop", "cart").await.unwrap();
        let conditions = pod["status"]["conditions"].to_string();
        if conditions.contains("culvert.dev/Enrolled") { Ok(()) } else { Err(conditions) }
    })
    .await;
    let stranger = server.get("v1", "Pod", "other", "stranger").await.unwrap();
    assert!(!stranger["status"].to_string().contains("culvert.dev"), "{stranger:#}");

    // Settings that make no sense are said where they were written.
    server.apply("apiVersion: culvert.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {inboundMode: sometimes}\n").await;
    until("the fault is told", || async {
        let config = server.get("culvert.dev/v1alpha1", "MeshConfig", "", "default").await.unwrap();
        if config["status"]["conditions"][0]["reason"] == "Invalid" {
            Ok(())
        } else {
            Err(config.to_string())
        }
    })
    .await;
    assert!(first.written() >= 4 && second.written() == 0, "{} {}", first.written(), second.written());

    // Nobody releases the Lease of a killed leader; it runs out.
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    server.apply(&route("orphan", "")).await;
    accepted(&server, "orphan", |condition| condition["status"] == "True").await;
    assert_eq!(holder(&server).await, "second");
    assert!(second.written() >= 1);

    // An API server that was away: the leader leads again, and writes what was missed.
    server.pause();
    until("the leader leads no more", || async {
        let log = std::fs::read_to_string(&second.log).unwrap();
        if log.contains("\"leads\":false") { Ok(()) } else { Err(log) }
    })
    .await;
    server.resume().await;
    server.apply(&route("late", "")).await;
    accepted(&server, "late", |condition| condition["status"] == "True").await;

    // One that ends gives it back.
    let third = Replica::start(&server, "third").await;
    third.has_objects().await;
    second.end();
    let released = std::fs::read_to_string(&second.log).unwrap();
    assert!(released.contains("Lease released"), "{released}");
    server.delete(GATEWAY_API, "HTTPRoute", "shop", "late").await;
    server.apply(&route("last", "")).await;
    accepted(&server, "last", |condition| condition["status"] == "True").await;
    assert_eq!(holder(&server).await, "third");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_should_be_enrolled_and_is_not_says_so_in_its_label_an_event_and_a_metric() {
    const LABEL: &str = "culvert.dev/enrolled";
    let server = ApiServer::start().await;
    prepare(&server).await;
    let replica = Replica::start(&server, "only").await;
    let pod = || async { server.get("v1", "Pod", "shop", "cart").await.unwrap() };
    until("the label", || async {
        let pod = pod().await;
        let log = || std::fs::read_to_string(&replica.log).unwrap_or_default();
        if pod["metadata"]["labels"][LABEL] == "waiting" { Ok(()) } else { Err(pod.to_string() + &log()) }
    })
    .await;
    assert_eq!(pod().await["metadata"]["labels"]["app"], "cart", "its own labels stay");
    let stranger = server.get("v1", "Pod", "other", "stranger").await.unwrap();
    assert_eq!(stranger["metadata"]["labels"][LABEL], Value::Null);
    let metric = "culvert_controller_pods_not_enrolled{reason=\"NotReported\"} 1";
    assert!(replica.get("/metrics").contains(metric), "{}", replica.get("/metrics"));

    let told = || async {
        let events = server.named("events.k8s.io/v1", "Event", "shop").await;
        let all = events.list(&Default::default()).await.unwrap().items;
        all.into_iter().map(|event| event.data).collect::<Vec<Value>>()
    };
    until("the Event", || async {
        let log = || std::fs::read_to_string(&replica.log).unwrap_or_default();
        if told().await.is_empty() { Err(log()) } else { Ok(()) }
    })
    .await;
    let told = told().await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["reason"], &told[0]["type"]), (&json!("EnrolmentWaiting"), &json!("Warning")));
    assert_eq!(told[0]["regarding"]["uid"], pod().await["metadata"]["uid"]);
    assert!(told[0]["note"].as_str().unwrap().contains("the node proxy of one"), "{told:?}");

    server
        .apply(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {culvert.dev/mesh: disabled}}\n",
        )
        .await;
    until("the label is gone with the wish", || async {
        let pod = pod().await;
        if pod["metadata"]["labels"] == json!({"app": "cart"}) { Ok(()) } else { Err(pod.to_string()) }
    })
    .await;
    until("nobody is missing", || async {
        let metrics = replica.get("/metrics");
        if metrics.contains(&metric.replace("} 1", "} 0")) { Ok(()) } else { Err(metrics) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_object_of_somebody_else_is_left_alone_and_a_missing_kind_is_no_fault() {
    let server = ApiServer::start().await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let rbac = std::fs::read_to_string(root.join("deploy/helm/culvert/files/rbac/controller.yaml")).unwrap();
    server.apply(&rbac).await;
    // No Gateway API, no CRD of Culvert's own.
    let replica = Replica::start(&server, "only").await;
    replica.has_objects().await;
    let first_log = std::fs::read_to_string(&replica.log).unwrap();
    assert!(!first_log.contains("HTTPRoute"), "{first_log}");
    server.install_gateway_api("v1.4.1", "experimental").await;
    let other = format!(
        "apiVersion: {MESH_API}\nkind: XMesh\nmetadata: {{name: mine}}\nspec: {{controllerName: {OURS}}}\n"
    );
    // The controller may have been quicker; both are told.
    server.apply(&other).await;
    until("the one that was made by hand is accepted", || async {
        let mesh = server.get(MESH_API, "XMesh", "", "mine").await.unwrap();
        if mesh["status"]["conditions"][0]["status"] == "True" { Ok(()) } else { Err(mesh.to_string()) }
    })
    .await;
    server.apply(&(route("r", "") + "---\napiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {ports: [{port: 80}]}\n")).await;
    accepted(&server, "r", |condition| condition["status"] == "True").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_over_a_version_that_is_past_is_written_over_the_newest() {
    let server = ApiServer::start().await;
    server.install_gateway_api("v1.6.1", "standard").await;
    server.apply(&route("r", "")).await;
    let client = client::connect(&Server::Kubeconfig(server.admin())).await.unwrap();
    let check = Readiness::default().check("objects");
    let interest = Interest { kind: Kind::HttpRoute, purpose: Purpose::ReadAndWriteStatus };
    let source = Source::open(client.clone(), &[interest], &check).await;
    server.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: culvert-system}\n").await;
    let election = Election::new("test", Duration::from_secs(300));
    let (leadership, candidate) =
        lease::run(client.clone(), "culvert-system", "test", election, std::future::pending());
    tokio::spawn(candidate);
    let mut held = leadership.clone();
    tokio::time::timeout(culvert_api_server::DEADLINE, held.held()).await.unwrap();
    let (served, current) = (source.served(), source.statuses());
    let statuses = ApiStatuses { client, served, current: current.clone(), leadership };

    let key = ObjectKey::namespaced(Kind::HttpRoute, "shop", "r");
    let object = source.objects().borrow().get(&key).cloned().unwrap();
    let past = current.get(&key).unwrap();
    let condition = json!({"type": "Accepted", "status": "True", "reason": "X", "message": "",
        "lastTransitionTime": "2020-01-01T00:00:00Z"});
    let foreign = json!({"parents": [{"controllerName": "example.com/x", "conditions": [condition],
        "parentRef": {"group": "", "kind": "Service", "name": "cart", "port": 80}}]});
    server.set_status(GATEWAY_API, "HTTPRoute", "shop", "r", foreign).await;
    // As if the watch had not brought that yet.
    let statuses = ApiStatuses { current: CurrentStatuses::default(), ..statuses };
    statuses.current.wrote(&key, past);
    let parent = DesiredParent {
        parent_ref: json!({"group": "", "kind": "Service", "name": "cart", "port": 80}),
        controller_name: OURS.to_owned(),
        conditions: vec![DesiredCondition::yes("Accepted", "Accepted", "")],
        resources: Vec::new(),
    };
    let wanted = DesiredStatus::of(&object).with_parents(vec![parent]);
    let written = statuses.write(&key, Some(&wanted)).await;
    assert!(matches!(written, Ok(StatusResult::Written)));
    let route = server.get(GATEWAY_API, "HTTPRoute", "shop", "r").await.unwrap();
    assert_eq!(route["status"]["parents"].as_array().unwrap().len(), 2, "{route:#}");
    let again = statuses.write(&key, Some(&wanted)).await;
    assert!(matches!(again, Ok(StatusResult::Unchanged)), "what is equal is not written again");
}
