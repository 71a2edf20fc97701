//! What the Kubernetes API knows of a pod that is about to start.

use std::path::Path;
use std::time::Duration;

use culvert_objects::Object;
use kube::config::{KubeConfigOptions, Kubeconfig};
use thiserror::Error;

use crate::call::PodName;

/// For one answer of the API server, the connection included.
const ANSWER: Duration = Duration::from_secs(2);

/// Why the API server could not be asked.
#[derive(Debug, Error)]
pub enum ApiError {
    #[error("{0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    #[error("the API server: {0}")]
    Client(#[from] kube::Error),
    #[error("the API server did not answer within {} s", ANSWER.as_secs())]
    Silent,
    #[error("the API server: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
}

/// A client with the credentials that the node proxy keeps for the plugin.
pub struct Api(kube::Client);

impl Api {
    /// # Errors
    /// When the file is missing or makes no sense.
    pub async fn new(kubeconfig: &Path) -> Result<Self, ApiError> {
        let read = Kubeconfig::read_from(kubeconfig)?;
        let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        Ok(Self(kube::Client::try_from(config)?))
    }

    /// # Errors
    /// When the API server cannot be asked, as with all of these; None is its answer that there is no such object.
    pub async fn pod(&self, name: &PodName) -> Result<Option<Object>, ApiError> {
        self.get(&format!("/api/v1/namespaces/{}/pods/{}", name.namespace, name.name)).await
    }

    pub async fn namespace(&self, name: &str) -> Result<Option<Object>, ApiError> {
        self.get(&format!("/api/v1/namespaces/{name}")).await
    }

    /// Kept as JSON: a Node is no object of the mesh.
    pub async fn node(&self, name: &str) -> Result<Option<serde_json::Value>, ApiError> {
        self.get(&format!("/api/v1/nodes/{name}")).await
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<Option<T>, ApiError> {
        let request = http::Request::get(path).body(Vec::new())?;
        let answer = tokio::time::timeout(ANSWER, self.0.request_text(request)).await;
        match answer.map_err(|_| ApiError::Silent)? {
            Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
