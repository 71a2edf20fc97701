//! Source and tokens on a real API server.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy takes helpers of integration tests for code outside tests"
)]

use std::sync::Arc;

use culvert_api_server::{ApiServer, DEADLINE, until};
use culvert_identity::admin::Readiness;
use culvert_identity::token::{ObjectRef, TokenError};
use culvert_kubernetes::tokens::Reviewer;
use culvert_kubernetes::{Interest, Purpose, Server, Source, Tokens, client};
use culvert_objects::{Kind, Objects};
use tokio::sync::watch;

fn interests() -> Vec<Interest> {
    let kinds = [
        Kind::Namespace,
        Kind::Node,
        Kind::Pod,
        Kind::HttpRoute,
        Kind::TcpRoute,
        Kind::ReferenceGrant,
        Kind::XMesh,
    ];
    kinds.map(|kind| Interest { kind, purpose: Purpose::ReadAndWriteStatus }).to_vec()
}

async fn open(server: &ApiServer) -> Source {
    let client = client::connect(&Server::Kubeconfig(server.admin())).await.unwrap();
    let check = Readiness::default().check("objects");
    tokio::time::timeout(DEADLINE, Source::open(client, &interests(), &check)).await.unwrap()
}

async fn wait(what: &str, objects: &mut watch::Receiver<Arc<Objects>>, holds: impl Fn(&Objects) -> bool) {
    let found = tokio::time::timeout(DEADLINE, objects.wait_for(|objects| holds(objects))).await.is_ok();
    assert!(
        found,
        "{what}: {:?}",
        objects.borrow().iter().map(|at| at.key().to_string()).collect::<Vec<_>>()
    );
}

/// A CRD of this name that takes anything, as one of a later bundle might.
fn lax(plural: &str, kind: &str, version: &str) -> String {
    format!(
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n\
         metadata:\n  name: {plural}.gateway.networking.k8s.io\n  annotations: {{api-approved.kubernetes.io: unapproved}}\n\
         spec:\n  group: gateway.networking.k8s.io\n  scope: Namespaced\n\
         \x20 names: {{kind: {kind}, plural: {plural}, singular: {singular}, listKind: {kind}List}}\n\
         \x20 versions:\n  - name: {version}\n    served: true\n    storage: true\n\
         \x20   schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}\n",
        singular = kind.to_lowercase()
    )
}

