//! The process: flags, how its parts are put together, and how it ends.

mod tasks;

use std::fs::DirBuilder;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use culvert_cni::install::{Directories, UnknownNamespaces};
use culvert_identity::admin::{Check, Readiness};
use culvert_identity::grpc::TokenFile;
use culvert_identity::logging::LogControl;
use culvert_identity::token::Claims;
use culvert_identity::{BundleError, TrustBundle, TrustDomain, bundle, process};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::admin::{self, AdminSources};
use crate::identity::Certificates;
use crate::intercept::rules::FirewallChoice;
use crate::pods::PodReports;
use crate::state::{ControlStatus, Origin, Resources, Snapshot, Snapshots, kept};
use crate::telemetry::{AccessLog, Telemetry};
use crate::worker::{Shared, Workers};
use tasks::Tasks;

/// How long one look for the trust bundle lasts before a warning says that it is missing.
const BUNDLE_PATIENCE: Duration = Duration::from_secs(15);
/// Workers by default, at most.
const WORKERS: usize = 4;
/// From the end of the drain: what the control tasks may take to put on disk what is not there yet.
const LAST_WRITES: Duration = Duration::from_secs(3);

/// Flags of `culvert-node-proxy run`.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// URL of the controller, https://HOST:PORT
    #[arg(long)]
    pub controller: String,
    /// URL of the CA, https://HOST:PORT
    #[arg(long)]
    pub ca: String,
    /// File with this node proxy's service account token; read anew for each use
    #[arg(long)]
    pub token: PathBuf,
    /// File with the roots that controller, CA and peers are trusted by, PEM; read again when it changes
    #[arg(long)]
    pub trust_bundle: PathBuf,
    /// Trust domain of controller and CA
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: TrustDomain,
    /// Directory for what must survive a restart; made if missing, readable by the owner only
    #[arg(long)]
    pub state_dir: PathBuf,
    /// Unix socket that pods' network namespaces are handed over by
    #[arg(long)]
    pub enrolment_socket: PathBuf,
    /// Proc file system that shows the processes of the node's pods: those that nobody handed over are looked for there
    #[arg(long, default_value = "/proc")]
    pub proc_dir: PathBuf,
    /// Directory in which the container runtime binds the network namespaces that it makes
    #[arg(long, default_value = "/var/run/netns")]
    pub netns_dir: PathBuf,
    /// Address of health checks, metrics, configuration and log filter
    #[arg(long, default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// Threads of the data path [default: as many as there are processors, at most 4]
    #[arg(long)]
    pub workers: Option<usize>,
    /// Program that interception rules are loaded with
    #[arg(long, value_enum, default_value_t)]
    pub firewall: FirewallChoice,
    /// Install the CNI plugin in the directories below and keep it in place
    #[arg(long)]
    pub install_cni: bool,
    #[command(flatten)]
    pub cni: Directories,
    /// The host's path of --cni-conf-dir, where that is another
    #[arg(long)]
    pub cni_host_conf_dir: Option<PathBuf>,
    /// What happens to pods of namespaces of which nothing is known, while neither this process nor the API server answers
    #[arg(long, value_enum, default_value_t)]
    pub cni_unknown_namespaces: UnknownNamespaces,
    /// Seconds that open connections may take to end when the process is told to end
    #[arg(long, default_value_t = 25)]
    pub drain: u64,
}

/// Runs until the process is told to end; then drains.
///
/// # Errors
/// When something it cannot do without is missing at the start, or a part of it ends by itself.
pub async fn run(flags: Flags, log: LogControl) -> anyhow::Result<()> {
    let terminated = process::terminated()?;
    tokio::pin!(terminated);
    raise_descriptor_limit();
    make_directory(&flags.state_dir)
        .with_context(|| format!("state directory {}", flags.state_dir.display()))?;

    let readiness = Readiness::default();
    let serving = readiness.check("serving");
    let parts = Parts::new()?;
    let _admin = admin::start(flags.admin, parts.admin_sources(), readiness.clone(), log)?;

    let mut process = tokio::select! {
        signal = &mut terminated => {
            info!(signal, "ending before anything was served");
            return Ok(());
        }
        started = Process::start(&flags, &parts, &readiness) => started?,
    };
    serving.ready();
    info!(version = env!("CARGO_PKG_VERSION"), "node proxy is up");
    let ended = tokio::select! {
        signal = &mut terminated => {
            info!(signal, drain_seconds = flags.drain, "draining");
            Ok(())
        }
        part = process.part_ended() => Err(anyhow::anyhow!("{part} has ended by itself")),
    };
    serving.missing("draining");
    process.end(Duration::from_secs(flags.drain)).await;
    parts.close_log().await;
    ended
}

/// What exists before anything runs and is shared by all parts.
struct Parts {
    snapshots: Snapshots,
    telemetry: Telemetry,
    certificates: Certificates,
    control: ControlStatus,
    pods: watch::Sender<PodReports>,
    /// As it was made: its first change is the first report.
    reports: watch::Receiver<PodReports>,
    workers: Arc<OnceLock<Workers>>,
    log: AccessLog,
}

impl Parts {
    fn new() -> io::Result<Self> {
        let snapshots = Snapshots::new(Snapshot::empty());
        let log = AccessLog::to_stdout()?;
        let telemetry = Telemetry::new(snapshots.clone(), log.clone());
        let (pods, reports) = watch::channel(PodReports::new());
        let parts = Self {
            snapshots,
            telemetry,
            certificates: Certificates::new(),
            control: ControlStatus::default(),
            pods,
            reports,
            workers: Arc::new(OnceLock::new()),
            log,
        };
        parts.telemetry.attach(parts.certificates.clone(), parts.reports.clone(), parts.control.clone());
        Ok(parts)
    }

