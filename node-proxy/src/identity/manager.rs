//! Requests and renews certificates: at most eight requests at once, those that somebody waits for first, each identity
//! with its own back-off. What is in force stays in force until it expires, whatever the CA does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_identity::certificate_client::{CertificateClient, Issued, RequestError};
use culvert_identity::{Identity, TrustBundle, TrustDomain, WorkloadCertificate, tls};
use futures::future::BoxFuture;
use rand::Rng;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::backoff;
use super::store::{ActiveCertificate, Certificates, Wanted};
use crate::state::Snapshots;
use crate::state::model::MeshSettings;
use crate::telemetry::{Outcome, Telemetry};

/// Requests in flight at once.
const AT_ONCE: usize = 8;
/// A request that takes longer has failed; the client's own deadline is shorter.
const LONGEST_REQUEST: Duration = Duration::from_secs(15);
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// Renewed at a random point of this part of its life.
const RENEWAL: std::ops::Range<f64> = 0.5..0.7;
/// Below this share of its life, a certificate that could not be renewed is warned about.
const NEARLY_OVER: f64 = 0.1;
/// How long a certificate without a lease is kept for the next one.
const LINGER: Duration = Duration::from_secs(10);
/// The time of day may jump: it is looked at this often at least.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Who signs; a seam for tests.
pub(super) trait Issuer: Send + Sync + 'static {
    fn issue(&self, identity: Identity) -> BoxFuture<'static, Result<Issued, RequestError>>;
}

/// The CA, asked for certificates of one lifetime.
struct Ca {
    client: CertificateClient,
    lifetime: Duration,
}

impl Issuer for Ca {
    fn issue(&self, identity: Identity) -> BoxFuture<'static, Result<Issued, RequestError>> {
        let (client, lifetime) = (self.client.clone(), self.lifetime);
        Box::pin(async move { client.request(&identity, lifetime).await })
    }
}

/// What the manager works with.
pub struct CertificateSettings {
    pub client: CertificateClient,
    /// Lifetime asked for; the CA may shorten it.
    pub lifetime: Duration,
    /// The roots in force. They come from here only, so that a root that goes is gone for every identity at once.
    pub bundle: watch::Receiver<Arc<TrustBundle>>,
    /// For the trust domains that are accepted.
    pub snapshots: Snapshots,
    pub telemetry: Telemetry,
}

/// One certificate with what it takes to build its configurations again.
struct Held {
    certificate: WorkloadCertificate,
    received: SystemTime,
    renew_at: SystemTime,
    generation: u64,
    in_force: bool,
    warned: bool,
}

/// Runs on the control runtime; everybody else holds [`Certificates`].
pub struct CertificateManager {
    certificates: Certificates,
    issuer: Box<dyn Issuer>,
    bundle: watch::Receiver<Arc<TrustBundle>>,
    snapshots: Snapshots,
    telemetry: Telemetry,
    held: HashMap<Identity, Held>,
    accepted: Vec<TrustDomain>,
    roots_generation: u64,
    requests: JoinSet<(Identity, Result<Issued, RequestError>)>,
}

impl CertificateManager {
    pub fn new(certificates: Certificates, settings: CertificateSettings) -> Self {
        let issuer = Box::new(Ca { client: settings.client, lifetime: settings.lifetime });
        Self::with_issuer(certificates, issuer, settings.bundle, settings.snapshots, settings.telemetry)
    }

    pub(super) fn with_issuer(
        certificates: Certificates,
        issuer: Box<dyn Issuer>,
        bundle: watch::Receiver<Arc<TrustBundle>>,
        snapshots: Snapshots,
        telemetry: Telemetry,
    ) -> Self {
        let accepted = accepted_domains(snapshots.load().mesh());
        Self {
            certificates,
            issuer,
            bundle,
            snapshots,
            telemetry,
            held: HashMap::new(),
            accepted,
            roots_generation: 1,
            requests: JoinSet::new(),
        }
    }

    /// Serves until cancelled. What is in force then stays readable; nothing is renewed any more.
    pub async fn run(mut self, cancel: CancellationToken) {
        let certificates = self.certificates.clone();
        let mut snapshots_changed = self.snapshots.changed();
        let mut bundle = self.bundle.clone();
        let mut bundle_lives = true;
        loop {
            self.forget_unused();
            self.retire_expired();
            self.catch_up_with_the_clock();
            self.start_requests();
            let next = self.next_event();
            tokio::select! {
                () = cancel.cancelled() => break,
                () = certificates.shared.wake.notified() => {}
                Some(done) = self.requests.join_next() => self.finish(done),
                changed = bundle.changed(), if bundle_lives => match changed {
                    Ok(()) => self.replace_roots(),
                    Err(_) => bundle_lives = false,
                },
                Ok(()) = snapshots_changed.changed() => self.replace_trust_domains(),
                () = tokio::time::sleep_until(next) => {}
            }
        }
        certificates.shared.ended.send_replace(true);
    }

