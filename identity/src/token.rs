//! Kubernetes bound service account tokens: reading and judging them, and, for the sandbox, minting them.

mod issuer;
mod verifier;

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::certificate::system_time;

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

/// What a token says of itself, **unverified**: enough to refuse it without asking anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    pub audiences: Vec<String>,
    pub expires: SystemTime,
}

impl Claimed {
    /// Whether somebody is worth asking about it.
    ///
    /// # Errors
    /// When it is for another audience or expired by its own account.
    pub fn check(&self, audience: &str, now: SystemTime) -> Result<(), TokenError> {
        if !self.audiences.iter().any(|of| of == audience) {
            return Err(TokenError::Audience);
        }
        if self.expires <= now { Err(TokenError::Expired) } else { Ok(()) }
    }
}

/// Reads what a bound service account token says of itself, **unverified**.
///
/// # Errors
/// When it is none.
pub fn claimed(token: &str) -> Result<Claimed, TokenError> {
    #[derive(Deserialize)]
    struct Payload {
        aud: Audience,
        exp: u64,
    }
    let malformed = |detail: &str| TokenError::Malformed(detail.to_owned());
    if token.len() > verifier::LONGEST_TOKEN {
        return Err(malformed("too long"));
    }
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed("not three parts"));
    };
    let json = URL_SAFE_NO_PAD.decode(payload).map_err(|_| malformed("its claims are not Base64"))?;
    let claims: Payload =
        serde_json::from_slice(&json).map_err(|_| malformed("no claims `aud` and `exp` in it"))?;
    let audiences = match claims.aud {
        Audience::One(one) => vec![one],
        Audience::Several(several) => several,
    };
    Ok(Claimed { audiences, expires: system_time(i64::try_from(claims.exp).unwrap_or(i64::MAX)) })
}

/// Namespace and name of the service account behind a Kubernetes user name.
pub fn service_account(user: &str) -> Option<(String, String)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    Some((namespace.to_owned(), name.to_owned()))
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
    service_account(&sub)
}

#[cfg(test)]
mod tests;
