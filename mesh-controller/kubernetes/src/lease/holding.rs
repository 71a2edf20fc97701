//! The election on a real Lease.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::election::{Election, Seen, Step};
use crate::client::{RequestError, within};

/// Who leads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership {
    until: watch::Receiver<Option<Instant>>,
}

impl Leadership {
    /// Whether this process leads at this moment.
    pub fn is_held(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Waits until this process leads.
    pub async fn held(&mut self) {
        while !self.is_held() {
            if self.until.changed().await.is_err() {
                // Nobody renews it any more.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until this process leads no more, told or by the clock.
    pub async fn lost(&mut self) {
        loop {
            let until = *self.until.borrow_and_update();
            let Some(until) = until.filter(|until| Instant::now() < *until) else { return };
            tokio::select! {
                () = sleep_until(until) => {}
                changed = self.until.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// Stands for election to a Lease as long as anybody has the receiver; releases it when `ends` comes true, so that another
/// takes over at once.
pub fn run(
    client: Client,
    namespace: &str,
    name: &str,
    election: Election,
    ends: impl Future<Output = ()> + Send + 'static,
) -> (Leadership, impl Future<Output = ()> + Send + 'static) {
    let (sender, until) = watch::channel(None);
    let candidate = Candidate {
        leases: Api::namespaced(client, namespace),
        name: name.to_owned(),
        election,
        current: None,
        sender,
        failure: String::new(),
    };
    (Leadership { until }, candidate.run(ends))
}

struct Candidate {
    leases: Api<Lease>,
    name: String,
    election: Election,
    /// As last read or written.
    current: Option<Lease>,
    sender: watch::Sender<Option<Instant>>,
    failure: String,
}

impl Candidate {
    async fn run(mut self, ends: impl Future<Output = ()>) {
        let mut ends = std::pin::pin!(ends);
        loop {
            let turn = async {
                let next = self.turn().await;
                tokio::time::sleep(next).await;
            };
            tokio::select! {
                () = turn => {}
                () = &mut ends => break,
            }
        }
        self.release().await;
    }

    /// Looks, acts, and tells how long to wait.
    async fn turn(&mut self) -> Duration {
        // As it was told: it may have run out since the last turn.
        let led = self.sender.borrow().is_some();
        if let Err(error) = self.look_and_act().await {
            let error = error.to_string();
            if error != self.failure {
                tracing::warn!(lease = self.name, error, "the Lease cannot be read or written; trying again");
                self.failure = error;
            }
        } else {
            self.failure.clear();
        }
        let now = Instant::now();
        let leads = self.election.leads(now);
        if leads.is_some() != led {
            let identity = self.election.identity();
            tracing::info!(lease = self.name, identity, leads = leads.is_some(), "leadership changed");
        }
        self.sender.send_if_modified(|until| {
            let differs = *until != leads;
            *until = leads;
            differs
        });
        self.election.period()
    }

    async fn look_and_act(&mut self) -> Result<(), RequestError> {
        let found = within(self.leases.get_opt(&self.name)).await?;
        self.election.saw(found.as_ref().map(seen), Instant::now());
        self.current = found;
        let sent = Instant::now();
        let written = match self.election.step(sent) {
            Step::Wait { .. } => return Ok(()),
            Step::Create => {
                let lease = self.lease(None, 0);
                within(self.leases.create(&PostParams::default(), &lease)).await
            }
            Step::Write { over, transitions } => {
                let lease = self.lease(Some(over), transitions);
                within(self.leases.replace(&self.name, &PostParams::default(), &lease)).await
            }
        };
        match written {
            Ok(lease) => {
                self.election.wrote(seen(&lease), sent);
                self.current = Some(lease);
                Ok(())
            }
            // Somebody was quicker; the next look says who.
            Err(error) if error.is_status(409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn lease(&self, over: Option<String>, transitions: i32) -> Lease {
        let now = MicroTime(Timestamp::now());
        let before = self.current.as_ref().and_then(|lease| lease.spec.as_ref());
        let same = before
            .filter(|spec| spec.holder_identity.as_deref() == Some(self.election.identity()))
            .and_then(|spec| spec.acquire_time.clone());
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                resource_version: over,
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.election.identity().to_owned()),
                lease_duration_seconds: i32::try_from(self.election.duration().as_secs()).ok(),
                acquire_time: Some(same.unwrap_or_else(|| now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }

    async fn release(self) {
        // Told first: nobody writes in the name of a leader that is giving up.
        self.sender.send_replace(None);
        // Read anew: a write may have been under way.
        let found = within(self.leases.get_opt(&self.name)).await.ok().flatten();
        let Some(mut lease) = found else { return };
        let Some(spec) = lease.spec.as_mut() else { return };
        if spec.holder_identity.as_deref() != Some(self.election.identity()) {
            return;
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        let released = within(self.leases.replace(&self.name, &PostParams::default(), &lease)).await;
        match released {
            Ok(_) => tracing::info!(lease = self.name, "Lease released"),
            Err(error) => tracing::info!(lease = self.name, %error, "the Lease is left to expire"),
        }
    }
}

fn seen(lease: &Lease) -> Seen {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
    Seen {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: Duration::from_secs(seconds),
        transitions: spec.lease_transitions.unwrap_or_default(),
        resource_version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}
