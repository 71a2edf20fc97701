//! The connection to the API server.

use std::path::{Path, PathBuf};
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
    /// As `kubectl` finds it: the file that is named, else those of `KUBECONFIG`, else `~/.kube/config`, else as told to a pod; the
    /// context that is named, else the current one.
    User { kubeconfig: Option<PathBuf>, context: Option<String> },
}

/// Why there is no connection to be had. Whether the server answers is found out later.
#[derive(Debug, Error)]
pub enum ConnectError {
    #[error("{path}: {error}")]
    Kubeconfig { path: PathBuf, error: KubeconfigError },
    #[error("this process is not in a pod with a service account ({0}); give it --kubeconfig")]
    InCluster(InClusterError),
    #[error("no kubeconfig: {0} does not exist; name one with --kubeconfig or in KUBECONFIG, as for kubectl")]
    NoKubeconfig(String),
    #[error("{of}: {}; `kubectl config get-contexts` lists what there is", describe(.error))]
    User { of: String, error: KubeconfigError },
    #[error("API server: {0}")]
    Client(kube::Error),
}

/// A client; connected on first use and again after a failure.
///
/// # Errors
/// When the configuration cannot be read or makes no sense.
pub async fn connect(server: &Server) -> Result<Client, ConnectError> {
    of_config(config(server).await?)
}

/// As [`connect`], with what [`config`] has found.
///
/// # Errors
/// When it makes no sense.
pub fn of_config(config: Config) -> Result<Client, ConnectError> {
    Client::try_from(config).map_err(ConnectError::Client)
}

/// Where the API server is, and how it is called.
///
/// # Errors
/// When that cannot be read.
pub async fn config(server: &Server) -> Result<Config, ConnectError> {
    let mut config = match server {
        Server::InCluster => Config::incluster().map_err(ConnectError::InCluster)?,
        Server::Kubeconfig(path) => {
            let about = |error| ConnectError::Kubeconfig { path: path.clone(), error };
            let file = Kubeconfig::read_from(path).map_err(about)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(about)?
        }
        Server::User { kubeconfig, context } => of_user(kubeconfig.as_deref(), context.as_deref()).await?,
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    config.write_timeout = Some(WRITE);
    Ok(config)
}

async fn of_user(path: Option<&Path>, context: Option<&str>) -> Result<Config, ConnectError> {
    let listed = std::env::var("KUBECONFIG").ok().filter(|paths| !paths.is_empty());
    let of = match (path, &listed) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(paths)) => paths.clone(),
        (None, None) => "~/.kube/config".to_owned(),
    };
    let read = match path {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let file = match read {
        Ok(file) => file,
        Err(error) if is_missing(&error) => {
            // A pod has no kubeconfig, and needs none.
            let own = if path.is_none() && listed.is_none() { Config::incluster().ok() } else { None };
            return own.ok_or(ConnectError::NoKubeconfig(of));
        }
        Err(error) => return Err(ConnectError::User { of, error }),
    };
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(file, &options).await.map_err(|error| ConnectError::User { of, error })
}

/// Whether the file is not there, rather than wrong.
fn is_missing(error: &KubeconfigError) -> bool {
    match error {
        KubeconfigError::FindPath => true,
        KubeconfigError::ReadConfig(error, _) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
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
