//! A token of the plugin's own. The node proxy's is bound to its pod and ends when that is deleted, which is just when the
//! plugin has nobody else to ask; this one is bound to the node.

use std::time::Duration;

use culvert_api::names::{CNI_SERVICE_ACCOUNT, SYSTEM_NAMESPACE};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client, Config};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Asked for; the API server may grant less. A mesh that is down for longer leaves the plugin with what the node keeps.
const LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// A token is replaced after this long, or after half of its life.
const RENEWAL: Duration = Duration::from_secs(60 * 60);
/// After a failure.
const RETRY: Duration = Duration::from_secs(15);
/// For one answer of the API server.
const ANSWER: Duration = Duration::from_secs(10);

/// Whose token the plugin has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PluginToken {
    /// The node proxy's own, as the kubelet renews it.
    NodeProxys,
    /// One was asked for; what is in force stays until it is there.
    Awaited,
    Issued(String),
}

/// Why there is no token for the plugin.
#[derive(Debug, Error)]
pub enum TokenError {
    #[error("the API server: {0}")]
    Client(#[from] kube::Error),
    #[error("the credentials of this pod: {0}")]
    InCluster(#[from] kube::config::InClusterError),
    #[error("the API server did not answer within {} s", ANSWER.as_secs())]
    Silent,
    #[error("the API server's answer holds no token")]
    Empty,
}

impl TokenError {
    /// The API server has spoken, and asking again will not help: the service account or the right is missing.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Client(kube::Error::Api(status)) if [403, 404].contains(&status.code))
    }
}

/// Asks for tokens of the service account `culvert-cni`, which may read what the plugin decides by and nothing else.
pub struct TokenSource {
    client: Client,
    node: String,
}

impl TokenSource {
    /// With the credentials of the pod that this process runs in.
    ///
    /// # Errors
    /// When there are none.
    pub fn in_cluster(node: &str) -> Result<Self, TokenError> {
        Ok(Self::new(Client::try_from(Config::incluster()?)?, node))
    }

    #[must_use]
    pub fn new(client: Client, node: &str) -> Self {
        Self { client, node: node.to_owned() }
    }

    /// Keeps a token in force until cancelled.
    pub async fn keep(self, token: watch::Sender<PluginToken>, cancel: CancellationToken) {
        let keep = async {
            let mut failed = false;
            loop {
                let again = match self.token().await {
                    Ok((issued, lifetime)) => {
                        token.send_replace(PluginToken::Issued(issued));
                        failed = false;
                        RENEWAL.min(lifetime / 2)
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut failed, true) {
                            tracing::warn!(
                                %error, service_account = CNI_SERVICE_ACCOUNT,
                                "no token for the CNI plugin; trying again"
                            );
                        }
                        if error.is_refusal() {
                            token.send_replace(PluginToken::NodeProxys);
                        }
                        RETRY
                    }
                };
                tokio::time::sleep(again).await;
            }
        };
        cancel.run_until_cancelled(keep).await;
    }

    /// A token and how long it lives.
    async fn token(&self) -> Result<(String, Duration), TokenError> {
        let asked = async {
            let node = Api::<Node>::all(self.client.clone()).get(&self.node).await?;
            let bound = BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(self.node.clone()),
                uid: node.metadata.uid,
            };
            match self.request(Some(bound)).await {
                // Kubernetes before 1.31 binds no tokens to nodes.
                Err(kube::Error::Api(status)) if [400, 422].contains(&status.code) => {
                    self.request(None).await
                }
                answered => answered,
            }
        };
        let answered = tokio::time::timeout(ANSWER, asked).await.map_err(|_| TokenError::Silent)??;
        let token = answered.status.map(|status| status.token).filter(|token| !token.is_empty());
        let seconds = answered.spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let lifetime = seconds.map_or(LIFETIME, Duration::from_secs);
        Ok((token.ok_or(TokenError::Empty)?, lifetime))
    }

    async fn request(&self, bound: Option<BoundObjectReference>) -> Result<TokenRequest, kube::Error> {
        let spec = TokenRequestSpec {
            bound_object_ref: bound,
            expiration_seconds: i64::try_from(LIFETIME.as_secs()).ok(),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        Api::<ServiceAccount>::namespaced(self.client.clone(), SYSTEM_NAMESPACE)
            .create_token_request(CNI_SERVICE_ACCOUNT, &PostParams::default(), &request)
            .await
    }
}
