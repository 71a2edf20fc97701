//! `culvert-controller uninstall`: takes the mesh away before its objects are deleted, in an order in which no connection
//! between pods fails for it: pods are let go while everything still runs, then node proxies end, nodes are cleaned, and
//! what the programs made themselves is deleted. The chart runs it as a hook.

mod nodes;
mod workloads;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use culvert_api::names::{
    CA_SERVICE_ACCOUNT, CONTROLLER_SERVICE_ACCOUNT, NODE_PROXY_SERVICE_ACCOUNT, SYSTEM_NAMESPACE,
};
use culvert_kubernetes::client::{self, RequestError};
use culvert_kubernetes::{Client, Server};
use tokio::time::{Instant, sleep};

/// Looks at what is waited for.
const LOOK: Duration = Duration::from_secs(1);
/// For peers to be told, and rules to go.
const RELEASE: Duration = Duration::from_secs(60);
/// For pods to end, beyond what their connections are given.
const END: Duration = Duration::from_secs(30);
/// For the cleaning of all nodes that are up.
const CLEAN: Duration = Duration::from_secs(90);
/// The chart's DaemonSet that cleans nodes.
const CLEANUP: &str = "culvert-cleanup";

/// Flags of `culvert-controller uninstall`.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// The API server and the user of a kubeconfig file, instead of those of the pod that the process runs in.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// How long connections of pods that were let go may take to end, in seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(0..=120))]
    pub drain: u16,
}

/// Returns when nothing but the objects of the chart is left.
///
/// # Errors
/// When the API server refuses something. What does not come to an end in time is said in the log and left.
pub async fn run(flags: &Flags) -> anyhow::Result<()> {
    let server = flags.kubeconfig.clone().map_or(Server::InCluster, Server::Kubeconfig);
    let client = client::connect(&server).await.context("API server")?;

    let released = nodes::release(&client).await.context("releasing the nodes")?;
    if !until(RELEASE, async || nodes::all_let_go(&client).await).await {
        tracing::warn!("some pods were not let go in time; their connections through the mesh will fail");
    }
    let drain = Duration::from_secs(flags.drain.into());
    workloads::delete_daemon_set(&client, NODE_PROXY_SERVICE_ACCOUNT, "node-proxy", drain)
        .await
        .context("ending the node proxies")?;
    let uncleaned = clean(&client).await.context("cleaning the nodes")?;
    for (name, component) in [(CONTROLLER_SERVICE_ACCOUNT, "controller"), (CA_SERVICE_ACCOUNT, "ca")] {
        workloads::delete_deployment(&client, name, component)
            .await
            .with_context(|| format!("ending {name}"))?;
    }
    workloads::delete_what_programs_made(&client).await.context("objects that the programs made")?;
    nodes::forget(&client, &released).await.context("labels of the nodes")?;
    if uncleaned.is_empty() {
        workloads::delete_cleanup(&client, CLEANUP).await.context("the DaemonSet that cleans")?;
    } else {
        tracing::warn!(
            nodes = uncleaned.join(", "),
            "these nodes are not cleaned of CNI configuration, rules and kept state: the DaemonSet {CLEANUP} is left and cleans \
             them when they come back. When its pods there are ready: kubectl -n {SYSTEM_NAMESPACE} delete daemonset {CLEANUP}"
        );
    }
    tracing::info!("the mesh is taken away");
    Ok(())
}

/// The nodes that are not clean in the end; waits for those that are ready.
async fn clean(client: &Client) -> Result<Vec<String>, RequestError> {
    let done = until(CLEAN, async || {
        let cleaning = workloads::cleaning(client, CLEANUP).await?;
        let ready = nodes::ready(client).await?;
        Ok(cleaning.is_none_or(|cleaning| cleaning.done >= cleaning.all.min(ready)))
    });
    if !done.await {
        tracing::warn!("not all nodes were cleaned in time");
    }
    match workloads::cleaning(client, CLEANUP).await? {
        Some(cleaning) if cleaning.done < cleaning.all => workloads::uncleaned(client).await,
        _ => Ok(Vec::new()),
    }
}

/// Whether it came true in time. An API server that does not answer is asked again.
async fn until(within: Duration, look: impl AsyncFn() -> Result<bool, RequestError>) -> bool {
    let deadline = Instant::now() + within;
    loop {
        match look().await {
            Ok(true) => return true,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "asking again"),
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(LOOK).await;
    }
}
