//! The process: flags, how its parts are put together, and how it ends.

mod admin_port;
mod tasks;
mod upgrade;

use std::convert::Infallible;
use std::fs::DirBuilder;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use culvert_cni::install::{Directories, UnknownNamespaces};
use culvert_identity::admin::{AdminServer, Check, Readiness};
use culvert_identity::grpc::TokenFile;
use culvert_identity::logging::LogControl;
use culvert_identity::token::Claims;
use culvert_identity::{BundleError, TrustBundle, TrustDomain, bundle, process};
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::admin::AdminSources;
use crate::handover::{self, Charge, Giver, Heirs, Predecessor};
use crate::identity::Certificates;
use crate::intercept::rules::FirewallChoice;
use crate::pods::{Phase, PodReports};
use crate::state::{ControlStatus, Origin, Resources, Snapshot, Snapshots, kept};
use crate::telemetry::{AccessLog, Telemetry};
use crate::worker::{Shared, Workers};
use admin_port::AdminPort;
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
    /// Seconds that a process that is told to end goes on as before, so that another one can take over from it: give them where
    /// another one is started at once
    #[arg(long, default_value_t = 0)]
    pub await_successor: u64,
    /// Which process of its node this is: /healthz/ready?instance=NAME is answered by this one only [default: the process id]
    #[arg(long, env = "CULVERT_INSTANCE")]
    pub instance: Option<String>,
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

    let started = start(&flags, log);
    let Started { mut process, parts, serving } = tokio::select! {
        signal = &mut terminated => {
            info!(signal, "ending before anything was served");
            return Ok(());
        }
        started = started => started?,
    };
    serving.ready();
    info!(version = env!("CARGO_PKG_VERSION"), "node proxy is up");
    let drain = Duration::from_secs(flags.drain);
    let (ended, deadline) = tokio::select! {
        signal = &mut terminated => {
            let deadline = Instant::now() + drain;
            info!(signal, drain_seconds = flags.drain, "told to end");
            process.wait_for_heir(&parts, Duration::from_secs(flags.await_successor), deadline).await;
            (Ok(()), deadline)
        }
        part = process.part_ended() => {
            (Err(anyhow::anyhow!("{part} has ended by itself")), Instant::now() + drain)
        }
    };
    serving.missing("draining");
    process.end(&parts.charge, deadline).await;
    parts.close_log().await;
    ended
}

struct Started {
    process: Process,
    parts: Parts,
    serving: Check,
}

/// Everything up to serving; takes over from another process if there is one.
async fn start(flags: &Flags, log: LogControl) -> anyhow::Result<Started> {
    let predecessor = handover::find(&handover::socket_path(&flags.enrolment_socket)).await;
    let readiness = Readiness::default();
    let serving = readiness.check("serving");
    let parts = Parts::new(predecessor.as_ref().map_or_else(Charge::held, |_| Charge::awaited()))?;
    let instance = flags.instance.clone().unwrap_or_else(|| std::process::id().to_string());
    let admin = AdminPort::new(flags.admin, parts.admin_sources(), readiness.clone(), instance, log);
    match admin.open() {
        Err(error) if predecessor.is_some() && error.kind() == io::ErrorKind::AddrInUse => {
            info!(address = %flags.admin, "the admin port is the last node proxy's until that one hands over");
        }
        opened => opened?,
    }
    let announcing = announce(predecessor.clone(), parts.charge.clone());
    let process = tokio::select! {
        process = Process::start(flags, &parts, &readiness, &admin, predecessor) => process?,
        never = announcing => match never {},
    };
    Ok(Started { process, parts, serving })
}

/// Until this process is in charge.
async fn announce(predecessor: Option<Predecessor>, charge: Charge) -> Infallible {
    if let Some(predecessor) = predecessor {
        tokio::select! {
            never = predecessor.announce() => match never {},
            () = charge.begun() => {}
        }
    }
    std::future::pending().await
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
    charge: Charge,
}

