//! The plugin's token on a real API server, under the chart's roles.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

use culvert_api_server::{ApiServer, DEADLINE, client, until};
use culvert_cni::install::{PluginToken, TokenSource};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: culvert-system}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: culvert-node-proxy, namespace: culvert-system}
";
const ACCOUNT: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: culvert-cni, namespace: culvert-system}
";

async fn kept(server: &ApiServer) -> watch::Receiver<PluginToken> {
    let kubeconfig = server.kubeconfig("culvert-system", "culvert-node-proxy").await;
    let source = TokenSource::new(client(&kubeconfig).await, "n1");
    let (token, tokens) = watch::channel(PluginToken::Awaited);
    tokio::spawn(source.keep(token, CancellationToken::new()));
    tokens
}

/// Who the API server takes a token for, and the node it is bound to.
async fn whose(server: &ApiServer, token: &str) -> Option<(String, Option<String>)> {
    let spec = TokenReviewSpec { token: Some(token.to_owned()), ..TokenReviewSpec::default() };
    let review = TokenReview { spec, ..TokenReview::default() };
    let reviews: Api<TokenReview> = Api::all(server.client().await);
    let status = reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap();
    let user = status.user.filter(|_| status.authenticated == Some(true))?;
    let node = user.extra.unwrap_or_default().remove("authentication.kubernetes.io/node-name");
    Some((user.username.unwrap(), node.and_then(|names| names.into_iter().next())))
}

#[tokio::test]
async fn it_is_bound_to_the_node_and_asked_for_under_the_charts_roles() {
    let server = ApiServer::start().await;
    server.apply(OBJECTS).await;
    let mut tokens = kept(&server).await;
    // Until the roles are there, the node proxy's own serves.
    tokens.wait_for(|token| *token == PluginToken::NodeProxys).await.unwrap();
    server.apply(ACCOUNT).await;
    server.apply(include_str!("../../../deploy/helm/culvert/files/rbac/node-proxy.yaml")).await;
    let issued = |token: &PluginToken| matches!(token, PluginToken::Issued(_));
    let token = tokio::time::timeout(DEADLINE, tokens.wait_for(issued)).await.unwrap().unwrap().clone();
    let PluginToken::Issued(token) = token else { unreachable!() };
    let (user, node) = whose(&server, &token).await.unwrap();
    assert_eq!(user, "system:serviceaccount:culvert-system:culvert-cni");
    assert_eq!(node.as_deref(), Some("n1"));
    server.delete("v1", "Node", "", "n1").await;
    // The API server remembers for some seconds what it said of a token.
    until("the token ends with its node", || async {
        whose(&server, &token).await.map_or(Ok(()), |whose| Err(format!("{whose:?}")))
    })
    .await;
}
