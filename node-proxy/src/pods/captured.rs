//! What the node proxy holds for one captured pod, and the single steps of taking it up and letting it go.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use culvert_api::enrolment::PodRef;
use culvert_identity::Identity;
use thiserror::Error;

use super::Pod;
use super::established::{Connection, open_connections};
use super::gateway::GatewayPorts;
use super::kept::{KeptCapture, KeptPods};
use crate::identity::{CertificateLease, Certificates};
use crate::intercept::rules::{
    Entry, Exclusions, Firewall, FirewallKind, RuleError, RulePlan, Rules, Verified,
};
use crate::intercept::{Netns, listeners};
use crate::limits::WorkloadLimits;
use crate::state::model::{Interception, OwnWorkload, Workload, WorkloadUid};
use crate::state::{GatewayListeners, Snapshots};
use crate::telemetry::{Outcome, Telemetry};
use crate::worker::{WorkerError, Workers};

/// What all pods share.
pub(super) struct Node {
    pub snapshots: Snapshots,
    pub certificates: Certificates,
    pub workers: Workers,
    pub telemetry: Telemetry,
    pub firewall: Arc<Firewall>,
    pub kept: KeptPods,
}

/// A pod whose namespace was handed over.
pub(super) struct KnownPod {
    pub pod: PodRef,
    pub netns: Arc<Netns>,
    pub addresses: Vec<IpAddr>,
}

/// Why a step failed; it is tried again.
#[derive(Debug, Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Rules(#[from] RuleError),
    #[error("cannot enter the pod's namespace: {0}")]
    Enter(io::Error),
    #[error("listeners: {0}")]
    Listeners(io::Error),
    #[error("workers: {0}")]
    Workers(#[from] WorkerError),
    #[error("the list of pods cannot be written: {0}")]
    Kept(io::Error),
    #[error("the controller sent the pod without an identity")]
    NoIdentity,
}

/// One captured pod, or one about to be.
pub(super) struct Captured {
    node: Arc<Node>,
    known: Arc<KnownPod>,
    uid: WorkloadUid,
    interception: Interception,
    rules: Rules,
    /// None before its listeners are served.
    pod: Option<Arc<Pod>>,
    /// Of the identity in force, and of the one it changes to.
    lease: Option<(Identity, CertificateLease)>,
    next_lease: Option<(Identity, CertificateLease)>,
    uncaptured: HashSet<Connection>,
    /// The pod was reported as enrolled, by this process or the last one.
    pub enrolled: bool,
    /// Rules of another firewall program may be left from the last process.
    left_over: Option<FirewallKind>,
    /// Connections that were open before enrolment have been looked for.
    counted: bool,
    /// In a pod of a Gateway.
    ports: GatewayPorts,
}

impl Captured {
    /// Changes nothing yet. `kept` is what an earlier process had in force.
    pub fn new(
        node: Arc<Node>,
        known: Arc<KnownPod>,
        uid: WorkloadUid,
        kept: Option<KeptCapture>,
    ) -> Result<Self, StepError> {
        let rules = Rules::new(node.firewall.clone(), known.netns.clone()).map_err(StepError::Enter)?;
        // Marks and ports of connections that are open cannot change: those of the enrolment stay.
        let interception =
            kept.as_ref().map_or_else(|| node.snapshots.load().mesh().interception, |kept| kept.interception);
        let kind = node.firewall.kind();
        Ok(Self {
            rules,
            uid,
            interception,
            pod: None,
            ports: GatewayPorts::default(),
            lease: None,
            next_lease: None,
            left_over: kept.as_ref().map(|kept| kept.firewall).filter(|left| *left != kind),
            enrolled: kept.as_ref().is_some_and(|kept| kept.enrolled),
            counted: kept.as_ref().is_some_and(|kept| kept.enrolled),
            uncaptured: kept.map(|kept| kept.uncaptured).unwrap_or_default(),
            node,
            known,
        })
    }

