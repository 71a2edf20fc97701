//! The life of one pod in the mesh, a function per state:
//!
//! ```text
//! unknown -> not_enrolled -> enrolling -> certifying -> enrolled -> leaving -> draining -> not_enrolled
//! ```
//!
//! What the controller wants may change at any time and in any state. A pod that was asked for is closed by rules before
//! anything else, and stays closed through every failure; each step is tried again until it works.

mod end;
mod upkeep;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::names::CONTROLLER_SERVICE_ACCOUNT;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::captured::{Captured, KnownPod, Node, StepError};
use super::kept::KeptCapture;
use super::parking::Rest;
use super::report::{Phase, PodReports};
use crate::state::GatewayListeners;
use crate::state::model::Workload;
use end::EndDrain;

/// How often rules are checked although nobody told of a change.
const CHECK: Duration = Duration::from_secs(2);
const RECOUNT: Duration = Duration::from_secs(5);
/// Changes of rules that follow each other within `STORM` are looked at this far apart only: a pod that may change its
/// rules must not keep the node busy.
const CALM: Duration = Duration::from_millis(50);
const STORM: Duration = Duration::from_secs(1);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// How long the first request for a certificate goes before all others.
const CERTIFICATE: Duration = Duration::from_secs(8);
/// After the last captured connection ended: its last packets may still be under way between application and proxy.
const LAST_PACKETS: Duration = Duration::from_millis(500);

const ENDING: &str = "captured connections are ending";

/// What an `Add` is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Undecided(Blocked),
    NotEnrolled,
    Enrolled,
}

/// Who or what keeps a pod from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocked {
    pub component: &'static str,
    pub message: String,
    pub remedy: &'static str,
}

/// What the controller says of a pod.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub workload: Arc<Workload>,
    /// The listeners to open in it, when it is a Gateway's.
    pub gateway: Option<Arc<GatewayListeners>>,
}

impl Wanted {
    /// Whether nothing else is wanted; quick for a workload that has not changed.
    pub fn is(&self, other: &Wanted) -> bool {
        self.gateway == other.gateway
            && (Arc::ptr_eq(&self.workload, &other.workload) || self.workload == other.workload)
    }
}

/// What there is of the pod already.
pub(super) enum Before {
    Nothing,
    /// From an earlier process.
    Kept(KeptCapture),
    /// From the process that this one takes over from.
    TakenOver(Box<Captured>),
}

/// One pod whose namespace is known.
pub(super) struct Life {
    node: Arc<Node>,
    known: Arc<KnownPod>,
    wanted: watch::Receiver<Option<Wanted>>,
    standing: watch::Sender<Standing>,
    reports: watch::Sender<PodReports>,
    certificates_changed: watch::Receiver<u64>,
    check: Interval,
    recount_at: Instant,
    rules_looked_at: Instant,
    /// When news of changed rules is heard again.
    calm_until: Instant,
    /// From an earlier process; taken when the pod is taken up again.
    kept: Option<KeptCapture>,
    captured: Option<Captured>,
    rest: Arc<Rest>,
}

enum State {
    Unknown,
    NotEnrolled,
    Enrolling,
    Certifying,
    Enrolled,
    Leaving,
    Draining,
}

/// What the controller wants of the pod.
enum Direction {
    Unknown,
    Out,
    In,
    Leaving,
}

enum Event {
    Wanted,
    Rules,
    Certificates,
    Check,
}

impl Life {
    pub fn new(
        node: Arc<Node>,
        known: Arc<KnownPod>,
        before: Before,
        wanted: watch::Receiver<Option<Wanted>>,
        standing: watch::Sender<Standing>,
        reports: watch::Sender<PodReports>,
    ) -> Self {
        let (kept, captured) = match before {
            Before::Nothing => (None, None),
            Before::Kept(kept) => (Some(kept), None),
            Before::TakenOver(captured) => (None, Some(*captured)),
        };
        let mut check = tokio::time::interval(CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            certificates_changed: node.certificates.changed(),
            recount_at: Instant::now() + RECOUNT,
            rules_looked_at: Instant::now(),
            calm_until: Instant::now(),
            check,
            captured,
            rest: Arc::default(),
            node,
            known,
            wanted,
            standing,
            reports,
            kept,
        }
    }

