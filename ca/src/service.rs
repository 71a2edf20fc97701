//! The certificate RPC.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_api::istio_ca::istio_certificate_service_server::IstioCertificateService;
use culvert_api::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use culvert_identity::certificate_client::IMPERSONATED_IDENTITY;
use culvert_identity::token::{Caller, ObjectRef};
use culvert_identity::{Identity, grpc};
use culvert_kubernetes::Tokens;
use prost_types::Struct;
use prost_types::value::Kind;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use tonic::{Request, Response, Status};

use crate::authority::{Issuing, Signed};
use crate::authorize::Authorizer;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::request;

/// More requests than this at once are refused: a node asks for eight at a time, and most answers take a millisecond.
const MOST_AT_ONCE: usize = 512;
/// For one request, waiting for a pod included.
const ONE_REQUEST: Duration = Duration::from_secs(5);
/// Longest text of a caller's in a log line.
const LONGEST_LOGGED: usize = 320;

/// The lifetimes that are given.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    pub shortest: Duration,
    /// Also what is given when nothing is asked for.
    pub longest: Duration,
}

impl Lifetimes {
    fn clamp(self, seconds: i64) -> Duration {
        match u64::try_from(seconds) {
            Ok(0) | Err(_) => self.longest,
            Ok(seconds) => Duration::from_secs(seconds).max(self.shortest).min(self.longest),
        }
    }
}

/// Answers requests.
pub struct CertificateService {
    pub tokens: Tokens,
    pub authorizer: Authorizer,
    pub issuing: watch::Receiver<Arc<Issuing>>,
    pub lifetimes: Lifetimes,
    pub metrics: Metrics,
    places: Semaphore,
}

/// What is known of a request when its line in the audit log is written.
#[derive(Default)]
struct Record {
    caller: Option<Caller>,
    asked: Option<String>,
}

impl CertificateService {
    pub fn new(
        tokens: Tokens,
        authorizer: Authorizer,
        issuing: watch::Receiver<Arc<Issuing>>,
        lifetimes: Lifetimes,
        metrics: Metrics,
    ) -> Self {
        Self { tokens, authorizer, issuing, lifetimes, metrics, places: Semaphore::new(MOST_AT_ONCE) }
    }

    async fn answer(
        &self,
        request: &Request<IstioCertificateRequest>,
        record: &mut Record,
    ) -> Result<(Identity, Signed, Arc<Issuing>), Refusal> {
        let token = grpc::bearer(request.metadata()).ok_or(Refusal::NoToken)?;
        let caller = &*record.caller.insert(self.tokens.verify(token).await?);
        let body = request.get_ref();
        let asked = impersonated(body.metadata.as_ref())?;
        record.asked = asked.map(shortened);
        let asked: Option<Identity> = asked.map(str::parse).transpose()?;
        let csr = request::check(&body.csr)?;
        let granted = self.authorizer.grant(caller, asked.as_ref()).await?;
        if csr.identity != granted {
            return Err(Refusal::OtherIdentityInCsr { named: csr.identity, granted });
        }
        let issuing = self.issuing.borrow().clone();
        let lifetime = self.lifetimes.clamp(body.validity_duration);
        let started = Instant::now();
        let signed = issuing.sign(&granted, &csr.key, lifetime, SystemTime::now()).map_err(|error| {
            tracing::error!(%error, "signing failed");
            Refusal::Signing
        })?;
        self.metrics.signed(started.elapsed());
        Ok((granted, signed, issuing))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let _counted = self.metrics.in_flight();
        let mut record = Record::default();
        let outcome = match self.places.try_acquire() {
            Ok(_place) => timeout(ONE_REQUEST, self.answer(&request, &mut record))
                .await
                .unwrap_or(Err(Refusal::Deadline)),
            Err(_) => Err(Refusal::Busy),
        };
        match outcome {
            Ok((granted, signed, issuing)) => {
                self.metrics.granted();
                audit_granted(&record, &granted, &signed);
                let chain = [signed.certificate, signed.chain].into_iter().filter(|part| !part.is_empty());
                let cert_chain = chain.chain([issuing.bundle_pem().to_owned()]).collect();
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(refusal) => {
                self.metrics.refused(&refusal);
                audit_refused(&record, &refusal, &request);
                Err(Status::from(&refusal))
            }
        }
    }
}

/// The identity a node proxy asks for.
fn impersonated(metadata: Option<&Struct>) -> Result<Option<&str>, Refusal> {
    let value = metadata.and_then(|metadata| metadata.fields.get(IMPERSONATED_IDENTITY));
    match value.and_then(|value| value.kind.as_ref()) {
        None | Some(Kind::NullValue(_)) => Ok(None),
        Some(Kind::StringValue(text)) => Ok(Some(text)),
        Some(_) => Err(Refusal::ImpersonationNotAString),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(LONGEST_LOGGED).collect()
}

fn name(object: Option<&ObjectRef>) -> &str {
    object.map_or("", |object| object.name.as_str())
}

fn audit_granted(record: &Record, granted: &Identity, signed: &Signed) {
    let caller = record.caller.as_ref();
    let not_after = signed.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    tracing::info!(
        target: "audit",
        decision = "granted",
        caller_namespace = caller.map_or("", |caller| &caller.namespace),
        caller_service_account = caller.map_or("", |caller| &caller.service_account),
        caller_pod = name(caller.and_then(|caller| caller.pod.as_ref())),
        caller_node = name(caller.and_then(|caller| caller.node.as_ref())),
        identity = granted.uri(),
        serial = signed.serial,
        not_after,
        "certificate signed"
    );
}

fn audit_refused(record: &Record, refusal: &Refusal, request: &Request<IstioCertificateRequest>) {
    let caller = record.caller.as_ref();
    let remote = request.remote_addr().map(|address| address.to_string()).unwrap_or_default();
    tracing::warn!(
        target: "audit",
        decision = "refused",
        caller_namespace = caller.map_or("", |caller| &caller.namespace),
        caller_service_account = caller.map_or("", |caller| &caller.service_account),
        caller_pod = name(caller.and_then(|caller| caller.pod.as_ref())),
        caller_node = name(caller.and_then(|caller| caller.node.as_ref())),
        remote,
        asked = record.asked.as_deref().unwrap_or(""),
        reason = refusal.reason(),
        detail = shortened(&refusal.to_string()),
        "certificate refused"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn lifetimes_are_clamped() {
        let lifetimes = Lifetimes { shortest: Duration::from_secs(5), longest: Duration::from_secs(86400) };
        for (asked, given) in
            [(0, 86400), (-1, 86400), (i64::MIN, 86400), (1, 5), (600, 600), (i64::MAX, 86400)]
        {
            assert_eq!(lifetimes.clamp(asked).as_secs(), given, "{asked}");
        }
    }

    #[test]
    fn the_identity_asked_for_is_a_string_or_nothing() {
        let with = |kind| Struct {
            fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), prost_types::Value { kind })]),
        };
        assert_eq!(impersonated(None), Ok(None));
        assert_eq!(impersonated(Some(&Struct::default())), Ok(None));
        assert_eq!(impersonated(Some(&with(Some(Kind::StringValue("x".to_owned()))))), Ok(Some("x")));
        assert_eq!(
            impersonated(Some(&with(Some(Kind::NumberValue(1.0))))),
            Err(Refusal::ImpersonationNotAString)
        );
    }
}
