//! What goes on beside the states: events, upkeep of what is in force, and saying how it stands.

use std::sync::Arc;
use std::time::Duration;

use culvert_api::names::{CA_SERVICE_ACCOUNT, NODE_PROXY_SERVICE_ACCOUNT};
use tokio::time::Instant;

use super::end::EndDrain;
use super::{Blocked, CALM, Direction, Event, FIRST_RETRY, LONGEST_RETRY, Life, RECOUNT, STORM, Standing};
use crate::identity::backoff;
use crate::pods::captured::{Captured, KnownPod, StepError};
use crate::pods::kept::KeptCapture;
use crate::pods::report::{Phase, PodReport};
use crate::state::GatewayListeners;
use crate::state::model::{Enrolment, OwnWorkload, Workload, WorkloadUid};
use crate::worker::DEFAULT_DRAIN;

impl Life {
    pub(super) async fn event(&mut self) -> Event {
        let _resting = self.rest.take();
        let rules = async {
            match &self.captured {
                Some(captured) => {
                    tokio::time::sleep_until(self.calm_until).await;
                    captured.rules_changed().await;
                }
                None => std::future::pending().await,
            }
        };
        let wanted = async {
            if self.wanted.changed().await.is_err() {
                std::future::pending().await
            }
        };
        let certificates = async {
            if self.certificates_changed.changed().await.is_err() {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = rules => Event::Rules,
            () = wanted => Event::Wanted,
            () = certificates => Event::Certificates,
            _ = self.check.tick() => Event::Check,
        }
    }

    /// Keeps a captured pod in order: its rules, its settings, its count of old connections.
    pub(super) async fn tend(&mut self, event: Event) {
        let Some(captured) = &mut self.captured else { return };
        match event {
            Event::Wanted | Event::Certificates => {}
            Event::Rules => {
                let now = Instant::now();
                self.calm_until = if now < self.rules_looked_at + STORM { now + CALM } else { now };
                self.rules_looked_at = now;
                captured.verify().await;
            }
            Event::Check => {
                captured.verify().await;
                if Instant::now() >= self.recount_at {
                    self.recount_at = Instant::now() + RECOUNT;
                    note(&self.known, captured.recount().await);
                }
            }
        }
        if let Some((workload, _)) = self.wanted_in() {
            if let Some(captured) = &mut self.captured {
                captured.update(&workload);
            }
            self.serve_gateway().await;
        }
    }

    /// Another process looks after the pod. The connections that this one carries for it are still subject to what is wanted.
    pub(super) async fn retired(&mut self) {
        let mut drain = EndDrain::default();
        loop {
            if let (Some((workload, _)), Some(captured)) = (self.wanted_in(), &mut self.captured) {
                captured.update(&workload);
            }
            drain.follow(self.own());
            tokio::select! {
                Ok(()) = self.wanted.changed() => {}
                Ok(()) = self.certificates_changed.changed() => {}
                uid = drain.over() => self.node.workers.cut_inbound(&uid).await,
                else => std::future::pending::<()>().await,
            }
        }
    }

    /// The workload's drain deadline.
    pub(super) fn drain(&self) -> Duration {
        self.own().map_or(DEFAULT_DRAIN, |(_, own)| own.settings.timeouts.drain)
    }

    /// Brings rules and ports of a Gateway in line with what is wanted of a captured pod.
    pub(super) async fn serve_gateway(&mut self) {
        let gateway = self.gateway();
        if let (Some((_, own)), Some(captured)) = (self.wanted_in(), &mut self.captured) {
            note(&self.known, captured.serve_gateway(&own, gateway.as_deref()).await);
        }
    }

    /// As [`Life::own`], unless the pod shall not be captured.
    fn wanted_in(&self) -> Option<(Arc<Workload>, Arc<OwnWorkload>)> {
        self.own().filter(|(_, own)| own.enrolment != Enrolment::NotEnrolled)
    }

    /// A step failed: says so, and waits before it is tried again or until the controller wants something else.
    pub(super) async fn pause(&mut self, failures: u32, error: &StepError) {
        let message = error.to_string();
        tracing::warn!(pod = %self.known.pod.uid, error = message, failures, "a pod cannot be enrolled or released yet");
        self.report(self.phase_of_failure(), &message);
        self.stand(Standing::Undecided(Blocked {
            component: NODE_PROXY_SERVICE_ACCOUNT,
            message,
            remedy: "see the node proxy's log on this node",
        }));
        let retry = Instant::now() + backoff::delay(failures.max(1), FIRST_RETRY, LONGEST_RETRY);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(retry) => return,
                event = self.event() => match event {
                    Event::Wanted => return,
                    Event::Rules | Event::Check => {
                        if let Some(captured) = &mut self.captured {
                            captured.verify().await;
                        }
                    }
                    Event::Certificates => {}
                },
            }
        }
    }

    /// Peers of a pod that was enrolled must not begin to speak plaintext because a step fails: it is closed still.
    fn phase_of_failure(&self) -> Phase {
        match (&self.captured, self.direction()) {
            (Some(captured), Direction::In | Direction::Unknown) if captured.enrolled => Phase::Enrolled,
            (Some(captured), Direction::Leaving) if captured.enrolled => Phase::Leaving,
            _ => Phase::Failed,
        }
    }

    pub(super) fn direction(&self) -> Direction {
        match self.own().map(|(_, own)| own.enrolment) {
            None => Direction::Unknown,
            Some(Enrolment::NotEnrolled) => Direction::Out,
            Some(Enrolment::Enrolled) => Direction::In,
            Some(Enrolment::Leaving) => Direction::Leaving,
        }
    }

    pub(super) fn workload(&self) -> Option<Arc<Workload>> {
        self.wanted.borrow().as_ref().map(|wanted| wanted.workload.clone())
    }

    /// The listeners that are wanted, of a pod that is a Gateway's.
    pub(super) fn gateway(&self) -> Option<Arc<GatewayListeners>> {
        self.wanted.borrow().as_ref().and_then(|wanted| wanted.gateway.clone())
    }

    pub(super) fn own(&self) -> Option<(Arc<Workload>, Arc<OwnWorkload>)> {
        let workload = self.workload()?;
        let own = workload.own.clone()?;
        Some((workload, own))
    }

    pub(super) fn is_serving(&self) -> bool {
        self.captured.as_ref().is_some_and(Captured::is_serving)
    }

    pub(super) fn uid(&self) -> Option<WorkloadUid> {
        let kept = || self.kept.as_ref().map(KeptCapture::uid);
        self.workload().map(|workload| workload.uid.clone()).or_else(kept)
    }

    pub(super) fn stand(&self, standing: Standing) {
        self.standing.send_if_modified(|before| {
            let changed = *before != standing;
            *before = standing;
            changed
        });
    }

    pub(super) fn report_certifying(&self) {
        let problem = self.captured.as_ref().and_then(Captured::certificate_problem);
        let message = match problem {
            Some(problem) => format!("no certificate yet: {problem}"),
            None => "the certificate is being requested".to_owned(),
        };
        // One that was enrolled stays so for its peers: it is closed, and must not be spoken to in plaintext.
        let was_enrolled = self.captured.as_ref().is_some_and(|captured| captured.enrolled);
        self.report(if was_enrolled { Phase::Enrolled } else { Phase::Waiting }, &message);
        self.stand(Standing::Undecided(Blocked {
            component: CA_SERVICE_ACCOUNT,
            message,
            remedy: "check that the CA is up and what its audit log says about this node",
        }));
    }

    pub(super) fn report(&self, phase: Phase, message: &str) {
        let Some(uid) = self.uid() else { return };
        let certificate = self.captured.as_ref().and_then(Captured::certificate);
        let report = PodReport {
            phase,
            message: message.to_owned(),
            uncaptured_connections: self.captured.as_ref().map_or(0, Captured::uncaptured),
            identity: certificate.as_ref().map(|certificate| certificate.identity.clone()),
            certificate_not_after: certificate.map(|certificate| certificate.not_after),
            listeners: self
                .captured
                .as_ref()
                .map(|captured| captured.listeners(self.gateway().as_deref()))
                .unwrap_or_default(),
        };
        self.reports.send_if_modified(|all| {
            let before = all.get(&uid);
            if before == Some(&report) {
                return false;
            }
            if before.map(|before| before.phase) != Some(phase) {
                tracing::info!(workload = %uid, phase = phase.as_str(), message, "enrolment");
            }
            all.insert(uid, report);
            true
        });
    }
}

fn note(known: &KnownPod, result: Result<(), StepError>) {
    if let Err(error) = result {
        tracing::warn!(pod = %known.pod.uid, %error, "a captured pod is not as it should be; trying again");
    }
}