    /// Never ends; it is dropped when the pod is gone. What is in force in the namespace stays.
    pub async fn run(mut self) {
        let (node, rest) = (self.node.clone(), self.rest.clone());
        node.parking.until_retired(rest, self.live()).await;
        self.retired().await;
    }

    async fn live(&mut self) -> Infallible {
        let mut state = State::Unknown;
        loop {
            state = match state {
                State::Unknown => self.unknown().await,
                State::NotEnrolled => self.not_enrolled().await,
                State::Enrolling => self.enrolling().await,
                State::Certifying => self.certifying().await,
                State::Enrolled => self.enrolled().await,
                State::Leaving => self.leaving().await,
                State::Draining => self.draining().await,
            };
        }
    }

    /// The controller has not spoken of the pod. Rules of an earlier process keep it closed.
    async fn unknown(&mut self) -> State {
        self.stand(Standing::Undecided(unknown_to_the_controller()));
        loop {
            match self.direction() {
                Direction::Unknown => {
                    self.event().await;
                }
                Direction::In => return State::Enrolling,
                Direction::Out | Direction::Leaving if self.kept.is_none() && self.captured.is_none() => {
                    return State::NotEnrolled;
                }
                Direction::Leaving => return State::Enrolling,
                Direction::Out => match self.take_kept() {
                    Ok(()) => return State::Draining,
                    Err(error) => self.pause(0, &error).await,
                },
            }
        }
    }

    async fn not_enrolled(&mut self) -> State {
        if let Some(uid) = self.uid() {
            self.node.inheritance.forget(&uid);
        }
        self.stand(Standing::NotEnrolled);
        self.report(Phase::NotEnrolled, "");
        while !matches!(self.direction(), Direction::In) {
            self.event().await;
        }
        State::Enrolling
    }

    /// Rules, then listeners.
    async fn enrolling(&mut self) -> State {
        let mut failures = 0;
        loop {
            match self.direction() {
                Direction::Out if self.captured.is_some() => return State::Draining,
                Direction::Leaving if self.is_serving() => return State::Leaving,
                Direction::Out => return State::NotEnrolled,
                Direction::Leaving if self.captured.is_none() && self.kept.is_none() => {
                    return State::NotEnrolled;
                }
                Direction::Unknown | Direction::In | Direction::Leaving => {}
            }
            match self.take_up().await {
                Ok(()) if matches!(self.direction(), Direction::Leaving) => return State::Leaving,
                Ok(()) => return State::Certifying,
                Err(error) => {
                    failures += 1;
                    self.pause(failures, &error).await;
                }
            }
        }
    }

    /// The pod is closed and served; peers are told of it once its certificate is there.
    async fn certifying(&mut self) -> State {
        let urgent = self.ask_for_certificate();
        let mut urgent = std::pin::pin!(urgent);
        let mut asked = false;
        loop {
            match self.direction() {
                Direction::Out => return State::Draining,
                Direction::Leaving => return State::Leaving,
                Direction::Unknown | Direction::In => {}
            }
            match self.is_certified() {
                Ok(true) => return State::Enrolled,
                Ok(false) => self.report_certifying(),
                Err(error) => self.pause(1, &error).await,
            }
            tokio::select! {
                () = &mut urgent, if !asked => asked = true,
                event = self.event() => self.tend(event).await,
            }
        }
    }

    /// Jumps the queue of renewals once; after that the certificate is asked for at the CA's pace.
    fn ask_for_certificate(&self) -> impl Future<Output = ()> + use<> {
        let certificates = self.node.certificates.clone();
        let identity = self.workload().and_then(|workload| workload.identity.clone());
        async move {
            if let Some(identity) = identity {
                // What came of it is seen in the certificates.
                let _ = certificates.acquire(&identity, Instant::now() + CERTIFICATE).await;
            }
        }
    }

    /// Whether the certificate of the wanted identity is in force; then the pod counts as enrolled.
    fn is_certified(&mut self) -> Result<bool, StepError> {
        let (Some(workload), Some(captured)) = (self.workload(), &mut self.captured) else {
            return Ok(false);
        };
        captured.want_certificate(&workload)?;
        captured.update(&workload);
        if captured.certificate().is_none() {
            return Ok(false);
        }
        captured.set_enrolled().map(|()| true)
    }

