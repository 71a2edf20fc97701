//! The stream to node proxies, end to end inside this process.

// Helpers outside test functions are tests too.
#![allow(clippy::unwrap_used, clippy::panic)]

mod mesh;

use std::fmt::Write as _;
use std::time::Duration;

use culvert_api::mesh::proxy_message::Kind as In;
use culvert_api::mesh::{self as pb, Enrolment, EnrolmentPhase, Tunnel};
use mesh::{AUDIENCE, Mesh, Proxy, node_proxy};
use tonic::Code;

const BASE: &str = "
apiVersion: v1
kind: Node
metadata: {name: one, uid: uid-one}
---
apiVersion: v1
kind: Node
metadata: {name: two, uid: uid-two}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.2.0.1, ports: [{port: 80}]}
---
";

fn namespace(mesh: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{culvert.dev/mesh: {mesh}}}}}\n---\n"
    )
}

fn pod(name: &str, node: &str, address: &str) -> String {
    let status = if address.is_empty() { String::new() } else { format!("status: {{podIP: {address}}}\n") };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: uid-{name}}}\n\
         spec: {{nodeName: {node}, containers: [{{name: c, readinessProbe: {{tcpSocket: {{port: 80}}}}}}]}}\n{status}---\n"
    )
}

fn uid(name: &str) -> String {
    format!("c/n/Pod/shop/{name}/uid-{name}")
}

#[tokio::test(start_paused = true)]
async fn a_first_batch_is_everything_and_a_resumed_one_only_what_changed() {
    let mesh = Mesh::start(&[BASE, &pod("a", "one", "10.1.0.1")].concat()).await;
    let mut proxy = mesh.proxy("one", &[]).await;
    let first = proxy.batch().await;
    assert_eq!(first.names(), ["mesh", uid("a").as_str(), "shop/cart"]);
    assert!(first.mark.sequence > 0 && !first.mark.version.is_empty());

    let mut again = mesh.proxy("one", &first.held()).await;
    let batch = again.batch().await;
    assert_eq!((batch.names(), batch.removals.len()), (vec![], 0));
    assert_eq!(batch.mark.version, first.mark.version);

    let mut other = Mesh::start(&[BASE, &pod("a", "one", "10.1.0.1")].concat()).await.proxy("one", &[]).await;
    assert_eq!(other.batch().await.mark.version, first.mark.version, "versions are equal on every replica");

    mesh.set(BASE);
    assert_eq!(again.batch().await.removals, [uid("a")]);
    let mut third = mesh.proxy("one", &first.held()).await;
    let batch = third.batch().await;
    assert_eq!((batch.order, batch.removals), (vec![], vec![uid("a")]));
    mesh.set(&[BASE, &pod("b", "two", "10.1.0.2")].concat());
    assert_eq!(third.batch().await.names(), [uid("b").as_str()]);
}

