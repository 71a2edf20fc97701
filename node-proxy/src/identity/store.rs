//! The certificates in force, as the data path reads them, and what the rest of the process wants of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use culvert_identity::Identity;
use parking_lot::Mutex;
use rpds::HashTrieMapSync;
use serde::Serialize;
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::clock::Clock;

/// One certificate with its TLS configurations, built once.
#[derive(Debug)]
pub struct ActiveCertificate {
    pub identity: Identity,
    pub not_after: SystemTime,
    /// Counts the certificates and bundles of this identity: higher is newer.
    pub generation: u64,
    /// For 15008: a client certificate of an accepted trust domain is demanded.
    pub server: Arc<rustls::ServerConfig>,
    /// For tunnels: any workload of an accepted trust domain is accepted by the handshake; the caller compares the
    /// peer's identity with the one it expects before it sends a byte.
    pub client: Arc<rustls::ClientConfig>,
    /// Counts the trust bundles: differs when the roots did.
    pub roots_generation: u64,
}

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CertificateError {
    #[error("no certificate for {identity} within the deadline; the last request failed: {last}")]
    Failed { identity: Identity, last: Arc<str> },
    #[error("no certificate for {identity} within the deadline; no request has been answered yet")]
    NotAnswered { identity: Identity },
    #[error("the certificate manager has ended")]
    Ended,
}

/// One identity's state, for `/config` and metrics.
#[derive(Clone, Debug, Serialize)]
pub struct CertificateStatus {
    pub identity: Identity,
    /// Seconds since the epoch; none without a certificate in force.
    pub not_after: Option<u64>,
    pub generation: u64,
    /// Holders that want it renewed.
    pub leases: usize,
    /// Requests failed since the last success.
    pub failures: u32,
    pub last_error: Option<Arc<str>>,
}

/// The certificates of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Certificates {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub current: ArcSwap<HashTrieMapSync<Identity, Arc<ActiveCertificate>>>,
    pub wanted: Mutex<HashMap<Identity, Wanted>>,
    /// Wakes the manager: a lease was taken or dropped, or somebody waits urgently.
    pub wake: Notify,
    pub changed: watch::Sender<u64>,
    pub ended: watch::Sender<bool>,
    pub clock: Clock,
}

/// What is wanted of one identity and how its requests went.
#[derive(Debug)]
pub(super) struct Wanted {
    pub leases: usize,
    /// Somebody waits for it: it goes before renewals and does not wait for the back-off.
    pub urgent: bool,
    pub in_flight: bool,
    pub due: Instant,
    pub failures: u32,
    pub last_error: Option<Arc<str>>,
    /// Since when there has been no lease.
    pub unused_since: Option<Instant>,
}