fn grant(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_come_and_go_a_bad_object_is_skipped_and_an_outage_is_outlived() {
    let mut server = ApiServer::start().await;
    let source = open(&server).await;
    let mut objects = source.objects();
    assert!(
        objects.borrow().namespace("kube-system").is_some(),
        "complete when it is published for the first time"
    );

    // A kind that appears later, in an old version, with an object that does not read.
    server.apply(&lax("referencegrants", "ReferenceGrant", "v1beta1")).await;
    let good = "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: '', kind: Service}]}";
    server.apply(&(grant("good", good) + "---\n" + &grant("bad", "{from: [{group: 7}]}"))).await;
    wait("the good one", &mut objects, |all| all.find(Kind::ReferenceGrant, "shop", "good").is_some()).await;
    wait("the bad one", &mut objects, |all| all.problems().len() == 1).await;
    let problem = objects.borrow().problems()[0].to_string();
    assert!(problem.contains("ReferenceGrant shop/bad") && problem.contains("spec.from[0]"), "{problem}");
    assert!(objects.borrow().find(Kind::ReferenceGrant, "shop", "bad").is_none());
    server.apply(&grant("bad", good)).await;
    wait("mended", &mut objects, |all| all.problems().is_empty()).await;
    server.apply(&grant("bad", "{from: 1}")).await;
    wait("bad again", &mut objects, |all| all.problems().len() == 1).await;
    assert!(
        objects.borrow().find(Kind::ReferenceGrant, "shop", "bad").is_some(),
        "its last good version stays"
    );

    // The API server goes away; what was read stays; it comes back, and changes of before and after are seen.
    server.pause();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert!(objects.borrow().find(Kind::ReferenceGrant, "shop", "good").is_some());
    server.resume().await;
    server.apply("apiVersion: v1\nkind: Node\nmetadata: {name: one}\n").await;
    server.delete("gateway.networking.k8s.io/v1beta1", "ReferenceGrant", "shop", "bad").await;
    wait("after the outage", &mut objects, |all| {
        all.find(Kind::Node, "", "one").is_some() && all.problems().is_empty()
    })
    .await;

    // A CRD that goes takes its objects along.
    let crd = "referencegrants.gateway.networking.k8s.io";
    server.delete("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", crd).await;
    wait("the kind is gone", &mut objects, |all| all.of_kind(Kind::ReferenceGrant).count() == 0).await;
    let served = source.served();
    until("discovery says so", || {
        let gone = served.borrow().as_ref().is_ok_and(|served| served.get(Kind::ReferenceGrant).is_none());
        async move { if gone { Ok(()) } else { Err("still served".to_owned()) } }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bundle_is_read_in_the_newest_version_that_it_serves() {
    let server = ApiServer::start().await;
    let source = open(&server).await;
    let mut objects = source.objects();
    let mut served = source.served();
    // Each on top of the one before, as an upgrade is. HTTPRoute, TCPRoute, ReferenceGrant, XMesh.
    let bundles = [
        ("v1.2.1", "standard", [Some("v1"), None, Some("v1beta1"), None]),
        ("v1.2.1", "experimental", [Some("v1"), Some("v1alpha2"), Some("v1beta1"), None]),
        ("v1.4.1", "experimental", [Some("v1"), Some("v1alpha2"), Some("v1beta1"), Some("v1alpha1")]),
        ("v1.6.1", "experimental", [Some("v1"), Some("v1"), Some("v1"), Some("v1alpha1")]),
    ];
    for (version, channel, expected) in bundles {
        server.install_gateway_api(version, channel).await;
        let kinds = [Kind::HttpRoute, Kind::TcpRoute, Kind::ReferenceGrant, Kind::XMesh];
        let found = served.wait_for(|served| {
            let Ok(served) = served else { return false };
            let version = |kind| served.get(kind).map(|at| at.api_version.rsplit('/').next().unwrap());
            kinds.map(version) == expected
        });
        let found = tokio::time::timeout(DEADLINE, found).await.is_ok();
        assert!(found, "{version} {channel}: {:?}", served.borrow());
        let name = format!("r-{}", version.replace('.', "-")) + "-" + channel;
        server
            .apply(&format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\n\
                 spec: {{parentRefs: [{{group: '', kind: Service, name: cart}}]}}\n"
            ))
            .await;
        wait(version, &mut objects, |all| all.find(Kind::HttpRoute, "shop", &name).is_some()).await;
    }
    let route = objects.borrow().find(Kind::HttpRoute, "shop", "r-v1-2-1-standard").cloned().unwrap();
    assert!(route.body["spec"]["parentRefs"][0]["name"] == "cart" && route.metadata.generation == Some(1));
}

const PROXY: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: one}\n---\n\
    apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: culvert-node-proxy, namespace: culvert-system}\n---\n\
    apiVersion: v1\nkind: Pod\nmetadata: {name: proxy, namespace: culvert-system}\n\
    spec: {nodeName: one, serviceAccountName: culvert-node-proxy, containers: [{name: c, image: i}]}\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_token_tells_its_node_and_another_audience_is_refused() {
    let mut server = ApiServer::start().await;
    server.apply(PROXY).await;
    let object = server.get("v1", "Pod", "culvert-system", "proxy").await.unwrap();
    let uid = object["metadata"]["uid"].as_str().unwrap().to_owned();
    let bound = Some(("proxy", uid.as_str()));
    let token = server.token("culvert-system", "culvert-node-proxy", &["culvert.dev"], bound).await;
    let other = server.token("culvert-system", "culvert-node-proxy", &["istio-ca"], bound).await;
    let client = client::connect(&Server::Kubeconfig(server.admin())).await.unwrap();
    let tokens = Tokens::Review(Reviewer::new(client.clone(), "culvert.dev"));
    let caller = tokens.verify(&token).await.unwrap();
    assert!(caller.is("culvert-system", "culvert-node-proxy"));
    assert_eq!(caller.pod, Some(ObjectRef { name: "proxy".to_owned(), uid: uid.clone() }));
    assert_eq!(caller.node.map(|node| node.name), Some("one".to_owned()));
    assert_eq!(tokens.verify(&other).await, Err(TokenError::Audience));
    // Plausible, and not signed by anybody the API server knows.
    let (head, signature) = token.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
    assert!(matches!(tokens.verify(&forged).await, Err(TokenError::NotAuthenticated(_))));

    // Believed for a while without the API server; one that nobody has asked about is not.
    let second = server.token("culvert-system", "culvert-node-proxy", &["culvert.dev"], bound).await;
    let token = server.token("culvert-system", "culvert-node-proxy", &["culvert.dev"], bound).await;
    assert!(tokens.verify(&token).await.is_ok());
    server.pause();
    assert!(tokens.verify(&token).await.is_ok());
    assert!(matches!(tokens.verify(&second).await, Err(TokenError::Unavailable(_))));
    server.resume().await;
    assert!(tokens.verify(&second).await.is_ok());
    // A token dies with its pod.
    server.delete("v1", "Pod", "culvert-system", "proxy").await;
    let fresh = Tokens::Review(Reviewer::new(client, "culvert.dev"));
    until("the token is refused", || {
        let (fresh, token) = (&fresh, &token);
        async move {
            match fresh.verify(token).await {
                Err(TokenError::NotAuthenticated(_)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_may_not_list_a_kind_says_so_and_publishes_nothing() {
    let server = ApiServer::start().await;
    let kubeconfig = server.kubeconfig("culvert-system", "culvert-controller").await;
    let client = client::connect(&Server::Kubeconfig(kubeconfig)).await.unwrap();
    let readiness = Readiness::default();
    let check = readiness.check("objects");
    let opening = tokio::spawn(async move {
        let interest = Interest { kind: Kind::Pod, purpose: Purpose::Read };
        let source = Source::open(client, &[interest], &check).await;
        check.satisfied();
        source
    });
    until("it says for what it waits", || {
        let missing = format!("{:?}", readiness.missing());
        async move { if missing.contains("Pod") && missing.contains("forbidden") { Ok(()) } else { Err(missing) } }
    })
    .await;
    assert!(!opening.is_finished());
    server
        .apply(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: pods}\n\
             rules: [{apiGroups: [''], resources: [pods], verbs: [list, watch]}]\n---\n\
             apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: pods}\n\
             roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: pods}\n\
             subjects: [{kind: ServiceAccount, name: culvert-controller, namespace: culvert-system}]\n",
        )
        .await;
    let opened = tokio::time::timeout(DEADLINE, opening).await.unwrap().unwrap();
    assert!(opened.objects().borrow().is_empty());
}
