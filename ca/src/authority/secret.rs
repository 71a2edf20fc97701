//! The roots in a Secret, for any number of replicas: whoever is first makes them, every change is made over the version
//! that it was decided on. The bundle in a ConfigMap.

use std::collections::BTreeMap;
use std::time::SystemTime;

use culvert_identity::{TrustBundle, TrustDomain};
use culvert_kubernetes::Client;
use culvert_kubernetes::client::{RequestError, within};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::state::{NewRoot, RootError, RootPhase, State};

const STATE: &str = "authority.json";
const NEXT: &str = "next-root.json";
/// The key of the bundle in its ConfigMap.
const BUNDLE: &str = "roots.pem";
/// Who has written, for `managedFields`.
const FIELD_MANAGER: &str = "culvert-ca";

/// Why the Secret or the ConfigMap cannot be used. Each says what to do.
#[derive(Debug, Error)]
pub enum SecretError {
    #[error("{object}: {error}")]
    Request { object: String, error: RequestError },
    #[error(
        "{object}: damaged ({detail}). Restore it from a copy. Without one, delete the Secret: the next start makes a new \
         root, and every workload must get a new certificate and the new bundle before it is trusted again"
    )]
    Damaged { object: String, detail: String },
    #[error(
        "{object}: its roots are for trust domain {kept}, not {asked}; start with --trust-domain {kept}, or with another --root-secret"
    )]
    OtherTrustDomain { object: String, kept: TrustDomain, asked: TrustDomain },
    #[error("{object}: there is no root to replace yet; start `culvert-ca run` once")]
    NoRootYet { object: String },
    #[error("a root is being replaced already ({object}); wait until the new one is active")]
    RotationUnderWay { object: String },
    #[error(transparent)]
    Root(#[from] RootError),
}

/// The Secret with the roots and the ConfigMap with the bundle.
#[derive(Clone)]
pub struct SecretStore {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    namespace: String,
    secret: String,
    config_map: String,
}

/// What is kept at one moment.
pub(super) struct Kept {
    pub(super) state: State,
    /// Put down to be the next root.
    pub(super) next: Option<NewRoot>,
    version: String,
}

/// How a write over a version ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Done,
    /// Another replica was quicker.
    Conflict,
}