    fn admin_sources(&self) -> AdminSources {
        AdminSources {
            snapshots: self.snapshots.clone(),
            certificates: self.certificates.clone(),
            pods: self.reports.clone(),
            control: self.control.clone(),
            telemetry: self.telemetry.clone(),
            workers: self.workers.clone(),
        }
    }

    /// Puts what was logged on its way before the process ends.
    async fn close_log(&self) {
        let log = self.log.clone();
        let _ = tokio::task::spawn_blocking(move || log.flush(LAST_WRITES)).await;
    }
}

/// What runs.
struct Process {
    workers: Workers,
    tasks: Tasks,
}

impl Process {
    async fn start(flags: &Flags, parts: &Parts, readiness: &Readiness) -> anyhow::Result<Self> {
        let state = readiness.check("state");
        let bundle = trust_bundle(&flags.trust_bundle, &state).await;
        let resources = restore(&flags.state_dir, &parts.snapshots);
        let mut tasks = Tasks::new();
        let token = TokenFile::new(&flags.token);
        let node = known_node(&resources, &token);

        tasks.control(flags, parts, &token, &bundle, resources)?;
        tasks.certificates(flags, parts, &token, &bundle)?;
        tasks.spawn("telemetry", parts.telemetry.clone().run_sweeps(tasks.cancel.child_token()));

        let node = match node {
            Some(node) => node,
            None => complete_state(&parts.snapshots, &state).await.node().clone(),
        };
        if flags.install_cni {
            tasks.cni(flags, &node, readiness.check("cni"));
        }
        let shared = Shared {
            snapshots: parts.snapshots.clone(),
            certificates: parts.certificates.clone(),
            telemetry: parts.telemetry.clone(),
            node,
        };
        let workers = Workers::start(flags.workers.unwrap_or_else(default_workers), Arc::new(shared))?;
        // Set once, here; nobody else has it.
        let _ = parts.workers.set(workers.clone());
        tasks.pods(flags, parts, &workers, readiness.check("enrolment"))?;
        tasks.say_when_complete(parts.snapshots.clone(), state);
        Ok(Self { workers, tasks })
    }

    /// The name of a part that ended although nobody told it to.
    async fn part_ended(&mut self) -> String {
        match self.tasks.set.join_next().await {
            Some(Ok(name)) => name.to_owned(),
            Some(Err(error)) => format!("a part of the process ({error})"),
            None => "everything".to_owned(),
        }
    }

    /// Takes in no new pods, lets connections end, then ends the rest. Interception rules stay: pods fail closed until
    /// the next process.
    async fn end(mut self, drain: Duration) {
        self.tasks.first.cancel();
        self.workers.drain(Instant::now() + drain).await;
        self.tasks.cancel.cancel();
        let all = async { while self.tasks.set.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_WRITES, all).await.is_err() {
            warn!("some parts did not end in time; what they had not written is lost");
        }
        info!("ended");
    }
}

/// Waits for the file; without it neither controller nor CA can be trusted.
async fn trust_bundle(path: &Path, state: &Check) -> watch::Receiver<Arc<TrustBundle>> {
    state.missing(format!("no trust bundle yet in {}", path.display()));
    loop {
        match bundle::watch_file(path, BUNDLE_PATIENCE).await {
            Ok(bundle) => return bundle,
            Err(error) => {
                let error: BundleError = error;
                warn!(%error, "waiting for the trust bundle; the CA writes it when it starts");
                state.missing(format!("no trust bundle: {error}"));
            }
        }
    }
}

/// Puts what an earlier process kept in force, marked stale.
fn restore(directory: &Path, snapshots: &Snapshots) -> Resources {
    let kept = match kept::load(directory) {
        Ok(Some(kept)) => kept,
        Ok(None) => return Resources::default(),
        Err(error) => {
            warn!(
                %error,
                "the kept state is not used: nothing is served before the controller sends a whole one; \
                 the file is replaced then"
            );
            return Resources::default();
        }
    };
    let mut resources = Resources::restore(&kept);
    if let Some((snapshot, _)) = resources.freeze(Origin::Kept, &kept.version) {
        info!(
            version = kept.version,
            workloads = snapshot.workload_count(),
            "kept state in force until a controller confirms it"
        );
        snapshots.publish(snapshot);
    }
    resources
}

/// Waits for the first complete state.
async fn complete_state(snapshots: &Snapshots, state: &Check) -> Arc<Snapshot> {
    let mut changed = snapshots.changed();
    loop {
        let snapshot = snapshots.load_full();
        if snapshot.is_complete() {
            return snapshot;
        }
        state.missing("no complete state yet: the controller has not sent one, and none was kept");
        if changed.changed().await.is_err() {
            // The sender is part of `snapshots`.
            std::future::pending::<()>().await;
        }
    }
}

/// The node that the kept state was sent to, else the one that the token names (its signature is the controller's to
/// check: the controller's word replaces this one, or ends the stream). `None` when neither says.
fn known_node(resources: &Resources, token: &TokenFile) -> Option<Arc<str>> {
    if !resources.node().is_empty() {
        return Some(resources.node().into());
    }
    let token = token.read().ok()?;
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    claims.kubernetes.node.map(|node| node.name.into())
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS)
}

/// Three descriptors per proxied connection add up: the soft limit goes to the hard one.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, current = limit.current, "the limit on open descriptors stays as it is");
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
