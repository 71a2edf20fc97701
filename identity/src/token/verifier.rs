use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use thiserror::Error;

use super::{Caller, Claims, subject};
use crate::certificate::system_time;
use crate::files::Stamp;

/// Clocks may differ by this many seconds.
const LEEWAY_SECONDS: u64 = 5;
/// No service account token is longer; a bound on what strangers make us parse.
pub(super) const LONGEST_TOKEN: usize = 16 * 1024;

/// Why a key file cannot be used.
#[derive(Debug, Error)]
pub enum VerifierError {
    #[error("{path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path}: not a JSON Web Key Set: {error}")]
    Syntax { path: PathBuf, error: serde_json::Error },
    #[error("{path}: no usable key in it: a key needs `kid` and must be RSA, or EC on P-256")]
    NoKey { path: PathBuf },
}

/// Why a token is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    #[error("not a token: {0}")]
    Malformed(String),
    #[error("the token names no key (kid)")]
    NoKeyId,
    #[error("the token is signed with a key that is not known here")]
    UnknownKey,
    #[error("the token's algorithm is not the one of its key")]
    Algorithm,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token is expired")]
    Expired,
    #[error("the token is not valid yet")]
    Immature,
    #[error("the token is of another issuer")]
    Issuer,
    #[error("the token is meant for another audience")]
    Audience,
    #[error("the token's subject does not agree with its service account")]
    Subject,
    /// Judged by the API server.
    #[error("the API server does not accept the token: {0}")]
    NotAuthenticated(String),
    /// No verdict on the token.
    #[error("the token cannot be checked at present: {0}; ask again")]
    Unavailable(String),
}

/// Judges tokens by the keys of a JWKS file. Only ES256 and RS256 with a key id.
pub struct Verifier {
    path: PathBuf,
    issuer: String,
    audience: String,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    /// The version last looked at, good or bad; `None` when it could not be looked at.
    stamp: Option<Stamp>,
    keys: Arc<HashMap<String, Key>>,
}

struct Key {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Verifier {
    /// Reads the keys. The file is read again whenever it has changed; a bad version leaves the last good keys.
    ///
    /// # Errors
    /// When the file cannot be read or holds no usable key.
    pub fn open(
        path: impl Into<PathBuf>,
        issuer: impl Into<String>,
        audience: impl Into<String>,
    ) -> Result<Self, VerifierError> {
        let path = path.into();
        // Taken before the content: a file replaced in between is read once more, not missed.
        let stamp = Stamp::of(&path).ok();
        let keys = Arc::new(load(&path)?);
        let loaded = Mutex::new(Loaded { stamp, keys });
        Ok(Self { path, issuer: issuer.into(), audience: audience.into(), loaded })
    }

    /// Who holds this token.
    ///
    /// # Errors
    /// Why the token is not to be believed. Nothing of the token itself is in the message.
    pub fn verify(&self, token: &str) -> Result<Caller, TokenError> {
        if token.len() > LONGEST_TOKEN {
            return Err(TokenError::Malformed("too long".to_owned()));
        }
        let header = decode_header(token).map_err(|error| refusal(&error))?;
        let id = header.kid.ok_or(TokenError::NoKeyId)?;
        let keys = self.keys();
        let key = keys.get(&id).ok_or(TokenError::UnknownKey)?;
        let claims = decode::<Claims>(token, &key.key, &self.validation(key.algorithm))
            .map_err(|error| refusal(&error))?
            .claims;
        let kubernetes = claims.kubernetes;
        if claims.sub != subject(&kubernetes.namespace, &kubernetes.serviceaccount.name) {
            return Err(TokenError::Subject);
        }
        Ok(Caller {
            namespace: kubernetes.namespace,
            service_account: kubernetes.serviceaccount.name,
            pod: kubernetes.pod,
            node: kubernetes.node,
            expires: system_time(i64::try_from(claims.exp).unwrap_or(i64::MAX)),
        })
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation
    }

    fn keys(&self) -> Arc<HashMap<String, Key>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp::of(&self.path).ok();
        if stamp != loaded.stamp {
            loaded.stamp = stamp;
            match load(&self.path) {
                Ok(keys) => {
                    tracing::info!(path = %self.path.display(), keys = keys.len(), "token keys changed");
                    loaded.keys = Arc::new(keys);
                }
                Err(error) => {
                    tracing::warn!(%error, "token keys kept as they were: their file is not usable")
                }
            }
        }
        loaded.keys.clone()
    }
}

fn load(path: &Path) -> Result<HashMap<String, Key>, VerifierError> {
    let json = std::fs::read(path).map_err(|error| VerifierError::Read { path: path.to_owned(), error })?;
    let set: JwkSet = serde_json::from_slice(&json)
        .map_err(|error| VerifierError::Syntax { path: path.to_owned(), error })?;
    let keys: HashMap<_, _> = set.keys.iter().filter_map(usable).collect();
    if keys.is_empty() {
        return Err(VerifierError::NoKey { path: path.to_owned() });
    }
    Ok(keys)
}

/// Keys for other purposes or of other kinds may stand in the same file; they are not ours.
fn usable(jwk: &Jwk) -> Option<(String, Key)> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        _ => return None,
    };
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return None;
    }
    Some((jwk.common.key_id.clone()?, Key { algorithm, key: DecodingKey::from_jwk(jwk).ok()? }))
}

fn refusal(error: &jsonwebtoken::errors::Error) -> TokenError {
    match error.kind() {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => TokenError::Algorithm,
        ErrorKind::ExpiredSignature => TokenError::Expired,
        ErrorKind::ImmatureSignature => TokenError::Immature,
        ErrorKind::InvalidIssuer => TokenError::Issuer,
        ErrorKind::InvalidAudience => TokenError::Audience,
        ErrorKind::MissingRequiredClaim(claim) => TokenError::Malformed(format!("claim {claim} is missing")),
        _ => TokenError::Malformed("it does not parse".to_owned()),
    }
}
