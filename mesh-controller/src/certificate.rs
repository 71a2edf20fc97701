//! The controller's own certificate: asked of the CA with its service account token, renewed before it expires.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_api::names::{CA_SERVICE_ACCOUNT, CONTROLLER_SERVICE_ACCOUNT, SYSTEM_NAMESPACE};
use culvert_identity::admin::Check;
use culvert_identity::certificate_client::CertificateClient;
use culvert_identity::grpc::{TokenFile, channel};
use culvert_identity::{Identity, TrustBundle, TrustDomain, WorkloadCertificate, tls};
use rand::Rng as _;
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// Lifetime asked for; the CA may give less.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// No renewal is sooner, however short a lifetime the CA gives.
const SHORTEST_RENEWAL: Duration = Duration::from_secs(1);

/// Keeps the certificate.
pub struct OwnCertificate {
    /// URL of the CA.
    pub ca: String,
    pub token: TokenFile,
    pub bundle: watch::Receiver<Arc<TrustBundle>>,
    /// In force; a certificate under another is replaced.
    pub trust_domain: watch::Receiver<String>,
    pub readiness: Check,
    pub metrics: Metrics,
}

impl OwnCertificate {
    /// Publishes a TLS configuration for each certificate, the first as soon as there is one. Ends when nobody listens.
    pub async fn run(mut self, publish: watch::Sender<Option<Arc<ServerConfig>>>) {
        let mut retry = FIRST_RETRY;
        let mut expires = None;
        loop {
            let wait = match self.request().await {
                Ok(certificate) => {
                    retry = FIRST_RETRY;
                    expires = Some(certificate.not_after());
                    self.put_in_force(&certificate, &publish)
                }
                Err(error) => {
                    self.failed(&error, expires);
                    let wait = jittered(retry);
                    retry = (retry * 2).min(LONGEST_RETRY);
                    wait
                }
            };
            let until = Instant::now() + wait;
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                changed = self.trust_domain.changed() => if changed.is_err() { return },
                () = publish.closed() => return,
            }
        }
    }

    async fn request(&mut self) -> Result<WorkloadCertificate, String> {
        let domain: TrustDomain =
            self.trust_domain.borrow_and_update().parse().map_err(|error| format!("{error}"))?;
        let identity =
            |account| Identity::new(&domain, SYSTEM_NAMESPACE, account).map_err(|error| error.to_string());
        // A channel per request: one a day, and the CA's identity follows the trust domain.
        let channel = channel(&self.ca, identity(CA_SERVICE_ACCOUNT)?, self.bundle.clone());
        let channel = channel.map_err(|error| error.to_string())?;
        let client = CertificateClient::new(channel, self.token.clone());
        let issued = client.request(&identity(CONTROLLER_SERVICE_ACCOUNT)?, LIFETIME).await;
        Ok(issued.map_err(|error| error.to_string())?.certificate)
    }

    /// Returns when to renew.
    fn put_in_force(
        &self,
        certificate: &WorkloadCertificate,
        publish: &watch::Sender<Option<Arc<ServerConfig>>>,
    ) -> Duration {
        match tls::grpc_server_config(certificate) {
            Ok(config) => {
                publish.send_replace(Some(config));
                self.readiness.ready();
            }
            Err(error) => tracing::error!(%error, "the own certificate cannot be used"),
        }
        self.metrics.certificate(seconds(certificate.not_after()));
        tracing::info!(identity = %certificate.identity(), serial = certificate.serial(), "own certificate in force");
        renewal(certificate.not_before(), certificate.not_after(), SystemTime::now())
    }

    fn failed(&self, error: &str, expires: Option<SystemTime>) {
        self.metrics.certificate_failed();
        if expires.is_none_or(|expires| expires <= SystemTime::now()) {
            self.readiness.missing(format!("no certificate from the CA: {error}"));
        }
        tracing::warn!(error, ca = self.ca, "no new certificate for the controller; trying again");
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// At half to 70 % of the life, so that replicas do not come at once.
fn renewal(from: SystemTime, to: SystemTime, now: SystemTime) -> Duration {
    let life = to.duration_since(from).unwrap_or_default();
    let at = from + life.mul_f64(rand::rng().random_range(0.5..0.7));
    at.duration_since(now).unwrap_or_default().max(SHORTEST_RENEWAL)
}

fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_at_half_to_seventy_percent_of_the_life() {
        let from = SystemTime::now();
        let at = |seconds| from + Duration::from_secs(seconds);
        for _ in 0..100 {
            let wait = renewal(from, at(1000), at(100)).as_secs_f64();
            assert!((400.0..600.0).contains(&wait), "{wait}");
        }
        assert_eq!(renewal(from, at(1000), at(2000)), SHORTEST_RENEWAL);
    }
}