    /// First step: from now on nothing passes the pod uncaptured. Also puts changed settings in force, and lets clients
    /// reach the listeners of a Gateway in its pod. Written down before it is done, so that a restart in between takes it
    /// up.
    pub async fn close(
        &mut self,
        own: &OwnWorkload,
        gateway: Option<&GatewayListeners>,
    ) -> Result<(), StepError> {
        self.keep()?;
        let plan = RulePlan::capturing(self.interception, &own.settings, self.ports.steered(gateway));
        if self.rules.plan() != Some(&plan) {
            self.rules.apply(&plan).await?;
        }
        if let Some(left) = self.left_over {
            self.remove_left_over(left).await;
            self.left_over = None;
        }
        Ok(())
    }

    /// Between rules and listeners: what is open now was open before.
    pub async fn count_uncaptured(&mut self) -> Result<(), StepError> {
        if self.counted {
            return self.recount().await;
        }
        self.uncaptured = self.look_for_connections().await.map_err(StepError::Enter)?;
        self.counted = true;
        self.keep()
    }

    /// Second step: the pod's traffic is served.
    pub async fn listen(&mut self, workload: &Arc<Workload>) -> Result<(), StepError> {
        if self.pod.is_some() {
            return Ok(());
        }
        let own = workload.own.as_deref().ok_or(StepError::NoIdentity)?;
        let listeners = listeners(&self.known.netns, &self.interception).map_err(StepError::Listeners)?;
        let pod = Arc::new(Pod {
            uid: self.uid.clone(),
            netns: self.known.netns.clone(),
            addresses: self.known.addresses.clone(),
            interception: self.interception,
            workload: ArcSwap::new(workload.clone()),
            limits: WorkloadLimits::new(own.settings.limits),
        });
        self.node.workers.add_pod(pod.clone(), listeners).await?;
        self.pod = Some(pod);
        Ok(())
    }

    /// Third step: has the certificate requested. It is in force when [`Captured::certificate`] says so.
    pub fn want_certificate(&mut self, workload: &Workload) -> Result<Identity, StepError> {
        let identity = workload.identity.clone().ok_or(StepError::NoIdentity)?;
        if self.lease.as_ref().is_none_or(|(held, _)| *held != identity) {
            self.lease = Some((identity.clone(), self.node.certificates.keep(&identity)));
        }
        Ok(identity)
    }

    /// Last step.
    pub fn set_enrolled(&mut self) -> Result<(), StepError> {
        self.enrolled = true;
        self.keep()
    }

    /// Puts a new version of the workload in force for the data path. A new identity waits for its certificate; the
    /// rest of the workload does not.
    pub fn update(&mut self, workload: &Arc<Workload>) {
        let Some(pod) = &self.pod else { return };
        if let Some(own) = &workload.own {
            pod.limits.update(own.settings.limits);
        }
        let current = self.lease.as_ref().map(|(identity, _)| identity.clone());
        if workload.identity == current || workload.identity.is_none() {
            self.next_lease = None;
        } else if let Some(next) = &workload.identity {
            let wanted = self.next_lease.as_ref().is_some_and(|(identity, _)| identity == next);
            if !wanted {
                self.next_lease = Some((next.clone(), self.node.certificates.keep(next)));
            }
            if self.node.certificates.current(next).is_some() {
                self.lease = self.next_lease.take();
            }
        }
        let identity = self.lease.as_ref().map(|(identity, _)| identity.clone());
        let workload = if workload.identity == identity || identity.is_none() {
            workload.clone()
        } else {
            Arc::new(Workload { identity, ..Workload::clone(workload) })
        };
        if *pod.workload.load_full() != *workload {
            pod.workload.store(workload);
        }
    }

    /// Opens and closes ports of a Gateway as its listeners come and go; the rules follow. Nothing is opened before there
    /// is a certificate to reach backends with.
    pub async fn serve_gateway(
        &mut self,
        own: &OwnWorkload,
        gateway: Option<&GatewayListeners>,
    ) -> Result<(), StepError> {
        if self.pod.is_some() && self.certificate().is_some() {
            self.ports.open(gateway, &self.node.workers, &self.uid, &self.known.netns).await;
        }
        self.close(own, gateway).await?;
        self.ports.close_others(gateway);
        Ok(())
    }

    /// What became of the listeners that are wanted: why one is not open.
    pub fn listeners(&self, gateway: Option<&GatewayListeners>) -> BTreeMap<Arc<str>, Option<String>> {
        let steered: &[u16] = match self.rules.plan().map(|plan| &plan.entry) {
            Some(Entry::Open(exclusions)) => &exclusions.gateway_ports,
            _ => &[],
        };
        self.ports.states(gateway, steered)
    }