    /// Drops what has had no lease for a while.
    fn forget_unused(&mut self) {
        let now = Instant::now();
        let mut forgotten = Vec::new();
        self.certificates.shared.wanted.lock().retain(|identity, wanted| {
            if wanted.leases > 0 {
                wanted.unused_since = None;
                return true;
            }
            let since = *wanted.unused_since.get_or_insert(now);
            let keep = wanted.in_flight || now < since + LINGER;
            if !keep {
                forgotten.push(identity.clone());
            }
            keep
        });
        for identity in forgotten {
            if self.held.remove(&identity).is_some() {
                info!(%identity, "certificate forgotten: no pod of this node needs it");
                self.certificates.retire(&identity);
            }
        }
    }

    /// Takes certificates out of force at their end and warns before.
    fn retire_expired(&mut self) {
        let now = self.certificates.shared.clock.now();
        for (identity, held) in &mut self.held {
            let left = held.certificate.not_after().duration_since(now).unwrap_or_default();
            if left.is_zero() && held.in_force {
                held.in_force = false;
                warn!(%identity, "certificate expired: its pods cannot be reached or reach others until the CA signs again");
                self.certificates.retire(identity);
            } else if left < held.life().mul_f64(NEARLY_OVER) && !held.warned {
                held.warned = true;
                warn!(%identity, left_seconds = left.as_secs(), "certificate is about to expire and could not be renewed");
            }
        }
    }

    /// Starts as many requests as may run, those that somebody waits for first, then the longest due.
    fn start_requests(&mut self) {
        let free = AT_ONCE.saturating_sub(self.requests.len());
        let now = Instant::now();
        let mut wanted = self.certificates.shared.wanted.lock();
        let mut due: Vec<(&Identity, &mut Wanted)> = wanted
            .iter_mut()
            .filter(|(_, wanted)| {
                !wanted.in_flight && (wanted.urgent || wanted.due <= now) && wanted.leases > 0
            })
            .collect();
        due.sort_by_key(|(_, wanted)| (!wanted.urgent, wanted.due));
        for (identity, wanted) in due.into_iter().take(free) {
            wanted.in_flight = true;
            wanted.urgent = false;
            let (identity, request) = (identity.clone(), self.issuer.issue(identity.clone()));
            self.requests.spawn(async move {
                let late = || RequestError::Unavailable {
                    code: tonic::Code::DeadlineExceeded,
                    message: format!("no answer within {LONGEST_REQUEST:?}"),
                };
                let answer = tokio::time::timeout(LONGEST_REQUEST, request).await;
                (identity, answer.unwrap_or_else(|_| Err(late())))
            });
        }
    }

    /// When something may have to be done although nobody says so.
    fn next_event(&self) -> Instant {
        let now = Instant::now();
        let mut next = now + LONGEST_SLEEP;
        let room = self.requests.len() < AT_ONCE;
        for wanted in self.certificates.shared.wanted.lock().values() {
            if room && wanted.leases > 0 && !wanted.in_flight {
                next = next.min(wanted.due);
            }
            if let Some(since) = wanted.unused_since.filter(|_| !wanted.in_flight) {
                next = next.min(since + LINGER);
            }
        }
        let time = self.certificates.shared.clock.now();
        for held in self.held.values().filter(|held| held.in_force) {
            next = next.min(now + held.certificate.not_after().duration_since(time).unwrap_or_default());
        }
        next
    }

    fn finish(&mut self, done: Result<(Identity, Result<Issued, RequestError>), tokio::task::JoinError>) {
        let Ok((identity, result)) = done else {
            // A task that panicked does not say whose it was: all that seem in flight may be asked for again.
            self.certificates.shared.wanted.lock().values_mut().for_each(|wanted| wanted.in_flight = false);
            return;
        };
        let result =
            result.map_err(|error| error.to_string()).and_then(|issued| self.put_in_force(&identity, issued));
        match result {
            Ok(renew_at) => {
                self.telemetry.certificate_request(Outcome::Success);
                self.succeeded(&identity, renew_at);
            }
            Err(error) => {
                self.telemetry.certificate_request(Outcome::Failure);
                self.failed(&identity, &error);
            }
        }
    }

