//! The keys in a Secret, for any number of replicas: whoever is first makes them, every change is made over the version that it
//! was decided on.

use std::collections::BTreeMap;

use culvert_api::names::SYSTEM_NAMESPACE;
use culvert_kubernetes::Client;
use culvert_kubernetes::client::{RequestError, within};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use thiserror::Error;

use super::ring::{Ring, RingError};

/// The Secret's name, in the mesh's namespace.
pub const SECRET: &str = "culvert-session-keys";
const KEY: &str = "keys.json";
/// Rounds against other replicas that were quicker.
const ROUNDS: usize = 4;

/// Why the Secret cannot be used.
#[derive(Debug, Error)]
pub enum SecretError {
    #[error("Secret {SYSTEM_NAMESPACE}/{SECRET}: {0}")]
    Request(RequestError),
    #[error(
        "Secret {SYSTEM_NAMESPACE}/{SECRET}: {0}; restore it, or delete it for new keys, with which every session ends"
    )]
    Damaged(RingError),
    #[error(
        "Secret {SYSTEM_NAMESPACE}/{SECRET}: no {KEY}; restore it, or delete it for new keys, with which every session ends"
    )]
    Missing,
    #[error("Secret {SYSTEM_NAMESPACE}/{SECRET}: others were quicker, time and again")]
    Contended,
}

/// The ring that is kept, or the one that has taken its place just now.
///
/// # Errors
/// When the API server does not do it, or somebody has damaged the Secret: then it is left as it is.
pub async fn look(client: &Client, now: u64) -> Result<Ring, SecretError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    for _ in 0..ROUNDS {
        let found = within(secrets.get_opt(SECRET)).await.map_err(SecretError::Request)?;
        let kept = match &found {
            None => Ring::default(),
            Some(secret) => {
                let text = secret.data.as_ref().and_then(|data| data.get(KEY)).ok_or(SecretError::Missing)?;
                Ring::parse(&text.0).map_err(SecretError::Damaged)?
            }
        };
        let Some(next) = kept.due(now) else { return Ok(kept) };
        let params = PostParams::default();
        let written = match found.and_then(|secret| secret.metadata.resource_version) {
            None => within(secrets.create(&params, &secret(&next, None))).await,
            version => within(secrets.replace(SECRET, &params, &secret(&next, version))).await,
        };
        match written {
            Ok(_) => return Ok(next),
            Err(error) if error.is_status(409) => {}
            Err(error) => return Err(SecretError::Request(error)),
        }
    }
    Err(SecretError::Contended)
}

fn secret(ring: &Ring, version: Option<String>) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            resource_version: version,
            ..ObjectMeta::default()
        },
        type_: Some("culvert.dev/session-keys".to_owned()),
        data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(ring.text().into_bytes()))])),
        ..Secret::default()
    }
}