impl Parts {
    fn new(charge: Charge) -> io::Result<Self> {
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
            charge,
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
    heirs: Heirs,
    /// Held as long as the process runs, as the check is.
    _admin: Arc<Mutex<Option<AdminServer>>>,
    _in_charge: Check,
}

impl Process {
    async fn start(
        flags: &Flags,
        parts: &Parts,
        readiness: &Readiness,
        admin: &AdminPort,
        predecessor: Option<Predecessor>,
    ) -> anyhow::Result<Self> {
        let in_charge = readiness.check("hand-over");
        let state = readiness.check("state");
        let bundle = trust_bundle(&flags.trust_bundle, &state).await;
        let resources = restore(&flags.state_dir, &parts.snapshots);
        let mut tasks = Tasks::new();
        let token = TokenFile::new(&flags.token);
        let node = known_node(&resources, &token);

        let newest = tasks.control(flags, parts, &token, &bundle, resources)?;
        tasks.certificates(flags, parts, &token, &bundle)?;
        tasks.spawn("telemetry", parts.telemetry.clone().run_sweeps(tasks.cancel.child_token()));

        let node = match node {
            Some(node) => node,
            None => complete_state(&parts.snapshots, &state).await.node().clone(),
        };
        let shared = Shared {
            snapshots: parts.snapshots.clone(),
            certificates: parts.certificates.clone(),
            telemetry: parts.telemetry.clone(),
            node: node.clone(),
            charge: parts.charge.clone(),
        };
        let workers = Workers::start(flags.workers.unwrap_or_else(default_workers), Arc::new(shared))?;
        // Set once, here; nobody else has it.
        let _ = parts.workers.set(workers.clone());
        let begin = upgrade::start(predecessor, flags, parts, &workers, admin, (&in_charge, &state)).await?;
        admin.go_on(begin.admin).await?;
        parts.charge.take();
        in_charge.ready();

        tasks.keepers(flags, parts, newest);
        if flags.install_cni {
            tasks.cni(flags, &node, readiness.check("cni"));
        }
        let heirs = Heirs::default();
        let giver = Giver {
            charge: parts.charge.clone(),
            heirs: heirs.clone(),
            certificates: parts.certificates.clone(),
            workers: workers.clone(),
            manager: begin.manager.orders(),
            admin: admin.server(),
            upkeep: tasks.upkeep.clone(),
        };
        tasks.pods(parts, begin.manager, readiness.check("enrolment"));
        tasks.hand_over(giver, hand_over_socket(flags, begin.hand_over)?);
        tasks.say_when_complete(parts.snapshots.clone(), state);
        Ok(Self { workers, tasks, heirs, _admin: admin.server(), _in_charge: in_charge })
    }

    /// Who is about to take over, or comes within `patience`, gets the time for it: until then everything goes on. Without a
    /// pod that is captured nobody's connections would wait for them.
    async fn wait_for_heir(&self, parts: &Parts, patience: Duration, deadline: Instant) {
        let mut reports = parts.reports.clone();
        let none_captured = async {
            let captured = |reports: &PodReports| reports.values().any(|pod| pod.phase != Phase::NotEnrolled);
            let _ = reports.wait_for(|reports| !captured(reports)).await;
        };
        let settled = async {
            tokio::select! {
                () = self.heirs.gone(patience, none_captured) => {}
                () = parts.charge.given_up() => {}
            }
        };
        let _ = tokio::time::timeout_at(deadline, settled).await;
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
    /// the next process, unless that one has taken over already.
    async fn end(mut self, charge: &Charge, deadline: Instant) {
        // Otherwise what follows the controller for open connections goes on as long as they do.
        if !charge.is_given_up() {
            self.tasks.first.cancel();
        }
        self.workers.drain(deadline).await;
        self.tasks.cancel.cancel();
        let all = async { while self.tasks.set.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_WRITES, all).await.is_err() {
            warn!("some parts did not end in time; what they had not written is lost");
        }
        info!("ended");
    }
}

/// The last process's, with whoever waits in it, or a new one.
fn hand_over_socket(flags: &Flags, inherited: Option<OwnedFd>) -> anyhow::Result<OwnedFd> {
    let bound = inherited.map_or_else(|| handover::listen(&flags.enrolment_socket), Ok);
    bound.with_context(|| format!("hand-over socket beside {}", flags.enrolment_socket.display()))
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