    /// Returns how long from now it is to be renewed.
    fn put_in_force(&mut self, identity: &Identity, issued: Issued) -> Result<Duration, String> {
        let received = self.certificates.shared.clock.now();
        let not_after = issued.certificate.not_after();
        let life =
            not_after.duration_since(received).map_err(|_| "the certificate has expired".to_owned())?;
        let renewal = life.mul_f64(rand::rng().random_range(RENEWAL));
        let generation = self.held.get(identity).map_or(0, |held| held.generation) + 1;
        let held = Held {
            certificate: issued.certificate,
            received,
            renew_at: received + renewal,
            generation,
            in_force: true,
            warned: false,
        };
        let active = self.activate(&held)?;
        let serial = held.certificate.serial().to_owned();
        self.held.insert(identity.clone(), held);
        self.certificates.put(active);
        info!(%identity, serial, life_seconds = life.as_secs(), renewal_in_seconds = renewal.as_secs(), "certificate in force");
        Ok(renewal)
    }

    /// Builds the TLS configurations: once per certificate, bundle and set of trust domains.
    fn activate(&self, held: &Held) -> Result<ActiveCertificate, String> {
        let bundle = self.bundle.borrow().clone();
        let configs = tls::server_config(&held.certificate, &bundle, &self.accepted)
            .and_then(|server| Ok((server, tls::client_config(&held.certificate, &bundle)?)));
        let (server, client) = configs.map_err(|error| error.to_string())?;
        Ok(ActiveCertificate {
            identity: held.certificate.identity().clone(),
            not_after: held.certificate.not_after(),
            generation: held.generation,
            server,
            client,
            roots_generation: self.roots_generation,
        })
    }

    fn succeeded(&self, identity: &Identity, renewal: Duration) {
        if let Some(wanted) = self.certificates.shared.wanted.lock().get_mut(identity) {
            wanted.in_flight = false;
            wanted.urgent = false;
            wanted.failures = 0;
            wanted.last_error = None;
            wanted.due = Instant::now() + renewal;
        }
    }

    fn failed(&self, identity: &Identity, error: &str) {
        let mut all = self.certificates.shared.wanted.lock();
        let Some(wanted) = all.get_mut(identity) else { return };
        wanted.in_flight = false;
        wanted.failures = wanted.failures.saturating_add(1);
        wanted.last_error = Some(error.into());
        let retry = backoff::delay(wanted.failures, FIRST_RETRY, LONGEST_RETRY);
        wanted.due = Instant::now() + retry;
        let failures = wanted.failures;
        drop(all);
        let valid_seconds = self.held.get(identity).map_or(0, |held| {
            let now = self.certificates.shared.clock.now();
            held.certificate.not_after().duration_since(now).unwrap_or_default().as_secs()
        });
        let retry_ms = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX);
        warn!(%identity, error, failures, retry_ms, valid_seconds, "certificate request failed");
    }

    fn replace_roots(&mut self) {
        self.roots_generation += 1;
        info!(roots_generation = self.roots_generation, "trust bundle replaced");
        self.rebuild();
        let bundle = self.bundle.borrow().clone();
        let now = self.certificates.shared.clock.now();
        let mut wanted = self.certificates.shared.wanted.lock();
        for (identity, held) in &self.held {
            if let (Err(error), Some(wanted)) =
                (held.certificate.verify(&bundle, now), wanted.get_mut(identity))
            {
                warn!(%identity, %error, "certificate no longer leads to a root in force: asking for a new one");
                wanted.urgent = true;
            }
        }
    }

    fn replace_trust_domains(&mut self) {
        let accepted = accepted_domains(self.snapshots.load().mesh());
        if accepted != self.accepted {
            info!(?accepted, "accepted trust domains changed");
            self.accepted = accepted;
            self.rebuild();
        }
    }

    /// New configurations around the certificates that are there.
    fn rebuild(&mut self) {
        let identities: Vec<Identity> = self.held.keys().cloned().collect();
        for identity in identities {
            if let Some(held) = self.held.get_mut(&identity).filter(|held| held.in_force) {
                held.generation += 1;
            }
            let Some(held) = self.held.get(&identity).filter(|held| held.in_force) else { continue };
            match self.activate(held) {
                Ok(active) => self.certificates.put(active),
                Err(error) => {
                    warn!(%identity, error, "the old TLS configuration stays: the new one cannot be built")
                }
            }
        }
    }

    /// Time of day that jumped ahead of the timers makes renewals due.
    fn catch_up_with_the_clock(&self) {
        let (time, now) = (self.certificates.shared.clock.now(), Instant::now());
        let mut wanted = self.certificates.shared.wanted.lock();
        for (identity, _) in self.held.iter().filter(|(_, held)| held.renew_at <= time) {
            if let Some(wanted) = wanted.get_mut(identity).filter(|wanted| wanted.failures == 0) {
                wanted.due = wanted.due.min(now);
            }
        }
    }
}

impl Held {
    fn life(&self) -> Duration {
        self.certificate.not_after().duration_since(self.received).unwrap_or_default()
    }
}

/// The mesh's trust domain and its aliases.
fn accepted_domains(mesh: &MeshSettings) -> Vec<TrustDomain> {
    std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases).cloned().collect()
}

#[cfg(test)]
mod tests;
