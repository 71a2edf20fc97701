//! The pods of this node: who they are (from the enrolment socket), what is wanted of them (from the controller's
//! snapshot), and one [`Life`] for each.

mod missing;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::enrolment::{PodRef, Reply, Request};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::captured::{KnownPod, Node};
use super::ending::Endings;
use super::kept::{KeptCapture, KeptPod, KeptPods};
use super::life::{Blocked, Life, Standing, Wanted, unknown_to_the_controller};
use super::report::{Phase, PodReport, PodReports};
use super::search::{Places, Search};
use super::server::{self, Asked};
use super::wanted::wanted_of;
use crate::identity::Certificates;
use crate::intercept::rules::{Firewall, FirewallChoice, FirewallError};
use crate::intercept::{Netns, NetnsId};
use crate::state::Snapshots;
use crate::telemetry::Telemetry;
use crate::worker::Workers;

/// Requests that may wait for the manager.
const REQUESTS: usize = 256;
/// How long an `Add` waits for the pod to be enrolled before it is told to ask again.
const ENROLMENT: Duration = Duration::from_millis(9_500);
/// How often it is checked that the pods' namespaces are still there.
const SWEEP: Duration = Duration::from_secs(2);
/// Longest pod uid; Kubernetes' are 36 characters.
const LONGEST_UID: usize = 253;

/// How the manager is set up.
#[derive(Clone, Debug)]
pub struct ManagerSettings {
    pub enrolment_socket: PathBuf,
    pub state_dir: PathBuf,
    pub firewall: FirewallChoice,
    /// Where pods that nobody hands over are looked for.
    pub places: Places,
}

/// Why the manager cannot work at all.
#[derive(Debug, Error)]
pub enum ManagerError {
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    #[error("the list of pods in {path} cannot be used: {error}")]
    State { path: PathBuf, error: io::Error },
    #[error("the enrolment socket {path} cannot be served: {error}")]
    Socket { path: PathBuf, error: io::Error },
}

/// Runs on the control runtime.
pub struct Manager {
    socket: PathBuf,
    node: Arc<Node>,
    /// The proxy's own namespace, which is nobody's pod.
    home: NetnsId,
    reports: watch::Sender<PodReports>,
    pods: HashMap<String, Managed>,
    search: Search,
    endings: Endings,
    /// Answers and ends under way.
    answers: JoinSet<()>,
}

struct Managed {
    kept: KeptPod,
    wanted: watch::Sender<Option<Wanted>>,
    standing: watch::Receiver<Standing>,
    life: AbortOnDropHandle<()>,
}

impl Manager {
    /// Reads what the last process kept; touches no namespace yet. Call it on the control runtime.
    ///
    /// # Errors
    /// When there is no program to load rules with, or the state directory cannot be used.
    pub fn new(
        settings: ManagerSettings,
        snapshots: Snapshots,
        certificates: Certificates,
        workers: Workers,
        telemetry: Telemetry,
    ) -> Result<Self, ManagerError> {
        let firewall = Arc::new(Firewall::detect(settings.firewall)?);
        let state = |error| ManagerError::State { path: settings.state_dir.clone(), error };
        let kept = KeptPods::load(&settings.state_dir).map_err(state)?;
        let home = Netns::home().map_err(state)?.id();
        tracing::info!(firewall = ?firewall.kind(), "interception rules are loaded with this program");
        let node = Arc::new(Node { snapshots, certificates, workers, telemetry, firewall, kept });
        Ok(Self {
            socket: settings.enrolment_socket,
            node,
            home,
            reports: watch::Sender::new(PodReports::new()),
            pods: HashMap::new(),
            search: Search::start(settings.places, home),
            endings: Endings::default(),
            answers: JoinSet::new(),
        })
    }

    /// The enrolment of every pod. Its first change means that the pods of the last process were looked for.
    pub fn reports(&self) -> watch::Receiver<PodReports> {
        self.reports.subscribe()
    }

    /// Serves until cancelled. Rules stay in force in the pods: they are closed until the next process comes.
    ///
    /// # Errors
    /// When the enrolment socket cannot be made.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), ManagerError> {
        let failed = |path: &PathBuf| {
            let path = path.clone();
            move |error| ManagerError::Socket { path, error }
        };
        self.restore();
        self.follow();
        // Also when there is nothing to say: it ends the wait for the pods of the last process.
        self.reports.send_modify(|_| ());

