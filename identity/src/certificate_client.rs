//! Client of the certificate RPC (`istio.v1.auth.IstioCertificateService/CreateCertificate`).

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, SystemTime};

use culvert_api::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use culvert_api::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustls::pki_types::PrivateKeyDer;
use thiserror::Error;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::certificate::CertificateError;
use crate::csr::{CertificateRequest, CsrError};
use crate::grpc::{self, TokenFile};
use crate::{BundleError, Identity, TrustBundle, WorkloadCertificate, token};

/// Metadata field with the identity a node proxy asks for.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
/// Longest wait for an answer. The CA itself waits 2 s for a pod it has not seen yet.
const ANSWER: Duration = Duration::from_secs(10);
/// Largest answer in bytes.
const LARGEST_ANSWER: usize = 256 * 1024;

/// A certificate and the roots in force when it was signed.
#[derive(Clone, Debug)]
pub struct Issued {
    pub certificate: WorkloadCertificate,
    pub roots: TrustBundle,
}

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum RequestError {
    #[error("own token: {0}")]
    Token(#[from] io::Error),
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The CA understood and said no; asking again at once will not help.
    #[error("the CA refused ({code:?}): {message}")]
    Refused { code: Code, message: String },
    /// The CA could not be reached or cannot answer now.
    #[error("the CA is not available ({code:?}): {message}")]
    Unavailable { code: Code, message: String },
    /// The CA answered with something else than what was asked for.
    #[error("the CA's answer is not usable: {0}")]
    Answer(AnswerError),
}

/// What is wrong with an answer.
#[derive(Debug, Error)]
pub enum AnswerError {
    #[error("a certificate and the roots are expected, {0} parts came")]
    Parts(usize),
    #[error("the roots: {0}")]
    Roots(#[from] BundleError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("it is for {0}")]
    OtherIdentity(Identity),
}

/// Asks one CA. Cheap to clone.
#[derive(Clone)]
pub struct CertificateClient {
    service: IstioCertificateServiceClient<Channel>,
    token: TokenFile,
}

impl CertificateClient {
    /// `channel` comes from [`grpc::channel`]; the token is read anew for each request.
    pub fn new(channel: Channel, token: TokenFile) -> Self {
        let service = IstioCertificateServiceClient::new(channel).max_decoding_message_size(LARGEST_ANSWER);
        Self { service, token }
    }

    /// A certificate for `identity` with a new key, for `lifetime` if the CA agrees to it. Takes at most 10 s.
    ///
    /// # Errors
    /// When the own token cannot be read, the CA cannot be asked or refuses, or its answer is not a certificate for
    /// this identity and this key that leads to the roots it came with.
    pub async fn request(&self, identity: &Identity, lifetime: Duration) -> Result<Issued, RequestError> {
        let made = CertificateRequest::new(identity)?;
        let token = self.token.read()?;
        let mut request = tonic::Request::new(IstioCertificateRequest {
            csr: made.pem,
            validity_duration: i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata: metadata(identity, &token),
        });
        grpc::put_bearer(request.metadata_mut(), &token)?;
        request.set_timeout(ANSWER);
        let mut service = self.service.clone();
        let answer = tokio::time::timeout(ANSWER, service.create_certificate(request))
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer within {ANSWER:?}"))))
            .map_err(|status| refusal(&status))?;
        issued(&answer.into_inner(), identity, made.key).map_err(RequestError::Answer)
    }
}

/// Says whose identity is asked for when it is not the token's own.
fn metadata(identity: &Identity, token: &str) -> Option<Struct> {
    let own = token::own_subject(token).is_some_and(|(namespace, account)| {
        namespace == identity.namespace() && account == identity.service_account()
    });
    (!own).then(|| {
        let value = Value { kind: Some(Kind::StringValue(identity.uri().to_owned())) };
        Struct { fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]) }
    })
}

fn refusal(status: &Status) -> RequestError {
    let (code, message) = (status.code(), describe(status));
    match code {
        Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => {
            RequestError::Refused { code, message }
        }
        _ => RequestError::Unavailable { code, message },
    }
}

/// A status made on this side hides its cause behind "transport error".
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn issued(
    answer: &IstioCertificateResponse,
    identity: &Identity,
    key: PrivateKeyDer<'static>,
) -> Result<Issued, AnswerError> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let Some((roots, chain)) = answer.cert_chain.split_last().filter(|(_, chain)| !chain.is_empty()) else {
        return Err(AnswerError::Parts(answer.cert_chain.len()));
    };
    let roots = TrustBundle::from_pem(roots.as_bytes())?;
    let chain = CertificateDer::pem_slice_iter(chain.concat().as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CertificateError::Malformed(format!("{error:?}")))?;
    let certificate = WorkloadCertificate::new(chain, key)?;
    if certificate.identity() != identity {
        return Err(AnswerError::OtherIdentity(certificate.identity().clone()));
    }
    certificate.verify(&roots, SystemTime::now())?;
    Ok(Issued { certificate, roots })
}