    async fn enrolled(&mut self) -> State {
        self.stand(Standing::Enrolled);
        self.serve_gateway().await;
        let mut drain = EndDrain::default();
        loop {
            self.report(Phase::Enrolled, "");
            drain.follow(self.own());
            tokio::select! {
                event = self.event() => self.tend(event).await,
                uid = drain.over() => self.node.workers.cut_inbound(&uid).await,
            }
            match self.direction() {
                Direction::In | Direction::Unknown => {}
                Direction::Leaving => return State::Leaving,
                Direction::Out => return State::Draining,
            }
        }
    }

    /// Peers are being told; until they know, everything goes on as if enrolled.
    async fn leaving(&mut self) -> State {
        self.stand(Standing::Enrolled);
        loop {
            self.report(Phase::Leaving, "peers are being told to speak plaintext");
            let event = self.event().await;
            self.tend(event).await;
            match self.direction() {
                Direction::Leaving | Direction::Unknown => {}
                Direction::In => return State::Certifying,
                Direction::Out => return State::Draining,
            }
        }
    }

    /// New connections are not captured; captured ones end in peace, or at the drain deadline.
    async fn draining(&mut self) -> State {
        self.report(Phase::Leaving, ENDING);
        let mut failures = 0;
        loop {
            let Some(captured) = &mut self.captured else { return State::NotEnrolled };
            match captured.open().await {
                Ok(()) => break,
                Err(error) => {
                    failures += 1;
                    self.pause(failures, &error).await;
                }
            }
            if let Direction::In | Direction::Leaving = self.direction() {
                return State::Enrolling;
            }
        }
        // Listeners of a Gateway are closed now.
        self.report(Phase::Leaving, ENDING);
        self.stand(Standing::NotEnrolled);
        let (node, uid, drain) = (self.node.clone(), self.uid(), self.drain());
        let ended = async {
            if let Some(uid) = uid {
                // The rules are those of connections that the last process carries, too.
                let last_gone = tokio::time::timeout(drain, node.last_gone.cancelled());
                let _ = tokio::join!(node.workers.leave_pod(&uid), last_gone);
            }
            tokio::time::sleep(LAST_PACKETS).await;
        };
        let mut ended = std::pin::pin!(ended);
        loop {
            tokio::select! {
                () = &mut ended => break,
                event = self.event() => {
                    if let Direction::In | Direction::Leaving = self.direction() {
                        return State::Enrolling;
                    }
                    self.tend(event).await;
                }
            }
        }
        self.let_go().await
    }

    async fn let_go(&mut self) -> State {
        let mut failures = 0;
        while let Some(captured) = &mut self.captured {
            match captured.let_go().await {
                Ok(()) => self.captured = None,
                Err(error) => {
                    failures += 1;
                    self.pause(failures, &error).await;
                }
            }
        }
        State::NotEnrolled
    }

    /// Everything up to the certificate; what is done already is not done again.
    async fn take_up(&mut self) -> Result<(), StepError> {
        let Some((workload, own)) = self.own() else { return Ok(()) };
        let gateway = self.gateway();
        if self.captured.is_none() {
            let kept = self.kept.take();
            let made =
                Captured::new(self.node.clone(), self.known.clone(), workload.uid.clone(), kept.clone());
            self.captured = Some(made.inspect_err(|_| self.kept = kept)?);
        }
        // One that the last process had enrolled has been reported so already.
        if !self.captured.as_ref().is_some_and(|captured| captured.enrolled) {
            self.report(Phase::Waiting, "rules and listeners are being installed");
        }
        let Some(captured) = &mut self.captured else { return Ok(()) };
        captured.close(&own, gateway.as_deref()).await?;
        captured.count_uncaptured().await?;
        captured.listen(&workload).await?;
        // Before the certificate is waited for, because the CA may take its time.
        captured.want_certificate(&workload).map(drop)
    }

    /// For a pod that is to leave right after a restart.
    fn take_kept(&mut self) -> Result<(), StepError> {
        if let Some(kept) = self.kept.clone() {
            let uid = kept.uid();
            self.captured = Some(Captured::new(self.node.clone(), self.known.clone(), uid, Some(kept))?);
            self.kept = None;
        }
        Ok(())
    }
}

pub(super) fn unknown_to_the_controller() -> Blocked {
    Blocked {
        component: CONTROLLER_SERVICE_ACCOUNT,
        message: "the controller has not said whether the pod is enrolled".into(),
        remedy: "check that the controller is up and that this node's proxy is connected to it",
    }
}