        let socket = server::bind(&self.socket).map_err(failed(&self.socket))?;
        let (requests, mut asked) = mpsc::channel(REQUESTS);
        let served = server::serve(socket, requests, cancel.child_token());
        let mut served = std::pin::pin!(served);
        let mut changed = self.node.snapshots.changed();
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                result = &mut served => return result.map_err(failed(&self.socket)),
                Some(asked) = asked.recv() => self.answer(asked).await,
                Ok(()) = changed.changed() => self.follow(),
                _ = sweep.tick() => self.sweep().await,
                results = self.search.next() => {
                    for (sought, outcome) in results {
                        self.found(sought, outcome).await;
                    }
                }
                Some(_) = self.answers.join_next() => {}
            }
        }
    }

    /// Opens the namespaces that the last process knew. Those that were reported as enrolled stay so: they are closed,
    /// and become open to their peers again without being spoken to in plaintext in between.
    fn restore(&mut self) {
        for kept in self.node.kept.all() {
            let found = Netns::id_at(&kept.netns_path).and_then(|id| match id {
                Some(id) if id == kept.netns => Netns::open(&kept.netns_path).map(Some),
                _ => Ok(None),
            });
            match found {
                Ok(Some(netns)) => {
                    if let Some(capture) = kept.capture.as_ref().filter(|capture| capture.enrolled) {
                        let report = enrolled_before(capture);
                        self.reports.send_modify(|all| drop(all.insert(capture.uid(), report)));
                    }
                    self.start(kept, netns);
                }
                Ok(None) => {
                    tracing::info!(pod = kept.pod.uid, "a pod is gone since the node proxy last ran");
                    log_kept(self.node.kept.remove(&kept.pod.uid));
                }
                // Kept, and tried again by the next process: forgetting it would leave the pod closed for good.
                Err(error) => tracing::error!(
                    pod = kept.pod.uid, path = %kept.netns_path.display(), %error,
                    "a pod's network namespace cannot be opened again; the pod stays closed"
                ),
            }
        }
    }

    fn start(&mut self, kept: KeptPod, netns: Netns) {
        let known = Arc::new(KnownPod {
            pod: kept.pod.clone(),
            netns: Arc::new(netns),
            addresses: kept.addresses.clone(),
        });
        let first = wanted_of(&self.node.snapshots.load(), &kept);
        let (wanted, wants) = watch::channel(first);
        let (stands, standing) = watch::channel(Standing::Undecided(unknown_to_the_controller()));
        let life =
            Life::new(self.node.clone(), known, kept.capture.clone(), wants, stands, self.reports.clone());
        let life = AbortOnDropHandle::new(tokio::spawn(life.run()));
        self.pods.insert(kept.pod.uid.clone(), Managed { kept, wanted, standing, life });
    }

    /// Tells every pod what the controller wants of it now. A pod that the snapshot does not name goes on as it was.
    fn follow(&mut self) {
        let snapshot = self.node.snapshots.load_full();
        if !snapshot.is_complete() {
            return;
        }
        for managed in self.pods.values() {
            let Some(new) = wanted_of(&snapshot, &managed.kept) else { continue };
            managed.wanted.send_if_modified(|wanted| {
                let same = wanted.as_ref().is_some_and(|wanted| wanted.is(&new));
                if !same {
                    *wanted = Some(new);
                }
                !same
            });
        }
        self.report_missing(&snapshot);
    }

    async fn answer(&mut self, asked: Asked) {
        let Asked { request, netns, reply } = asked;
        match request {
            Request::Add { pod, netns_path, addresses } => {
                match self.add(pod, netns_path, addresses, netns).await {
                    Ok(standing) => drop(self.answers.spawn(answer_when_decided(standing, reply))),
                    Err(answer) => drop(reply.send(answer)),
                }
            }
            Request::Remove { pod } => {
                self.remove(&pod.uid, "removed by its creator").await;
                let over = self.endings.over(&pod.uid);
                self.answers.spawn(async move {
                    over.await;
                    let _ = reply.send(Reply::Removed);
                });
            }
        }
    }

    async fn add(
        &mut self,
        pod: PodRef,
        netns_path: PathBuf,
        addresses: Vec<std::net::IpAddr>,
        netns: Option<OwnedFd>,
    ) -> Result<watch::Receiver<Standing>, Reply> {
        let invalid = |message: String| Reply::Invalid { message };
        if pod.uid.is_empty() || pod.uid.len() > LONGEST_UID || pod.uid.contains('/') {
            return Err(invalid("the pod's uid is empty or not one".into()));
        }
        if let Some(wait) = self.endings.hinders(&pod.uid) {
            return Err(wait);
        }
        let netns =
            netns.ok_or_else(|| invalid("add needs the descriptor of the pod's network namespace".into()))?;
        let netns = Netns::from_fd(netns).map_err(|error| {
            invalid(format!("the descriptor is not a network namespace that can be entered: {error}"))
        })?;
        let id = netns.id();
        if id == self.home {
            return Err(invalid("this is the node proxy's own network namespace".into()));
        }
        if !matches!(Netns::id_at(&netns_path), Ok(Some(found)) if found == id) {
            let path = netns_path.display();
            return Err(invalid(format!("{path} does not lead to the namespace that came along")));
        }
        if let Some(other) =
            self.pods.values().find(|other| other.kept.netns == id && other.kept.pod.uid != pod.uid)
        {
            return Err(invalid(format!("the namespace belongs to pod {}", other.kept.pod.uid)));
        }
        if let Some(managed) = self.pods.get(&pod.uid) {
            if managed.kept.netns == id && managed.kept.addresses == addresses && !managed.life.is_finished()
            {
                return Ok(managed.standing.clone());
            }
            self.remove(&pod.uid, "replaced by another network namespace of the same pod").await;
            if let Some(wait) = self.endings.hinders(&pod.uid) {
                return Err(wait);
            }
        }
        let kept = KeptPod { pod, netns_path, netns: id, addresses, capture: None };
        log_kept(self.node.kept.insert(kept.clone()));
        let uid = kept.pod.uid.clone();
        self.start(kept, netns);
        self.pods.get(&uid).map(|managed| managed.standing.clone()).ok_or(Reply::Removed)
    }

    /// Forgets a pod. Its rules are left in force: what still runs in the namespace must not speak past the mesh. A pod of a
    /// Gateway takes no more requests, and those under way may end.
    async fn remove(&mut self, pod_uid: &str, why: &str) {
        let Some(managed) = self.pods.remove(pod_uid) else { return };
        managed.life.abort();
        // Its end is waited for, so that it cannot take the pod up again.
        let _ = managed.life.await;
        let is_gateway =
            managed.wanted.borrow().as_ref().is_some_and(|wanted| wanted.workload.gateway.is_some());
        let uid = {
            let wanted = managed.wanted.borrow();
            wanted.as_ref().map(|wanted| wanted.workload.uid.clone())
        };
        if let Some(uid) = uid.or_else(|| managed.kept.capture.as_ref().map(KeptCapture::uid)) {
            if is_gateway {
                let ending = self.endings.begin(pod_uid, self.node.workers.clone(), uid);
                self.answers.spawn(ending);
            } else {
                self.node.workers.remove_pod(&uid).await;
            }
        }
        log_kept(self.node.kept.remove(pod_uid));
        self.reports.send_if_modified(|all| {
            let before = all.len();
            all.retain(|uid, _| uid.pod_uid() != pod_uid);
            all.len() != before
        });
        tracing::info!(pod = pod_uid, why, "a pod is forgotten");
    }

    /// Pods whose namespace went away without a word.
    async fn sweep(&mut self) {
        let is_gone = |managed: &Managed| matches!(Netns::id_at(&managed.kept.netns_path), Ok(found) if found != Some(managed.kept.netns));
        let gone: Vec<String> =
            self.pods.iter().filter(|(_, managed)| is_gone(managed)).map(|(uid, _)| uid.clone()).collect();
        for uid in &gone {
            self.remove(uid, "its network namespace is gone").await;
        }
        if !gone.is_empty() {
            // Perhaps only the process has ended by which it was known.
            self.follow();
        }
        self.endings.forget_those_over();
    }
}

