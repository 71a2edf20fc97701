//! The authority's own serving certificate: signed by itself, renewed at half its life and when another root signs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_identity::admin::Check;
use culvert_identity::csr::{CertificateRequest, CsrError};
use culvert_identity::tls::{self, ConfigError};
use culvert_identity::{CertificateError, Identity, WorkloadCertificate};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::authority::{Issuing, SignError};
use crate::metrics::Metrics;
use crate::request::{self, CsrProblem};

const AFTER_A_FAILURE: Duration = Duration::from_secs(1);
const SHORTEST_LIFE: Duration = Duration::from_secs(2);

/// Why there is no serving certificate.
#[derive(Debug, Error)]
pub enum ServingError {
    #[error(transparent)]
    Request(#[from] CsrError),
    #[error(transparent)]
    Csr(#[from] CsrProblem),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Signs the first serving certificate and keeps it fresh while the process runs.
///
/// # Errors
/// When the first one cannot be made.
pub fn start(
    identity: Identity,
    lifetime: Duration,
    issuing: watch::Receiver<Arc<Issuing>>,
    metrics: Metrics,
    check: Check,
) -> Result<watch::Receiver<Arc<ServerConfig>>, ServingError> {
    let lifetime = lifetime.max(SHORTEST_LIFE);
    let first = make(&identity, lifetime, &issuing.borrow())?;
    metrics.serving_until(first.not_after);
    check.ready();
    let (sender, receiver) = watch::channel(first.config);
    tokio::spawn(renew(Renewal { identity, lifetime, issuing, metrics, check, sender }));
    Ok(receiver)
}

struct Renewal {
    identity: Identity,
    lifetime: Duration,
    issuing: watch::Receiver<Arc<Issuing>>,
    metrics: Metrics,
    check: Check,
    sender: watch::Sender<Arc<ServerConfig>>,
}

async fn renew(mut renewal: Renewal) {
    let mut pause = renewal.lifetime / 2;
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            changed = renewal.issuing.changed() => if changed.is_err() { return },
        }
        let issuing = renewal.issuing.borrow_and_update().clone();
        match make(&renewal.identity, renewal.lifetime, &issuing) {
            Ok(made) => {
                renewal.sender.send_replace(made.config);
                renewal.metrics.serving_until(made.not_after);
                renewal.check.ready();
                pause = renewal.lifetime / 2;
            }
            Err(error) => {
                tracing::error!(%error, "the serving certificate cannot be renewed");
                renewal.check.missing(error.to_string());
                pause = AFTER_A_FAILURE;
            }
        }
    }
}

struct Made {
    config: Arc<ServerConfig>,
    not_after: SystemTime,
}

/// Goes through the same request and the same checks as anybody else's certificate.
fn make(identity: &Identity, lifetime: Duration, issuing: &Issuing) -> Result<Made, ServingError> {
    let request = CertificateRequest::new(identity)?;
    let key = request::check(&request.pem)?.key;
    let signed = issuing.sign(identity, &key, lifetime, SystemTime::now())?;
    let chain = CertificateDer::pem_slice_iter((signed.certificate + &signed.chain).as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CertificateError::Malformed(format!("{error:?}")))?;
    let certificate = WorkloadCertificate::new(chain, request.key)?;
    Ok(Made { config: tls::grpc_server_config(&certificate)?, not_after: signed.not_after })
}
