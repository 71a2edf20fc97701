use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, SystemTimeError};

use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use thiserror::Error;

use super::{Audience, Claims, KubernetesClaims, subject};
use crate::files::{self, Readers};

/// Why no token was minted.
#[derive(Debug, Error)]
pub enum IssuerError {
    #[error("the signing key is not usable: {0}")]
    Key(String),
    #[error("no token: {0}")]
    Token(#[from] jsonwebtoken::errors::Error),
    #[error("the clock stands before 1970")]
    Clock(#[from] SystemTimeError),
    #[error(transparent)]
    File(#[from] io::Error),
}

/// Mints tokens that look like those of a Kubernetes API server. For the sandbox.
pub struct Issuer {
    name: String,
    key_pem: String,
    key: EncodingKey,
    id: String,
    jwks: String,
}

impl Issuer {
    /// With a new P-256 key; `name` becomes the claim `iss`.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn generate(name: impl Into<String>) -> Result<Self, IssuerError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|error| IssuerError::Key(error.to_string()))?;
        Self::from_pem(name, &key.serialize_pem())
    }

    /// With a kept key, as [`Issuer::key_pem`] gave it.
    ///
    /// # Errors
    /// When it is not a P-256 key in PKCS#8 PEM.
    pub fn from_pem(name: impl Into<String>, key_pem: &str) -> Result<Self, IssuerError> {
        let unusable = |error: jsonwebtoken::errors::Error| IssuerError::Key(error.to_string());
        let key = EncodingKey::from_ec_pem(key_pem.as_bytes()).map_err(unusable)?;
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).map_err(unusable)?;
        let id = jwk.thumbprint(ThumbprintHash::SHA256).map_err(unusable)?;
        jwk.common.key_id = Some(id.clone());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        let jwks = serde_json::to_string(&JwkSet { keys: vec![jwk] })
            .map_err(|error| IssuerError::Key(error.to_string()))?;
        Ok(Self { name: name.into(), key_pem: key_pem.to_owned(), key, id, jwks })
    }

    /// The private key, PKCS#8 PEM. A secret.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The public key as a JSON Web Key Set.
    pub fn jwks(&self) -> &str {
        &self.jwks
    }

    /// Writes the key set atomically, readable by everybody.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_jwks(&self, path: &Path) -> io::Result<()> {
        files::replace(path, self.jwks.as_bytes(), Readers::Everybody)
    }

    /// A token for `audience`, valid from now for `lifetime`.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue(
        &self,
        holder: KubernetesClaims,
        audience: &str,
        lifetime: Duration,
    ) -> Result<String, IssuerError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        self.sign(&Claims {
            iss: self.name.clone(),
            sub: subject(&holder.namespace, &holder.serviceaccount.name),
            aud: Audience::Several(vec![audience.to_owned()]),
            exp: now + lifetime.as_secs(),
            iat: Some(now),
            nbf: Some(now),
            kubernetes: holder,
        })
    }

    /// A token with exactly these claims, right or wrong.
    ///
    /// # Errors
    /// When signing fails.
    pub fn sign(&self, claims: &Claims) -> Result<String, IssuerError> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.clone());
        Ok(encode(&header, claims, &self.key)?)
    }
}
