//! The supervisor: process 1 of the sandbox. Sets everything up, answers requests, and ends it all.

pub mod log_file;
pub mod process;
mod zombies;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::cluster::Cluster;
use super::components::{Binaries, Components, Settings};
use super::control::{Served, Server};
use super::files::Files;
use super::kube_proxy::ServiceRules;
use super::kubelet::{Context, Kubelet};
use super::namespaces::private;
use super::network::Network;
use super::store::{Store, StoreConfig};
use super::tokens::Tokens;
use super::{dns, kube_proxy, wanted};

/// How a sandbox is to be; from `up` to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperviseArguments {
    pub name: String,
    pub nodes: u8,
    /// Where the mesh's programs are; beside this one without it.
    pub bin_dir: Option<PathBuf>,
    /// The mesh's; that of the components without it.
    pub trust_domain: Option<String>,
    /// Log filter of supervisor and components.
    pub log: Option<String>,
    /// More arguments for every process of a program.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What containers and components are given when the whole sandbox ends.
const END_GRACE: Duration = Duration::from_secs(2);

/// Hard limit on open descriptors.
const DESCRIPTORS: u64 = 1 << 20;

/// Runs the supervisor. Must be called before the process has threads; stdin is the listening control socket.
///
/// # Errors
/// A text for the user that says which step failed.
pub fn run(arguments: &SuperviseArguments) -> Result<(), String> {
    let listener = take_listener()?;
    allow_descriptors();
    private::enter(&format!("culvert-{}", arguments.name))?;
    tracing_subscriber::fmt()
        .with_env_filter(arguments.log.clone().unwrap_or_else(|| "info".to_owned()))
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    let result = runtime.block_on(supervise(arguments, listener));
    // Threads that wait for a node proxy's answer must not keep the sandbox alive.
    runtime.shutdown_background();
    result
}

/// Lets the sandbox's processes have as many descriptors as on a node of a cluster, where this user may do so; each
/// raises its own soft limit when it wants them.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.map(|maximum| maximum.max(DESCRIPTORS));
    // An ordinary user may not: then there are as many connections as the limit allows.
    let _ = setrlimit(Resource::Nofile, Rlimit { maximum, ..limit });
}

/// The socket came as stdin because that needs no unsafe code; nothing else may read it.
fn take_listener() -> Result<std::os::unix::net::UnixListener, String> {
    let take = || {
        let socket: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned()?;
        nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    take().map_err(|error: std::io::Error| format!("the control socket: {error}"))
}

async fn supervise(
    arguments: &SuperviseArguments,
    listener: std::os::unix::net::UnixListener,
) -> Result<(), String> {
    let listener = UnixListener::from_std(listener).map_err(step("listen"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(step("watch signals"))?;
    let background = CancellationToken::new();
    tokio::spawn(zombies::reap());
    let served = Arc::new(set_up(arguments, &background).await?);
    info!(sandbox = %served.cluster.name, nodes = served.cluster.nodes.len(), "up");
    let server = tokio::spawn(Server::new(Arc::clone(&served)).run(listener));
    tokio::select! {
        () = served.end.cancelled() => {}
        _ = terminate.recv() => {}
    }
    info!("ending");
    tokio::join!(served.kubelet.shut_down(END_GRACE), async {
        let _ = tokio::time::timeout(END_GRACE, served.components.stop()).await;
    });
    background.cancel();
    served.ended.cancel();
    // The answer to the request that ended it must get out.
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.abort();
    Ok(())
}

/// Everything that a sandbox consists of, in the order in which one needs the other.
async fn set_up(arguments: &SuperviseArguments, background: &CancellationToken) -> Result<Served, String> {
    let cluster = Arc::new(Cluster::new(&arguments.name, arguments.nodes));
    let binaries = Binaries::locate(arguments.bin_dir.as_deref()).map_err(step("find the programs"))?;
    binaries.check().map_err(|missing| missing.to_string())?;
    make_directories(&cluster).map_err(step("make the sandbox's directories"))?;
    let network = Arc::new(Network::build(&cluster).await.map_err(step("lay the network"))?);
    let store = Store::new(&cluster);
    let tokens = Tokens::new(&cluster).map_err(step("make the key of the tokens"))?;
    tokens.write(&store.objects()).map_err(step("write tokens"))?;
    tokio::spawn(tokens.run(store.clone(), background.clone()));
    let config = StoreConfig { objects: Files.objects(), statuses: Files.statuses() };
    tokio::spawn({
        let (store, background) = (store.clone(), background.clone());
        async move {
            if let Err(error) = store.run(config, background).await {
                error!(%error, "the objects are not written: CA and controller see nothing of them");
            }
        }
    });
    let dns = dns::Sockets::bind(&cluster).map_err(step("start DNS"))?;
    tokio::spawn(dns::serve(dns, store.clone(), background.clone()));
    let service_rules = ServiceRules::default();
    tokio::spawn(service_rules.clone().run(store.clone(), Arc::clone(&cluster), background.clone()));
    let ways = (store.clone(), Arc::clone(&cluster), Arc::clone(&network), background.clone());
    tokio::spawn(kube_proxy::outside::run(ways.0, ways.1, ways.2, ways.3));
    let made = wanted::run(store.clone(), Arc::clone(&cluster), Files.wanted(), background.clone());
    tokio::spawn(made);
    let mut settings =
        Settings { log: arguments.log.clone(), extra: arguments.extra.clone(), ..Settings::default() };
    if let Some(trust_domain) = &arguments.trust_domain {
        settings.trust_domain.clone_from(trust_domain);
    }
    let components =
        Components::start(&cluster, &binaries, &settings).map_err(|missing| missing.to_string())?;
    let context = Context {
        cluster: Arc::clone(&cluster),
        store: store.clone(),
        network: Arc::clone(&network),
        binaries: Arc::new(binaries),
        ending: CancellationToken::new(),
    };
    let kubelet = Kubelet::new(context);
    tokio::spawn({
        let kubelet = kubelet.clone();
        async move { kubelet.run().await }
    });
    Ok(Served {
        cluster,
        store,
        network,
        kubelet,
        components,
        service_rules,
        end: CancellationToken::new(),
        ended: CancellationToken::new(),
    })
}

fn make_directories(cluster: &Cluster) -> std::io::Result<()> {
    let mut directories = vec![Files.objects(), Files.statuses(), Files.wanted(), Files.ca_data()];
    directories.extend(Files.trust_bundle().parent().map(ToOwned::to_owned));
    directories.extend(Files.token_keys().parent().map(ToOwned::to_owned));
    directories.extend(cluster.nodes.iter().map(|node| Files.node_state(&node.name)));
    directories.iter().try_for_each(std::fs::create_dir_all)
}

fn step<E: Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("cannot {what}: {error}")
}