impl Wanted {
    fn new(now: Instant) -> Self {
        Self {
            leases: 0,
            urgent: false,
            in_flight: false,
            due: now,
            failures: 0,
            last_error: None,
            unused_since: None,
        }
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

impl Certificates {
    /// None yet; [`super::CertificateManager`] fills it.
    pub fn new() -> Self {
        Self::with_clock(Clock::System)
    }

    pub(super) fn with_clock(clock: Clock) -> Self {
        Self {
            shared: Arc::new(Shared {
                current: ArcSwap::from_pointee(HashTrieMapSync::new_sync()),
                wanted: Mutex::new(HashMap::new()),
                wake: Notify::new(),
                changed: watch::Sender::new(0),
                ended: watch::Sender::new(false),
                clock,
            }),
        }
    }

    /// The certificate in force, if there is one that has not expired. Takes no lock.
    pub fn current(&self, identity: &Identity) -> Option<Arc<ActiveCertificate>> {
        let certificate = self.shared.current.load().get(identity).cloned()?;
        (self.shared.clock.now() < certificate.not_after).then_some(certificate)
    }

    /// The certificate in force, else one requested now, before the queue of renewals.
    ///
    /// # Errors
    /// When none has come by the deadline; the last failure of the CA is in the error.
    pub async fn acquire(
        &self,
        identity: &Identity,
        deadline: Instant,
    ) -> Result<Arc<ActiveCertificate>, CertificateError> {
        let mut changed = self.changed();
        let mut ended = self.shared.ended.subscribe();
        if let Some(certificate) = self.current(identity) {
            return Ok(certificate);
        }
        let _lease = self.keep(identity);
        self.make_urgent(identity);
        loop {
            if let Some(certificate) = self.current(identity) {
                return Ok(certificate);
            }
            tokio::select! {
                biased;
                _ = changed.changed() => {}
                _ = ended.wait_for(|ended| *ended) => return Err(CertificateError::Ended),
                () = tokio::time::sleep_until(deadline) => return Err(self.late(identity)),
            }
        }
    }

    /// Has the identity's certificate requested and renewed until the lease is dropped; without any lease it is
    /// forgotten.
    pub fn keep(&self, identity: &Identity) -> CertificateLease {
        let mut wanted = self.shared.wanted.lock();
        wanted.entry(identity.clone()).or_insert_with(|| Wanted::new(Instant::now())).leases += 1;
        drop(wanted);
        self.shared.wake.notify_one();
        CertificateLease { certificates: self.clone(), identity: identity.clone() }
    }

    /// Counts changes of any certificate; a receiver sees each change at least once after it happened.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Every identity that is wanted or has a certificate, sorted.
    pub fn statuses(&self) -> Vec<CertificateStatus> {
        let current = self.shared.current.load();
        let mut statuses: Vec<CertificateStatus> = self
            .shared
            .wanted
            .lock()
            .iter()
            .map(|(identity, wanted)| {
                let certificate = current.get(identity);
                CertificateStatus {
                    identity: identity.clone(),
                    not_after: certificate.map(|certificate| seconds_since_epoch(certificate.not_after)),
                    generation: certificate.map_or(0, |certificate| certificate.generation),
                    leases: wanted.leases,
                    failures: wanted.failures,
                    last_error: wanted.last_error.clone(),
                }
            })
            .collect();
        statuses.sort_by(|one, other| one.identity.cmp(&other.identity));
        statuses
    }

    /// Puts a certificate in force, in the place of its identity's last one.
    pub fn put(&self, certificate: ActiveCertificate) {
        let certificate = Arc::new(certificate);
        self.shared.current.rcu(|all| all.insert(certificate.identity.clone(), certificate.clone()));
        self.shared.changed.send_modify(|count| *count += 1);
    }

    pub(super) fn retire(&self, identity: &Identity) {
        self.shared.current.rcu(|all| all.remove(identity));
        self.shared.changed.send_modify(|count| *count += 1);
    }

    fn make_urgent(&self, identity: &Identity) {
        if let Some(wanted) = self.shared.wanted.lock().get_mut(identity) {
            wanted.urgent = true;
        }
        self.shared.wake.notify_one();
    }

    fn late(&self, identity: &Identity) -> CertificateError {
        let last = self.shared.wanted.lock().get(identity).and_then(|wanted| wanted.last_error.clone());
        match last {
            Some(last) => CertificateError::Failed { identity: identity.clone(), last },
            None => CertificateError::NotAnswered { identity: identity.clone() },
        }
    }
}

/// While it lives, the identity's certificate is renewed.
#[derive(Debug)]
pub struct CertificateLease {
    certificates: Certificates,
    identity: Identity,
}

impl CertificateLease {
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}

impl Drop for CertificateLease {
    fn drop(&mut self) {
        let mut wanted = self.certificates.shared.wanted.lock();
        if let Some(entry) = wanted.get_mut(&self.identity) {
            entry.leases = entry.leases.saturating_sub(1);
        }
        drop(wanted);
        self.certificates.shared.wake.notify_one();
    }
}

/// Whole seconds since the epoch; 0 before it.
pub(crate) fn seconds_since_epoch(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