async fn answer_when_decided(mut standing: watch::Receiver<Standing>, reply: oneshot::Sender<Reply>) {
    let decided = standing.wait_for(|standing| !matches!(standing, Standing::Undecided(_)));
    let outcome =
        tokio::time::timeout(ENROLMENT, decided).await.map(|decided| decided.map(|decided| decided.clone()));
    let answer = match outcome {
        Ok(Ok(Standing::Enrolled)) => Reply::Enrolled,
        Ok(Ok(Standing::NotEnrolled)) => Reply::NotEnrolled,
        // The pod was removed or replaced meanwhile.
        Ok(Err(_)) => Reply::Invalid { message: "the pod was removed".into() },
        Ok(Ok(Standing::Undecided(_))) | Err(_) => match &*standing.borrow() {
            Standing::Undecided(Blocked { component, message, remedy }) => Reply::Wait {
                component: (*component).into(),
                message: message.clone(),
                remedy: (*remedy).into(),
            },
            Standing::Enrolled => Reply::Enrolled,
            Standing::NotEnrolled => Reply::NotEnrolled,
        },
    };
    // The client may have gone away.
    let _ = reply.send(answer);
}

fn enrolled_before(capture: &KeptCapture) -> PodReport {
    PodReport {
        phase: Phase::Enrolled,
        message: "found again after a restart of the node proxy".into(),
        uncaptured_connections: u32::try_from(capture.uncaptured.len()).unwrap_or(u32::MAX),
        identity: None,
        certificate_not_after: None,
        listeners: BTreeMap::new(),
    }
}

/// What cannot be written down now is lost with this process only: until then nothing is missing.
fn log_kept(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::error!(%error, "the list of pods cannot be written; a restart would not find all of them");
    }
}