impl SecretStore {
    pub fn new(client: &Client, namespace: &str, secret: &str, config_map: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client.clone(), namespace),
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            config_map: config_map.to_owned(),
        }
    }

    fn object(&self) -> String {
        format!("Secret {}/{}", self.namespace, self.secret)
    }

    fn failed(&self, error: RequestError) -> SecretError {
        SecretError::Request { object: self.object(), error }
    }

    /// What is kept; None before the first start.
    pub(super) async fn load(&self, trust_domain: &TrustDomain) -> Result<Option<Kept>, SecretError> {
        let Some(kept) = self.read().await? else { return Ok(None) };
        if kept.state.trust_domain != *trust_domain {
            let (kept, asked) = (kept.state.trust_domain, trust_domain.clone());
            return Err(SecretError::OtherTrustDomain { object: self.object(), kept, asked });
        }
        Ok(Some(kept))
    }

    async fn read(&self) -> Result<Option<Kept>, SecretError> {
        let found = within(self.secrets.get_opt(&self.secret)).await.map_err(|error| self.failed(error))?;
        let Some(secret) = found else { return Ok(None) };
        let data = secret.data.unwrap_or_default();
        let state: State = self
            .parse(&data, STATE)?
            .ok_or_else(|| SecretError::Damaged { object: self.object(), detail: format!("no {STATE}") })?;
        let damaged =
            |error: RootError| SecretError::Damaged { object: self.object(), detail: error.to_string() };
        state.check().map_err(damaged)?;
        let next: Option<NewRoot> = self.parse(&data, NEXT)?;
        if let Some(next) = &next {
            next.check().map_err(damaged)?;
        }
        Ok(Some(Kept { state, next, version: secret.metadata.resource_version.unwrap_or_default() }))
    }

    fn parse<T: DeserializeOwned>(
        &self,
        data: &BTreeMap<String, ByteString>,
        key: &str,
    ) -> Result<Option<T>, SecretError> {
        let parsed = data.get(key).map(|bytes| serde_json::from_slice(&bytes.0)).transpose();
        parsed.map_err(|error| SecretError::Damaged {
            object: self.object(),
            detail: format!("{key}: {error}"),
        })
    }

    fn secret(
        &self,
        state: &State,
        next: Option<&NewRoot>,
        version: Option<String>,
    ) -> Result<Secret, SecretError> {
        let broken = |error: serde_json::Error| SecretError::Damaged {
            object: self.object(),
            detail: error.to_string(),
        };
        let mut data =
            BTreeMap::from([(STATE.to_owned(), ByteString(serde_json::to_vec(state).map_err(broken)?))]);
        if let Some(next) = next {
            data.insert(NEXT.to_owned(), ByteString(serde_json::to_vec(next).map_err(broken)?));
        }
        Ok(Secret {
            metadata: ObjectMeta {
                name: Some(self.secret.clone()),
                resource_version: version,
                ..ObjectMeta::default()
            },
            type_: Some("culvert.dev/authority".to_owned()),
            data: Some(data),
            ..Secret::default()
        })
    }

    /// Makes the Secret, unless somebody has.
    pub(super) async fn create(&self, state: &State) -> Result<Written, SecretError> {
        let secret = self.secret(state, None, None)?;
        self.settled(within(self.secrets.create(&PostParams::default(), &secret)).await)
    }

    /// Replaces what `kept` was read as.
    pub(super) async fn replace(
        &self,
        state: &State,
        next: Option<&NewRoot>,
        kept: &Kept,
    ) -> Result<Written, SecretError> {
        let secret = self.secret(state, next, Some(kept.version.clone()))?;
        self.settled(within(self.secrets.replace(&self.secret, &PostParams::default(), &secret)).await)
    }

    fn settled(&self, written: Result<Secret, RequestError>) -> Result<Written, SecretError> {
        match written {
            Ok(_) => Ok(Written::Done),
            Err(error) if error.is_status(409) => Ok(Written::Conflict),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The bundle as everybody sees it; None if there is none that reads.
    pub(super) async fn published(&self) -> Result<Option<TrustBundle>, SecretError> {
        let found = within(self.config_maps.get_opt(&self.config_map)).await;
        let text = found.map_err(|error| self.about_bundle(error))?.and_then(|map| map.data?.remove(BUNDLE));
        Ok(text.and_then(|text| TrustBundle::from_pem(text.as_bytes()).ok()))
    }

    pub(super) async fn publish(&self, bundle: &TrustBundle) -> Result<(), SecretError> {
        let map = ConfigMap {
            metadata: ObjectMeta { name: Some(self.config_map.clone()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([(BUNDLE.to_owned(), bundle.pem())])),
            ..ConfigMap::default()
        };
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let applied = within(self.config_maps.patch(&self.config_map, &params, &Patch::Apply(&map))).await;
        applied.map(|_| ()).map_err(|error| self.about_bundle(error))
    }

    fn about_bundle(&self, error: RequestError) -> SecretError {
        SecretError::Request { object: format!("ConfigMap {}/{}", self.namespace, self.config_map), error }
    }

    /// Puts down the next root, for the authorities that run to take up.
    ///
    /// # Errors
    /// When there is no root yet, one is being replaced already, or the API server does not do it.
    pub async fn put_next_root(&self, now: SystemTime) -> Result<(), SecretError> {
        let object = self.object();
        let kept = self.read().await?.ok_or_else(|| SecretError::NoRootYet { object: object.clone() })?;
        let announced = kept.state.roots.iter().any(|root| root.phase() == RootPhase::Announced);
        if announced || kept.next.is_some() {
            return Err(SecretError::RotationUnderWay { object });
        }
        let next = NewRoot::generate(&kept.state.trust_domain, now)?;
        match self.replace(&kept.state, Some(&next), &kept).await? {
            Written::Done => Ok(()),
            Written::Conflict => Err(SecretError::RotationUnderWay { object }),
        }
    }
}