    /// Why there is no certificate yet, if the CA said so.
    pub fn certificate_problem(&self) -> Option<Arc<str>> {
        let (identity, _) = self.lease.as_ref()?;
        let statuses = self.node.certificates.statuses();
        statuses.into_iter().find(|status| status.identity == *identity).and_then(|status| status.last_error)
    }

    /// The certificate in force, if there is one.
    pub fn certificate(&self) -> Option<Arc<crate::identity::ActiveCertificate>> {
        let (identity, _) = self.lease.as_ref()?;
        self.node.certificates.current(identity)
    }

    /// Leaving: new connections are not captured any more. Peers know, so there is no enrolment left to defend.
    pub async fn open(&mut self) -> Result<(), StepError> {
        self.enrolled = false;
        self.keep()?;
        let plan = RulePlan::leaving(self.interception);
        if self.rules.plan() != Some(&plan) {
            self.rules.apply(&plan).await?;
        }
        self.ports.close_others(None);
        Ok(())
    }

    /// Ends the leaving: listeners, rules, and what was written down go.
    pub async fn let_go(&mut self) -> Result<(), StepError> {
        self.ports.close_others(None);
        if self.pod.take().is_some() {
            self.node.workers.remove_pod(&self.uid).await;
        }
        self.rules.remove(&RulePlan::leaving(self.interception)).await?;
        self.lease = None;
        self.next_lease = None;
        self.node.kept.set_capture(&self.known.pod.uid, None).map_err(StepError::Kept)
    }

    /// Checks the rules and repairs them.
    pub async fn verify(&mut self) {
        match self.rules.verify().await {
            Ok(Verified::Intact) => {}
            Ok(Verified::Repaired) => {
                self.node.telemetry.rules_repaired(Outcome::Success);
                tracing::warn!(workload = %self.uid, "interception rules were missing or changed and are in force again");
            }
            Err(error) => {
                self.node.telemetry.rules_repaired(Outcome::Failure);
                tracing::error!(workload = %self.uid, %error, "interception rules could not be checked or repaired");
            }
        }
    }

    /// As [`Rules::changed`].
    pub async fn rules_changed(&self) {
        self.rules.changed().await;
    }

    /// Forgets the old connections that have ended.
    pub async fn recount(&mut self) -> Result<(), StepError> {
        if self.uncaptured.is_empty() {
            return Ok(());
        }
        let open = self.look_for_connections().await.map_err(StepError::Enter)?;
        let before = self.uncaptured.len();
        self.uncaptured.retain(|connection| open.contains(connection));
        if self.uncaptured.len() == before { Ok(()) } else { self.keep() }
    }

    /// Its listeners are served.
    pub fn is_serving(&self) -> bool {
        self.pod.is_some()
    }

    /// Connections opened before enrolment and still open.
    pub fn uncaptured(&self) -> u32 {
        u32::try_from(self.uncaptured.len()).unwrap_or(u32::MAX)
    }

    async fn look_for_connections(&self) -> io::Result<HashSet<Connection>> {
        let exclusions = match self.rules.plan().map(|plan| &plan.entry) {
            Some(Entry::Open(exclusions)) => exclusions.clone(),
            _ => Exclusions::none(),
        };
        let netns = self.known.netns.clone();
        // A pod may have very many.
        let look = tokio::task::spawn_blocking(move || open_connections(&netns, &exclusions));
        look.await.map_err(io::Error::other)?
    }

    async fn remove_left_over(&self, left: FirewallKind) {
        // Two sets of the same rules do no harm, and without the program they cannot be removed.
        let removed = match Firewall::detect(left.into()) {
            Ok(firewall) => self.rules.remove_those_of(&firewall).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = removed {
            tracing::warn!(workload = %self.uid, error, "rules of the firewall program used before are left");
        }
    }

    fn keep(&self) -> Result<(), StepError> {
        let capture = KeptCapture {
            workload: self.uid.to_string(),
            interception: self.interception,
            firewall: self.node.firewall.kind(),
            enrolled: self.enrolled,
            uncaptured: self.uncaptured.clone(),
        };
        self.node.kept.set_capture(&self.known.pod.uid, Some(capture)).map_err(StepError::Kept)
    }
}
