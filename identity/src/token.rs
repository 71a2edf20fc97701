//! Kubernetes bound service account tokens: reading and judging them, and, for the sandbox, minting them.

mod issuer;
mod verifier;

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

pub use issuer::{Issuer, IssuerError};
pub use verifier::{TokenError, Verifier, VerifierError};

/// A named object with its uid.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    pub name: String,
    pub uid: String,
}

/// The claims of a bound service account token that matter here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub sub: String,
    pub aud: Audience,
    /// Seconds since 1970, as `iat` and `nbf`.
    pub exp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: KubernetesClaims,
}

/// One audience or several (RFC 7519, 4.1.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    One(String),
    Several(Vec<String>),
}

/// The claim `kubernetes.io`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesClaims {
    pub namespace: String,
    pub serviceaccount: ObjectRef,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<ObjectRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<ObjectRef>,
}

/// Who holds a valid token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub namespace: String,
    pub service_account: String,
    /// The pod the token is bound to.
    pub pod: Option<ObjectRef>,
    /// The node that pod runs on, or the node the token is bound to.
    pub node: Option<ObjectRef>,
    pub expires: SystemTime,
}

impl Caller {
    /// Whether it is this service account.
    pub fn is(&self, namespace: &str, service_account: &str) -> bool {
        self.namespace == namespace && self.service_account == service_account
    }
}

/// `sub` of a service account token.
fn subject(namespace: &str, service_account: &str) -> String {
    format!("system:serviceaccount:{namespace}:{service_account}")
}

/// Namespace and service account that a token claims for its holder, **unverified**: for the holder itself, who wants
/// to know whom it is about to say it is. `None` when it does not look like a token.
pub fn own_subject(token: &str) -> Option<(String, String)> {
    #[derive(Deserialize)]
    struct Subject {
        sub: String,
    }
    let payload = token.split('.').nth(1)?;
    let json = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let Subject { sub } = serde_json::from_slice(&json).ok()?;
    let (namespace, service_account) = sub.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    Some((namespace.to_owned(), service_account.to_owned()))
}

#[cfg(test)]
mod tests;
