//! The connection to the API server.

use std::path::PathBuf;
use std::time::Duration;

use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use thiserror::Error;

const CONNECT: Duration = Duration::from_secs(5);
/// A connection on which nothing came for so long is dead. Longer than a watch may be silent.
const SILENCE: Duration = Duration::from_secs(200);
const WRITE: Duration = Duration::from_secs(30);
/// For one request that is not a watch.
pub const REQUEST: Duration = Duration::from_secs(10);

/// Where the API server is and who calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// As told to a pod: environment and mounted service account.
    InCluster,
    /// The current context of a kubeconfig file.
    Kubeconfig(PathBuf),
}

/// Why there is no connection to be had. Whether the server answers is found out later.
#[derive(Debug, Error)]
pub enum ConnectError {
    #[error("{path}: {error}")]
    Kubeconfig { path: PathBuf, error: KubeconfigError },
    #[error("this process is not in a pod with a service account ({0}); give it --kubeconfig")]
    InCluster(InClusterError),
    #[error("API server: {0}")]
    Client(kube::Error),
}

/// A client; connected on first use and again after a failure.
///
/// # Errors
/// When the configuration cannot be read or makes no sense.
pub async fn connect(server: &Server) -> Result<Client, ConnectError> {
    let mut config = match server {
        Server::InCluster => Config::incluster().map_err(ConnectError::InCluster)?,
        Server::Kubeconfig(path) => {
            let about = |error| ConnectError::Kubeconfig { path: path.clone(), error };
            let file = Kubeconfig::read_from(path).map_err(about)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(about)?
        }
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    config.write_timeout = Some(WRITE);
    Client::try_from(config).map_err(ConnectError::Client)
}

/// Whether the server answered with this HTTP status.
pub fn is_status(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// An error with its causes, on one line.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// The answer to a request that is not a watch.
///
/// # Errors
/// The server's, or that it took too long.
pub async fn within<T>(answer: impl Future<Output = kube::Result<T>>) -> Result<T, RequestError> {
    match tokio::time::timeout(REQUEST, answer).await {
        Ok(answer) => answer.map_err(|error| RequestError::Server(Box::new(error))),
        Err(_) => Err(RequestError::Deadline),
    }
}

/// Why a request failed.
#[derive(Debug, Error)]
pub enum RequestError {
    #[error("{}", describe(.0.as_ref()))]
    Server(Box<kube::Error>),
    #[error("no answer within {REQUEST:?}")]
    Deadline,
}

impl RequestError {
    /// Whether the server answered with this HTTP status.
    pub fn is_status(&self, code: u16) -> bool {
        matches!(self, Self::Server(error) if is_status(error, code))
    }

    /// Whether the server refused for good what was asked, rather than being away or busy.
    pub fn is_refusal(&self) -> bool {
        const REFUSALS: [u16; 9] = [400, 403, 404, 405, 409, 410, 413, 415, 422];
        REFUSALS.iter().any(|code| self.is_status(*code))
    }
}
