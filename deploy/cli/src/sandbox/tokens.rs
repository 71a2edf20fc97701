//! Service account tokens as an API server issues them, in files that are renewed long before they expire.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert_api::names::{
    CONTROLLER_SERVICE_ACCOUNT, NODE_PROXY_SERVICE_ACCOUNT, SYSTEM_NAMESPACE, TOKEN_AUDIENCE,
};
use culvert_identity::files::{Readers, replace};
use culvert_identity::token::{Issuer, IssuerError, KubernetesClaims, ObjectRef};
use culvert_objects::{Kind, ObjectKey, Objects};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::sandbox::cluster::Cluster;
use crate::sandbox::files::Files;
use crate::sandbox::store::Store;

/// Claim `iss`, as an API server calls itself.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Validity of a token, as the kubelet asks for it.
const LIFETIME: Duration = Duration::from_secs(3600);
/// A token is replaced after this long, whatever happens to the attempts in between.
const RENEW: Duration = Duration::from_secs(2400);
/// Before a failed renewal is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// The signing key and whom it signs for.
pub struct Tokens {
    issuer: Issuer,
    nodes: Vec<String>,
}

impl Tokens {
    /// Makes a key.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn new(cluster: &Cluster) -> Result<Self, IssuerError> {
        let nodes = cluster.nodes.iter().map(|node| node.name.clone()).collect();
        Ok(Self { issuer: Issuer::generate(ISSUER)?, nodes })
    }

    /// Writes the key set and a fresh token for the controller and each node proxy. Components may start on return.
    ///
    /// # Errors
    /// When signing fails or a file cannot be written.
    pub fn write(&self, objects: &Objects) -> Result<(), IssuerError> {
        self.write_to(objects, &Files.token_keys(), |component| Files.token(component))
    }

    fn write_to(
        &self,
        objects: &Objects,
        keys: &Path,
        file: impl Fn(&str) -> PathBuf,
    ) -> Result<(), IssuerError> {
        if let Some(directory) = keys.parent() {
            std::fs::create_dir_all(directory)?;
        }
        self.issuer.write_jwks(keys)?;
        let write = |component: &str, claims| -> Result<(), IssuerError> {
            let token = self.issuer.issue(claims, TOKEN_AUDIENCE, LIFETIME)?;
            Ok(replace(&file(component), token.as_bytes(), Readers::Owner)?)
        };
        write("controller", claims(objects, CONTROLLER_SERVICE_ACCOUNT, None))?;
        self.nodes.iter().try_for_each(|node| {
            let bound = reference(objects, ObjectKey::cluster(Kind::Node, node));
            let claims = claims(objects, NODE_PROXY_SERVICE_ACCOUNT, Some(bound));
            write(&format!("node-proxy-{node}"), claims)
        })
    }

    /// Renews the files until cancelled.
    pub async fn run(self, store: Store, cancel: CancellationToken) {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.renew(store) => {}
        }
    }

    async fn renew(self, store: Store) {
        let this = Arc::new(self);
        let mut wait = RENEW;
        loop {
            sleep(wait).await;
            let (tokens, objects) = (Arc::clone(&this), store.objects());
            let written = tokio::task::spawn_blocking(move || tokens.write(&objects)).await;
            let error = match written {
                Ok(Ok(())) => {
                    wait = RENEW;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            warn!(error, "service account tokens are not renewed");
            wait = RETRY;
        }
    }
}

fn claims(objects: &Objects, account: &str, node: Option<ObjectRef>) -> KubernetesClaims {
    let key = ObjectKey::namespaced(Kind::ServiceAccount, SYSTEM_NAMESPACE, account);
    // The mesh's own processes are no pods here.
    KubernetesClaims {
        namespace: SYSTEM_NAMESPACE.to_owned(),
        serviceaccount: reference(objects, key),
        pod: None,
        node,
    }
}

fn reference(objects: &Objects, key: ObjectKey) -> ObjectRef {
    let uid = objects.get(&key).map(|object| object.uid().to_owned()).unwrap_or_default();
    ObjectRef { name: key.name, uid }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_identity::token::Verifier;

    #[test]
    fn tokens_say_who_holds_them_and_on_which_node() {
        let directory = tempfile::tempdir().unwrap();
        let cluster = Cluster::new("test", 2);
        let store = Store::new(&cluster);
        let keys = directory.path().join("tokens/keys.json");
        let file = |component: &str| directory.path().join("tokens").join(component);
        Tokens::new(&cluster).unwrap().write_to(&store.objects(), &keys, file).unwrap();
        let verifier = Verifier::open(&keys, ISSUER, TOKEN_AUDIENCE).unwrap();
        let read =
            |component: &str| verifier.verify(&std::fs::read_to_string(file(component)).unwrap()).unwrap();

        let controller = read("controller");
        assert!(controller.is(SYSTEM_NAMESPACE, CONTROLLER_SERVICE_ACCOUNT));
        assert_eq!(controller.node, None);
        let proxy = read("node-proxy-node2");
        assert!(proxy.is(SYSTEM_NAMESPACE, NODE_PROXY_SERVICE_ACCOUNT));
        let node = proxy.node.unwrap();
        assert_eq!(node.name, "node2");
        assert_eq!(node.uid, store.objects().find(Kind::Node, "", "node2").unwrap().uid());
    }
}
