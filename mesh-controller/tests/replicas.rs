//! Two replicas, each with the node proxy of one node: each tells its own what the other's has reported.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy takes helpers of integration tests for code outside tests"
)]

mod mesh;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::mesh as pb;
use culvert_api::mesh::proxy_message::Kind as In;
use culvert_controller::cluster::Follower;
use culvert_identity::grpc::{self, TokenFile};
use culvert_identity::testing::TestAuthority;
use culvert_identity::tls;
use mesh::{AUDIENCE, Mesh, Proxy};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::{Code, Streaming};

const OBJECTS: &str = "\
apiVersion: v1
kind: Node
metadata: {name: one}
---
apiVersion: v1
kind: Node
metadata: {name: two}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {culvert.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, uid: u}
spec: {nodeName: one, containers: [{name: c}]}
status: {podIP: 10.1.0.1}
";
const ROUTE: &str = "\
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: cart}], rules: [{backendRefs: [{name: cart, port: 80}]}]}
";
const UID: &str = "c/n/Pod/shop/cart/u";

fn token(mesh: &Mesh) -> String {
    mesh.issuer.issue(mesh::controller(), AUDIENCE, Duration::from_secs(3600)).unwrap()
}

async fn next(reports: &mut Streaming<pb::ReplicaReports>) -> pb::ReplicaReports {
    reports.message().await.unwrap().unwrap()
}

