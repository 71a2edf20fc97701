//! Which cluster, or which sandbox, a command is about.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args;
use culvert_kubernetes::client::{RequestError, within};
use culvert_kubernetes::listing::{self, Listing};
use culvert_kubernetes::{Client, Server, client};
use culvert_objects::{Kind, Objects};

use crate::sandbox::control::place::Place;

/// The sandbox that is meant when none is named.
const DEFAULT_SANDBOX: &str = "default";
const SANDBOX_VARIABLE: &str = "CULVERT_SANDBOX";

/// Which cluster.
#[derive(Args, Clone, Debug, Default)]
pub struct ClusterArgs {
    /// Kubeconfig of the cluster; unless given, as kubectl finds it.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; unless given, the current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

/// Which cluster, or which sandbox.
#[derive(Args, Clone, Debug, Default)]
pub struct TargetArgs {
    /// Ask this sandbox. Unless it or a cluster is named: the sandbox of the variable CULVERT_SANDBOX, else the one named
    /// `default` if it runs, else the cluster.
    #[arg(long, alias = "name", value_name = "NAME", conflicts_with_all = ["kubeconfig", "context"])]
    sandbox: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// What a command is about.
#[derive(Clone, Debug)]
pub enum Target {
    Sandbox(String),
    Cluster(ClusterArgs),
}

impl TargetArgs {
    /// Decides.
    #[must_use]
    pub fn target(&self) -> Target {
        let by_variable = std::env::var(SANDBOX_VARIABLE).ok().filter(|name| !name.is_empty());
        let runs = || Place::of(DEFAULT_SANDBOX).is_ok_and(|place| place.connect().is_ok());
        self.choose(by_variable, runs)
    }

    fn choose(&self, by_variable: Option<String>, default_runs: impl FnOnce() -> bool) -> Target {
        let cluster = || Target::Cluster(self.cluster.clone());
        match &self.sandbox {
            Some(name) => Target::Sandbox(name.clone()),
            None if self.cluster.is_named() => cluster(),
            None => match by_variable {
                Some(name) => Target::Sandbox(name),
                None if default_runs() => Target::Sandbox(DEFAULT_SANDBOX.to_owned()),
                None => cluster(),
            },
        }
    }
}

/// A cluster whose API server has answered.
#[derive(Clone)]
pub struct Cluster {
    pub client: Client,
    /// URL of the API server.
    pub url: String,
    /// Its `gitVersion`.
    pub version: String,
}

impl ClusterArgs {
    fn is_named(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    /// Connects, and has the API server tell its version.
    ///
    /// # Errors
    /// When there is no kubeconfig, it makes no sense, or the API server does not answer; with the remedy.
    pub async fn connect(&self) -> anyhow::Result<Cluster> {
        let server = Server::User { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() };
        let config = client::config(&server).await?;
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = client::of_config(config)?;
        let about = || {
            format!(
                "the API server {url} does not answer; see that it runs, and that --kubeconfig and --context name the \
                 cluster you mean (kubectl cluster-info)"
            )
        };
        let version = within(client.apiserver_version()).await.with_context(about)?.git_version;
        Ok(Cluster { client, url, version })
    }

    /// As [`ClusterArgs::connect`], for who was not told which cluster.
    ///
    /// # Errors
    /// As that, with the word that there is no sandbox either.
    pub async fn connect_or_say(&self) -> anyhow::Result<Cluster> {
        let connected = self.connect().await;
        if self.is_named() {
            return connected;
        }
        connected.context(
            "no sandbox is named, none named `default` runs (culvert sandbox up), and there is no cluster",
        )
    }
}

impl Cluster {
    /// All objects of these kinds; of those that live in a namespace, that one's alone, if there is one.
    ///
    /// # Errors
    /// When one of them may not be listed: names it, and what the API server says.
    pub async fn objects(&self, kinds: &[Kind], namespace: Option<&str>) -> anyhow::Result<Objects> {
        let Listing { objects, unlisted } =
            listing::list(&self.client, kinds, namespace).await.map_err(refused)?;
        match unlisted.into_iter().next() {
            Some((kind, error)) => {
                Err(refused(error).context(format!("{kind}: its objects cannot be listed")))
            }
            None => Ok(objects),
        }
    }
}

/// An answer of the API server with the remedy, where there is one.
#[must_use]
pub fn refused(error: RequestError) -> anyhow::Error {
    let remedy = match &error {
        error if error.is_status(403) => {
            "; ask who administers the cluster for that right, or name another --context"
        }
        error if error.is_status(401) => {
            "; the user of the kubeconfig is not known there: log in again, or name another --context"
        }
        _ => "",
    };
    anyhow!("{error}{remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(sandbox: Option<&str>, context: Option<&str>, variable: Option<&str>, runs: bool) -> String {
        let cluster = ClusterArgs { kubeconfig: None, context: context.map(str::to_owned) };
        let arguments = TargetArgs { sandbox: sandbox.map(str::to_owned), cluster };
        match arguments.choose(variable.map(str::to_owned), || runs) {
            Target::Sandbox(name) => format!("sandbox {name}"),
            Target::Cluster(_) => "cluster".to_owned(),
        }
    }

    #[test]
    fn what_is_named_is_meant_then_a_sandbox_that_runs_then_the_cluster() {
        assert_eq!(chosen(Some("a"), None, Some("b"), true), "sandbox a");
        assert_eq!(chosen(None, Some("kind"), Some("b"), true), "cluster");
        assert_eq!(chosen(None, None, Some("b"), true), "sandbox b");
        assert_eq!(chosen(None, None, None, true), "sandbox default");
        assert_eq!(chosen(None, None, None, false), "cluster");
    }
}