#[tokio::test(start_paused = true)]
async fn every_namespace_is_told_with_what_its_label_says_and_last_of_all() {
    let system = "apiVersion: v1\nkind: Namespace\nmetadata: {name: kube-system, labels: {culvert.dev/mesh: enabled}}\n---\n";
    let mesh = Mesh::start(&[BASE, system, &namespace("disabled")].concat()).await;
    let mut proxy = mesh.proxy("one", &[]).await;
    let first = proxy.follow().await;
    assert_eq!(first.names(), ["mesh", "shop/cart", "kube-system", "shop"]);
    assert_eq!((first.enrols("kube-system"), first.enrols("shop")), (false, false));
    mesh.set(&[BASE, system, &namespace("enabled")].concat());
    let labelled = proxy.follow().await;
    assert_eq!((labelled.names(), labelled.enrols("shop")), (vec!["shop"], true));
    mesh.set(&[BASE, &namespace("enabled")].concat());
    assert_eq!(proxy.batch().await.removals, ["kube-system"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_sees_its_own_pods_whole_and_others_as_peers() {
    let text = [BASE, &namespace("enabled"), &pod("a", "one", "10.1.0.1"), &pod("early", "one", "")].concat();
    let mesh = Mesh::start(&text).await;
    let own = mesh.proxy("one", &[]).await.batch().await;
    let peer = mesh.proxy("two", &[]).await.batch().await;
    let a = own.workload("a");
    assert_eq!((a.enrolment(), a.tunnel(), a.probes.len()), (Enrolment::Enrolled, Tunnel::Unspecified, 1));
    assert!(a.settings.is_some());
    assert_eq!(own.workload("early").enrolment(), Enrolment::Enrolled);
    let a = peer.workload("a");
    assert_eq!((a.enrolment(), a.tunnel(), a.probes.len()), (Enrolment::Unspecified, Tunnel::Unspecified, 0));
    assert!(a.settings.is_none());
    assert!(!peer.upserts.contains_key(&uid("early")), "{:?}", peer.order);
    assert_ne!(own.mark.version, peer.mark.version);
}

#[tokio::test(start_paused = true)]
async fn only_the_node_proxy_of_a_known_node_is_served() {
    let proxy_pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: proxy, namespace: culvert-system, uid: p}\n\
         spec: {nodeName: two, containers: [{name: c}]}\n";
    let mesh = Mesh::start(&[BASE, proxy_pod].concat()).await;
    let hour = Duration::from_secs(3600);
    let issue = |claims, audience| mesh.issuer.issue(claims, audience, hour).unwrap();
    let other_account = {
        let mut claims = node_proxy(Some("one"));
        claims.serviceaccount.name = "default".into();
        issue(claims, AUDIENCE)
    };
    let former_node = {
        let mut claims = node_proxy(Some("one"));
        claims.node.as_mut().unwrap().uid = "former".into();
        issue(claims, AUDIENCE)
    };
    let unknown_pod = {
        let mut claims = node_proxy(None);
        claims.pod.as_mut().unwrap().uid = "former".into();
        issue(claims, AUDIENCE)
    };
    let stranger = culvert_identity::token::Issuer::generate(mesh::ISSUER).unwrap();
    let cases = [
        (None, Some(Code::Unauthenticated)),
        (Some("nonsense".to_owned()), Some(Code::Unauthenticated)),
        (Some(issue(node_proxy(Some("one")), "other")), Some(Code::Unauthenticated)),
        (Some(stranger.issue(node_proxy(Some("one")), AUDIENCE, hour).unwrap()), Some(Code::Unauthenticated)),
        (Some(other_account), Some(Code::PermissionDenied)),
        (Some(issue(node_proxy(Some("three")), AUDIENCE)), Some(Code::PermissionDenied)),
        (Some(former_node), Some(Code::PermissionDenied)),
        (Some(unknown_pod), Some(Code::PermissionDenied)),
        (Some(mesh.token("one")), None),
    ];
    for (token, expected) in cases {
        assert_eq!(mesh.refusal(token.as_deref()).await, expected, "{token:?}");
    }
    // Without a node claim (before Kubernetes 1.32) the bound pod says which node it is.
    let mut bound = Proxy::open(&mesh, Some(&issue(node_proxy(None), AUDIENCE))).await.unwrap();
    bound.introduce(&[]).await;
    let welcome = bound.next().await.unwrap();
    assert!(format!("{welcome:?}").contains("\"two\""), "{welcome:?}");
}

#[tokio::test(start_paused = true)]
async fn enrolling_and_leaving_are_told_in_an_order_that_breaks_nothing() {
    let text = |label: &str| [BASE, &namespace(label), &pod("a", "one", "10.1.0.1")].concat();
    let mesh = Mesh::start(&text("enabled")).await;
    let (mut own, mut peer) = (mesh.proxy("one", &[]).await, mesh.proxy("two", &[]).await);
    own.follow().await;
    assert_eq!(peer.follow().await.workload("a").tunnel(), Tunnel::Unspecified);
    peer.report(&uid("a"), EnrolmentPhase::Enrolled).await;
    peer.hears_nothing().await;

    own.report(&uid("a"), EnrolmentPhase::Enrolled).await;
    assert_eq!(peer.follow().await.workload("a").tunnel(), Tunnel::Hbone);
    assert_eq!(own.follow().await.workload("a").tunnel(), Tunnel::Hbone);
    mesh.wait_status("Pod/shop/a", "\"Enrolled\"").await;
    mesh.wait_status("Pod/shop/a", "\"uncapturedConnections\": 3").await;

    mesh.set(&text("disabled"));
    let leaving = peer.batch().await;
    assert_eq!(leaving.workload("a").tunnel(), Tunnel::None);
    assert_eq!(own.follow().await.workload("a").enrolment(), Enrolment::Leaving);
    mesh.wait_status("Pod/shop/a", "\"Leaving\"").await;
    own.hears_nothing().await;
    peer.apply(&leaving).await;
    assert_eq!(own.follow().await.workload("a").enrolment(), Enrolment::NotEnrolled);
    own.report(&uid("a"), EnrolmentPhase::NotEnrolled).await;
    mesh.wait_status("Pod/shop/a", "\"NotEnrolled\"").await;
}

#[tokio::test(start_paused = true)]
async fn leaving_does_not_wait_for_ever_for_a_proxy_that_does_not_answer() {
    let text = |label: &str| [BASE, &namespace(label), &pod("a", "one", "10.1.0.1")].concat();
    let mesh = Mesh::start(&text("enabled")).await;
    let (mut own, mut peer) = (mesh.proxy("one", &[]).await, mesh.proxy("two", &[]).await);
    own.follow().await;
    peer.batch().await;
    own.report(&uid("a"), EnrolmentPhase::Enrolled).await;
    own.follow().await;
    mesh.set(&text("disabled"));
    assert_eq!(own.follow().await.workload("a").enrolment(), Enrolment::Leaving);
    let since = tokio::time::Instant::now();
    assert_eq!(own.follow().await.workload("a").enrolment(), Enrolment::NotEnrolled);
    assert!((9..=11).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn no_stream_lost_and_no_restart_of_the_controller_downgrades_an_enrolled_pod() {
    let text = [BASE, &namespace("enabled"), &pod("a", "one", "10.1.0.1")].concat();
    let mesh = Mesh::start(&text).await;
    let (mut own, mut peer) = (mesh.proxy("one", &[]).await, mesh.proxy("two", &[]).await);
    let mut held = peer.follow().await;
    own.follow().await;
    own.report(&uid("a"), EnrolmentPhase::Enrolled).await;
    held.upserts.extend(peer.follow().await.upserts);
    drop(own);
    peer.hears_nothing().await;

    // The pod has changed meanwhile, so that the version held is not one the new controller would make.
    let changed = text.replace("10.1.0.1", "10.1.0.9");
    let restarted = Mesh::start(&changed).await;
    let mut peer = restarted.proxy("two", &held.held()).await;
    assert_eq!(peer.follow().await.workload("a").tunnel(), Tunnel::Hbone);
    let mut fresh = restarted.proxy("two", &[]).await;
    assert_eq!(fresh.follow().await.workload("a").tunnel(), Tunnel::Hbone);
    let mut own = restarted.proxy("one", &[]).await;
    own.follow().await;
    own.report(&uid("a"), EnrolmentPhase::Waiting).await;
    peer.hears_nothing().await;
    own.report(&uid("a"), EnrolmentPhase::NotEnrolled).await;
    assert_eq!(peer.follow().await.workload("a").tunnel(), Tunnel::None);
}

#[tokio::test(start_paused = true)]
async fn a_refused_resource_is_remembered_until_it_is_replaced() {
    let text = [BASE, &namespace("enabled"), &pod("a", "one", "10.1.0.1")].concat();
    let mesh = Mesh::start(&text).await;
    let mut proxy = mesh.proxy("one", &[]).await;
    let first = proxy.follow().await;
    let key = first.upserts[&uid("a")].key.clone();
    let version = first.upserts[&uid("a")].version.clone();
    proxy.say(In::Refused(pb::Refused { key, version, reason: "too odd".into() })).await;
    mesh.wait_status("Pod/shop/a", "refused the workload: too odd").await;
    assert!(mesh.overview.json().to_string().contains("too odd"));
    mesh.set(&text.replace("port: 80}", "port: 81}"));
    proxy.follow().await;
    mesh.wait_status("Pod/shop/a", "has not reported").await;
    assert!(!mesh.overview.json().to_string().contains("too odd"));
}

/// A Gateway with what it needs, and a route at it and at a Service.
const GATEWAY: &str = concat!(
    include_str!("mesh/gateway.yaml"),
    "apiVersion: v1
kind: Service
metadata: {name: edge-culvert, namespace: shop}
spec: {type: LoadBalancer, clusterIP: 10.2.0.9, ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}
---
apiVersion: v1
kind: Pod
metadata:
  name: e
  namespace: shop
  uid: uid-e
  labels: {gateway.networking.k8s.io/gateway-name: edge, pod-template-hash: h}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: edge-culvert-h, uid: r, controller: true}]
spec: {nodeName: one, containers: [{name: c}]}
status: {podIP: 10.1.0.7}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{name: edge}, {group: \"\", kind: Service, name: cart}]}
---
"
);

#[tokio::test(start_paused = true)]
async fn listeners_and_routes_come_after_what_they_name_and_go_before_it() {
    let mesh = Mesh::start(&[BASE, GATEWAY].concat()).await;
    let (mut own, mut peer) = (mesh.proxy("one", &[]).await, mesh.proxy("two", &[]).await);
    let (edge, cart) = ("HTTPRoute/shop/r@shop/edge/web", "HTTPRoute/shop/r@shop/cart");
    let all = ["mesh", &uid("e"), "shop/cart", "shop/edge-culvert", "shop/edge/web", cart, edge];
    let first = own.follow().await;
    assert_eq!(first.names(), all);
    assert_eq!(first.workload("e").gateway, "shop/edge");
    assert_eq!(peer.follow().await.names(), all, "every node has them");

    let changed = GATEWAY.replace("name: edge}, {group", "name: edge, sectionName: web}, {group");
    mesh.set(&[BASE, &changed].concat());
    peer.hears_nothing().await;
    mesh.set(
        &[BASE, &GATEWAY.replace("spec: {parentRefs", "spec: {rules: [{name: a}], parentRefs")].concat(),
    );
    assert_eq!(peer.batch().await.names(), [cart, edge]);
    mesh.set(BASE);
    let gone = peer.batch().await.removals;
    assert_eq!(gone, [edge, cart, "shop/edge/web", "shop/edge-culvert", &uid("e")]);
}

#[tokio::test(start_paused = true)]
async fn a_route_that_proxies_refuse_says_so_until_they_take_it() {
    let text = [BASE, GATEWAY].concat();
    let mesh = Mesh::start(&text).await;
    let (mut one, mut two) = (mesh.proxy("one", &[]).await, mesh.proxy("two", &[]).await);
    let first = one.follow().await;
    two.follow().await;
    let refuse = |batch: &mesh::Batch, name: &str, reason: &str| {
        let pb::Resource { key, version, .. } = batch.upserts[name].clone();
        In::Refused(pb::Refused { key, version, reason: reason.into() })
    };
    let (cart, edge) = ("HTTPRoute/shop/r@shop/cart", "HTTPRoute/shop/r@shop/edge/web");
    let conditions = |parent: usize| {
        let text = std::fs::read_to_string(mesh.status_path("HTTPRoute/shop/r")).unwrap();
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        status["status"]["parents"][parent]["conditions"].to_string()
    };
    mesh.wait_status("HTTPRoute/shop/r", "attached to listener").await;
    assert!(!conditions(0).contains("PartiallyInvalid") && !conditions(1).contains("PartiallyInvalid"));

    two.say(refuse(&first, cart, "too new")).await;
    mesh.wait_status("HTTPRoute/shop/r", "node two (too new)").await;
    assert!(conditions(1).contains("Fall Back") && !conditions(0).contains("Fall Back"), "{}", conditions(0));
    one.say(refuse(&first, cart, "too odd")).await;
    mesh.wait_status("HTTPRoute/shop/r", "node one (too odd), node two (too new)").await;
    one.say(refuse(&first, edge, "no such listener")).await;
    mesh.wait_status("HTTPRoute/shop/r", "500 where it has none: node one (no such listener)").await;

    // A translation that does not touch the route leaves what is said of it; a closed stream says nothing any more.
    mesh.set(&[&text, pod("a", "one", "10.1.0.1").as_str()].concat());
    one.follow().await;
    two.follow().await;
    mesh.wait_status("HTTPRoute/shop/r", "node one (too odd), node two (too new)").await;
    drop(two);
    mesh.wait_status("HTTPRoute/shop/r", "500 where it has none: node one (too odd)\"").await;

    // A version that is not refused.
    mesh.set(&text.replace("spec: {parentRefs", "spec: {rules: [{name: a}], parentRefs"));
    assert_eq!(one.follow().await.names(), [cart, edge]);
    for _ in 0..1000 {
        if !conditions(0).contains("Fall Back") && !conditions(1).contains("Fall Back") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{}", conditions(1));
}

#[tokio::test(start_paused = true)]
async fn a_listener_is_programmed_when_the_node_of_its_pod_reports_it_open() {
    let mesh = Mesh::start(&[BASE, GATEWAY].concat()).await;
    let (own, peer) = (mesh.proxy("one", &[]).await, mesh.proxy("two", &[]).await);
    mesh.wait_status("Gateway/shop/edge", "no node proxy has opened it").await;
    let report = |failure: &str| {
        let state = pb::ListenerState { listener: "shop/edge/web".into(), failure: failure.into() };
        let workload = pb::WorkloadListeners { uid: uid("e"), listeners: vec![state] };
        In::Listeners(pb::ListenerReport { workloads: vec![workload] })
    };
    own.say(report("address in use")).await;
    mesh.wait_status("Gateway/shop/edge", "address in use").await;
    peer.say(report("")).await;
    own.say(report("")).await;
    mesh.wait_status("Gateway/shop/edge", "its listeners say of each whether it is open").await;
    mesh.wait_status("Gateway/shop/edge", "open in the pods of the Gateway").await;
    mesh.wait_status("Gateway/shop/edge", "\"value\": \"192.0.2.1\"").await;
    mesh.wait_status("HTTPRoute/shop/r", "attached to listener shop/edge/web").await;
    mesh.set(&[BASE, &GATEWAY.replace("uid: uid-e", "uid: uid-f")].concat());
    mesh.wait_status("Gateway/shop/edge", "no node proxy has opened it").await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_ends_and_a_talking_one_does_not() {
    let mesh = Mesh::start(BASE).await;
    let (mut silent, mut talking) = (mesh.proxy("one", &[]).await, mesh.proxy("two", &[]).await);
    silent.follow().await;
    talking.follow().await;
    let started = tokio::time::Instant::now();
    let beats = talking.to.clone();
    tokio::spawn(async move {
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let beat = In::Heartbeat(pb::ProxyHeartbeat { version: "v".into(), refused: 0 });
            beats.send(pb::ProxyMessage { kind: Some(beat) }).await.unwrap();
        }
    });
    let end = silent.next().await.unwrap_err();
    assert_eq!(end.code(), Code::DeadlineExceeded, "{end}");
    assert!((29..=32).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    assert!(silent.heartbeats >= 2);
    tokio::time::sleep(Duration::from_secs(100)).await;
    mesh.set(&[BASE, &pod("a", "two", "10.1.0.1")].concat());
    assert_eq!(talking.follow().await.names(), [uid("a").as_str()]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_its_token_and_starts_with_hello() {
    let mesh = Mesh::start(BASE).await;
    let token = mesh.issuer.issue(node_proxy(Some("one")), AUDIENCE, Duration::from_secs(20)).unwrap();
    let mut proxy = Proxy::open(&mesh, Some(&token)).await.unwrap();
    proxy.introduce(&[]).await;
    proxy.next().await.unwrap();
    proxy.follow().await;
    assert_eq!(proxy.next().await.unwrap_err().code(), Code::Unauthenticated);

    let mut rude = Proxy::open(&mesh, Some(&mesh.token("one"))).await.unwrap();
    rude.say(In::Subscribe(pb::Subscribe {})).await;
    assert_eq!(rude.next().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn a_slow_proxy_gets_the_newest_state_and_no_queue_of_old_ones() {
    let services = |generation: usize| {
        let mut text = BASE.to_owned();
        for n in 0..4000 {
            let name = format!("{{name: s{n}, namespace: shop}}");
            let port = 1000 + if n == 0 { generation } else { 0 };
            let (a, b) = (n / 250, n % 250 + 1);
            let spec = format!("{{clusterIP: 10.3.{a}.{b}, ports: [{{port: {port}}}]}}");
            writeln!(text, "apiVersion: v1\nkind: Service\nmetadata: {name}\nspec: {spec}\n---").unwrap();
        }
        text
    };
    let mesh = Mesh::start(&services(0)).await;
    let mut slow = mesh.proxy("one", &[]).await;
    let mut quick = mesh.proxy("two", &[]).await;
    quick.follow().await;
    for generation in 1..=20 {
        mesh.set(&services(generation));
        assert_eq!(quick.follow().await.names(), ["shop/s0"]);
    }
    let mut marks = 0;
    loop {
        let batch = slow.batch().await;
        marks += 1;
        if format!("{:?}", batch.upserts.get("shop/s0")).contains("port: 1020") {
            break;
        }
    }
    // The first, what waits in buffers of a few messages, and the newest.
    assert!(marks <= 6, "{marks}");
}