/// Waits until a proxy is told this of the pod.
async fn told(proxy: &mut Proxy, tunnel: pb::Tunnel) {
    loop {
        let batch = proxy.follow().await;
        if batch.upserts.contains_key(UID) && batch.workload("cart").tunnel() == tunnel {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_one_replica_is_reported_the_others_tell_their_node_proxies() {
    let (first, second) = (Mesh::start(OBJECTS).await, Mesh::start(OBJECTS).await);
    let mut one = first.proxy("one", &[]).await;
    let mut two = second.proxy("two", &[]).await;
    one.follow().await;
    told(&mut two, pb::Tunnel::Unspecified).await;
    let mut reports = first.reports(&token(&first), "second").await.unwrap();
    assert_eq!(next(&mut reports).await.replica, "this");

    one.report(UID, pb::EnrolmentPhase::Enrolled).await;
    let said = next(&mut reports).await;
    assert_eq!((said.nodes.len(), said.nodes[0].node.as_str()), (1, "one"));
    second.hear("first", said.nodes).await;
    told(&mut two, pb::Tunnel::Hbone).await;

    // One that comes later is told what stands; the first message is the name alone.
    let mut late = first.reports(&token(&first), "third").await.unwrap();
    next(&mut late).await;
    let standing = next(&mut late).await.nodes;
    assert_eq!(standing[0].enrolment.as_ref().unwrap().workloads[0].uid, UID);
    let third = Mesh::start(OBJECTS).await;
    third.hear("first", standing).await;
    let mut other = third.proxy("two", &[]).await;
    told(&mut other, pb::Tunnel::Hbone).await;
}

#[tokio::test(start_paused = true)]
async fn only_controllers_are_told_and_nobody_follows_itself() {
    let mesh = Mesh::start(OBJECTS).await;
    let refused = mesh.reports(&mesh.token("one"), "x").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut own = mesh.reports(&token(&mesh), "this").await.unwrap();
    assert_eq!(next(&mut own).await.replica, "this");
    assert!(own.message().await.unwrap().is_none(), "it ends");
    // A report of a pod that is not of the node is nobody's word.
    let mut two = mesh.proxy("two", &[]).await;
    told(&mut two, pb::Tunnel::Unspecified).await;
    let line = pb::WorkloadEnrolment {
        uid: UID.to_owned(),
        phase: pb::EnrolmentPhase::Enrolled.into(),
        ..Default::default()
    };
    let report = pb::EnrolmentReport { complete: false, workloads: vec![line] };
    let node = "two".to_owned();
    mesh.hear("first", vec![pb::NodeReport { node, enrolment: Some(report), ..Default::default() }]).await;
    two.hears_nothing().await;
}

/// A node refuses a route at the replica that does not write the status.
#[tokio::test(start_paused = true)]
async fn what_is_refused_at_one_replica_is_in_the_status_that_the_other_writes() {
    let objects = &[OBJECTS, ROUTE].concat();
    let (first, leader) = (Mesh::start(objects).await, Mesh::start(objects).await);
    let mut one = first.proxy("one", &[]).await;
    let batch = one.follow().await;
    leader.wait_status("HTTPRoute/shop/r", "Accepted").await;
    let refuse = |name: &str, reason: &str| {
        let pb::Resource { key, version, .. } = batch.upserts[name].clone();
        In::Refused(pb::Refused { key, version, reason: reason.into() })
    };
    let mut reports = first.reports(&token(&first), "leader").await.unwrap();
    next(&mut reports).await;
    one.say(refuse("HTTPRoute/shop/r@shop/cart", "too new")).await;
    leader.hear("first", next(&mut reports).await.nodes).await;
    leader.wait_status("HTTPRoute/shop/r", "node one (too new)").await;
    one.say(refuse(UID, "too odd")).await;
    leader.hear("first", next(&mut reports).await.nodes).await;
    leader.wait_status("Pod/shop/cart", "refused the workload: too odd").await;

    // A later one is told what stands, in one message.
    let late = Mesh::start(objects).await;
    let mut standing = first.reports(&token(&first), "late").await.unwrap();
    next(&mut standing).await;
    late.hear("first", next(&mut standing).await.nodes).await;
    late.wait_status("HTTPRoute/shop/r", "node one (too new)").await;

    // Served by a third replica, it refuses the route for another reason; the first one's farewell comes late.
    let third = Mesh::start(objects).await;
    let mut of_third = third.reports(&token(&third), "leader").await.unwrap();
    next(&mut of_third).await;
    let mut moved = third.proxy("one", &[]).await;
    moved.follow().await;
    moved.say(refuse("HTTPRoute/shop/r@shop/cart", "still too new")).await;
    leader.hear("third", next(&mut of_third).await.nodes).await;
    leader.hear("third", next(&mut of_third).await.nodes).await;
    leader.wait_status("HTTPRoute/shop/r", "node one (still too new)").await;
    drop(one);
    leader.hear("first", next(&mut reports).await.nodes).await;
    drop(moved);
    leader.wait_status("HTTPRoute/shop/r", "node one (still too new)").await;
    leader.hear("third", next(&mut of_third).await.nodes).await;
    while leader.status("HTTPRoute/shop/r").contains("too new") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Serves the other replicas over TLS until the test ends.
async fn serve(mesh: &Mesh, authority: &TestAuthority) -> SocketAddr {
    let certificate = authority.leaf("spiffe://cluster.local/ns/culvert-system/sa/culvert-controller");
    let (held, config) = watch::channel(tls::grpc_server_config(&certificate).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = mesh.replicas.clone().service();
    tokio::spawn(async move {
        let _held = held;
        grpc::server().add_service(service).serve_with_incoming(grpc::incoming(listener, config)).await
    });
    address
}

/// Ten minutes go by in the second replica's world while the first cannot be reached, and its node proxy reports there.
#[tokio::test(start_paused = true)]
async fn a_replica_that_cannot_be_followed_leaves_its_nodes_pods_undecided_and_never_plaintext() {
    let (first, second) = (Mesh::start(OBJECTS).await, Mesh::start(OBJECTS).await);
    let directory = tempfile::tempdir().unwrap();
    let authority = TestAuthority::new("root");
    let (_bundle, bundle) = watch::channel(Arc::new(authority.bundle()));
    let (_domain, trust_domain) = watch::channel("cluster.local".to_owned());
    // A token is not even there: nothing is ever connected.
    let token = TokenFile::new(directory.path().join("none"));
    let hub = second.hub.clone();
    tokio::spawn(Follower { replica: "second".to_owned(), token, bundle, trust_domain, hub }.run());
    second.set(&format!("{OBJECTS}---\n{}", slice(15010)));
    let mut one = first.proxy("one", &[]).await;
    one.follow().await;
    one.report(UID, pb::EnrolmentPhase::Enrolled).await;
    let shown = || second.overview.json()["pods"][0]["tunnel"].as_str().unwrap().to_owned();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(shown(), "TUNNEL_UNSPECIFIED", "its node may have it enrolled, and has");
    let mut two = second.proxy("two", &[]).await;
    told(&mut two, pb::Tunnel::Unspecified).await;

    // It is gone for good: who has said nothing for a minute after that is not in the mesh.
    second.set(OBJECTS);
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(shown(), "TUNNEL_UNSPECIFIED");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(shown(), "TUNNEL_NONE");
}

/// The Service's addresses: one, with this port.
fn slice(port: u16) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: a, namespace: culvert-system, labels: {{kubernetes.io/service-name: culvert-controller}}}}\n\
         ports: [{{name: stream, port: {port}, protocol: TCP}}]\nendpoints: [{{addresses: ['127.0.0.1']}}]\n",
    )
}

#[tokio::test]
async fn replicas_find_each_other_by_the_service_and_speak_tls() {
    let (first, second) = (Mesh::start(OBJECTS).await, Mesh::start(OBJECTS).await);
    let authority = TestAuthority::new("root");
    let address = serve(&first, &authority).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    std::fs::write(&path, token(&first)).unwrap();
    let (_bundle, bundle) = watch::channel(Arc::new(authority.bundle()));
    let (_domain, trust_domain) = watch::channel("cluster.local".to_owned());
    let follower = Follower {
        replica: "second".to_owned(),
        token: TokenFile::new(&path),
        bundle,
        trust_domain,
        hub: second.hub.clone(),
    };
    tokio::spawn(follower.run());
    let mut one = first.proxy("one", &[]).await;
    one.follow().await;
    one.report(UID, pb::EnrolmentPhase::Enrolled).await;
    let mut two = second.proxy("two", &[]).await;
    // Found when it appears among the Service's addresses.
    second.set(&format!("{OBJECTS}---\n{}", slice(address.port())));
    let told = tokio::time::timeout(Duration::from_secs(50), told(&mut two, pb::Tunnel::Hbone)).await;
    assert!(told.is_ok(), "not told of the pod that the other's node proxy has enrolled");
}
