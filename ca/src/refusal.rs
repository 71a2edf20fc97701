//! Every reason for which no certificate is given: one word for logs and metrics, one gRPC code, one sentence.

use culvert_identity::token::TokenError;
use culvert_identity::{Identity, IdentityError, TrustDomain};
use thiserror::Error;
use tonic::{Code, Status};

use crate::request::CsrProblem;

/// Why a request is refused. The sentences go to the caller; none holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("a service account token is required (authorization: Bearer TOKEN)")]
    NoToken,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the token is not bound to a pod, and {0} is not a service account of the mesh")]
    Unbound(String),
    #[error("the token's pod {0} is not known")]
    CallerPodUnknown(String),
    #[error("the token's pod {0} has ended")]
    CallerPodEnded(String),
    #[error("the token's claims about pod {0} do not agree with the pod")]
    CallerPodDiffers(String),
    #[error("the token's node {0} is not known")]
    CallerNodeUnknown(String),
    #[error("the token names no node")]
    NoNode,
    #[error("only node proxies may ask for the identity of others; {0} is none")]
    NotANodeProxy(String),
    #[error("identities of namespace {0} are not given to node proxies: its pods are never enrolled")]
    ReservedNamespace(String),
    #[error("node {node} runs no pod with identity {identity}")]
    NoPodOnNode { identity: Identity, node: String },
    #[error("{asked} is not of this authority's trust domain {own}")]
    TrustDomain { asked: Identity, own: TrustDomain },
    #[error("the identity asked for: {0}")]
    Identity(#[from] IdentityError),
    #[error("field ImpersonatedIdentity must be a string")]
    ImpersonationNotAString,
    #[error("certificate request: {0}")]
    Csr(#[from] CsrProblem),
    #[error("the certificate request names {named}, granted is {granted}")]
    OtherIdentityInCsr { named: Identity, granted: Identity },
    #[error("too many requests at once; ask again")]
    Busy,
    #[error("the request took too long; ask again")]
    Deadline,
    #[error("signing failed")]
    Signing,
}

impl Refusal {
    /// The word in logs and metrics, and the gRPC code.
    fn class(&self) -> (&'static str, Code) {
        match self {
            Self::NoToken => ("NoToken", Code::Unauthenticated),
            Self::Token(TokenError::Expired) => ("TokenExpired", Code::Unauthenticated),
            Self::Token(TokenError::Audience) => ("TokenAudience", Code::Unauthenticated),
            Self::Token(TokenError::Unavailable(_)) => ("TokenUnchecked", Code::Unavailable),
            Self::Token(_) => ("TokenInvalid", Code::Unauthenticated),
            Self::Unbound(_) => ("TokenUnbound", Code::PermissionDenied),
            Self::CallerPodUnknown(_) => ("CallerPodUnknown", Code::PermissionDenied),
            Self::CallerPodEnded(_) => ("CallerPodEnded", Code::PermissionDenied),
            Self::CallerPodDiffers(_) => ("CallerPodDiffers", Code::PermissionDenied),
            Self::CallerNodeUnknown(_) => ("CallerNodeUnknown", Code::PermissionDenied),
            Self::NoNode => ("NoNode", Code::PermissionDenied),
            Self::NotANodeProxy(_) => ("NotANodeProxy", Code::PermissionDenied),
            Self::ReservedNamespace(_) => ("ReservedNamespace", Code::PermissionDenied),
            Self::NoPodOnNode { .. } => ("NoPodOnNode", Code::PermissionDenied),
            Self::TrustDomain { .. } => ("TrustDomain", Code::PermissionDenied),
            Self::Identity(_) => ("IdentityMalformed", Code::InvalidArgument),
            Self::ImpersonationNotAString => ("IdentityMalformed", Code::InvalidArgument),
            Self::Csr(_) => ("CsrInvalid", Code::InvalidArgument),
            Self::OtherIdentityInCsr { .. } => ("CsrIdentity", Code::PermissionDenied),
            Self::Busy => ("Busy", Code::ResourceExhausted),
            Self::Deadline => ("Deadline", Code::DeadlineExceeded),
            Self::Signing => ("Signing", Code::Internal),
        }
    }

    /// One word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        self.class().0
    }

    /// Whether the objects may simply not have arrived yet.
    pub fn may_be_early(&self) -> bool {
        matches!(self, Self::CallerPodUnknown(_) | Self::CallerNodeUnknown(_) | Self::NoPodOnNode { .. })
    }
}

impl From<&Refusal> for Status {
    fn from(refusal: &Refusal) -> Self {
        let (reason, code) = refusal.class();
        Status::new(code, format!("{reason}: {refusal}"))
    }
}
