//! Workload certificates: X.509 certificates that carry exactly one SPIFFE identity.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::spiffe::{Identity, IdentityError};
use crate::{TrustBundle, tls};

/// Longest chain taken: leaf and intermediates.
const LONGEST_CHAIN: usize = 8;

/// Why something is not a usable workload certificate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CertificateError {
    #[error("there is no certificate")]
    Empty,
    #[error("the chain is longer than {LONGEST_CHAIN}")]
    ChainTooLong,
    #[error("the certificate does not parse: {0}")]
    Malformed(String),
    #[error("the private key is not usable: {0}")]
    Key(String),
    #[error("the private key belongs to another certificate")]
    OtherKey,
    #[error("the certificate names {0} URIs; a workload's has exactly one")]
    Uris(usize),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the certificate's chain is not trusted: {0}")]
    Untrusted(String),
}

/// A workload's certificate chain and key, checked to belong together. Cheap to clone; the key is never printed.
#[derive(Clone)]
pub struct WorkloadCertificate {
    identity: Identity,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: Arc<str>,
    key: Arc<CertifiedKey>,
}

impl WorkloadCertificate {
    /// `chain` starts with the workload's certificate, intermediates follow, no root. Time is not checked here: a
    /// certificate may be looked at after its end ([`WorkloadCertificate::verify`]).
    ///
    /// # Errors
    /// When the certificate does not parse, does not carry exactly one SPIFFE identity, or the key is not its key.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, CertificateError> {
        let leaf = chain.first().ok_or(CertificateError::Empty)?;
        if chain.len() > LONGEST_CHAIN {
            return Err(CertificateError::ChainTooLong);
        }
        let facts = LeafFacts::of(leaf)?;
        let key = CertifiedKey::from_der(chain, key, &tls::provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => CertificateError::OtherKey,
            other => CertificateError::Key(other.to_string()),
        })?;
        Ok(Self {
            identity: facts.identity,
            not_before: facts.not_before,
            not_after: facts.not_after,
            serial: facts.serial.into(),
            key: Arc::new(key),
        })
    }

    /// The same from PEM.
    ///
    /// # Errors
    /// As [`WorkloadCertificate::new`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| CertificateError::Malformed(format!("{error:?}")))?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| CertificateError::Key(format!("{error:?}")))?;
        Self::new(chain, key)
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The serial number in lower-case hexadecimal digits.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The workload's certificate, then intermediates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// Whether a peer with `bundle` would accept this certificate at `now`, as client and as server.
    ///
    /// # Errors
    /// Why not.
    pub fn verify(&self, bundle: &TrustBundle, now: SystemTime) -> Result<(), CertificateError> {
        let now =
            UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO));
        tls::verify_both_usages(self.chain(), bundle, now)
            .map_err(|error| CertificateError::Untrusted(error.to_string()))
    }

    pub(crate) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }
}

impl std::fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WorkloadCertificate({}, serial {})", self.identity, self.serial)
    }
}

/// What is read from a leaf certificate, its own or a peer's.
pub(crate) struct LeafFacts {
    pub(crate) identity: Identity,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) serial: String,
}

impl LeafFacts {
    pub(crate) fn of(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let (rest, certificate) =
            parse_x509_certificate(der).map_err(|error| CertificateError::Malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CertificateError::Malformed("bytes after its end".to_owned()));
        }
        let validity = certificate.validity();
        Ok(Self {
            identity: identity_of(&certificate)?,
            not_before: system_time(validity.not_before.timestamp()),
            not_after: system_time(validity.not_after.timestamp()),
            serial: certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

/// SPIFFE X.509-SVID, section 2: exactly one URI, and it is the identity.
fn identity_of(certificate: &X509Certificate<'_>) -> Result<Identity, CertificateError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| CertificateError::Malformed(error.to_string()))?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.count()) {
        (Some(uri), 0) => Ok(uri.parse()?),
        (first, more) => Err(CertificateError::Uris(usize::from(first.is_some()) + more)),
    }
}

/// Seconds since 1970, times before that cut to it.
pub(crate) fn system_time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{LeafSpec, TestAuthority};

    const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

    #[test]
    fn a_proper_certificate_tells_its_identity_and_times() {
        let authority = TestAuthority::new("root");
        let spec = LeafSpec::proper(CART);
        let leaf = authority.leaf_of(&spec);
        assert_eq!(leaf.identity().uri(), CART);
        let whole = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(whole(leaf.not_after()), whole(spec.not_after));
        assert_eq!(whole(leaf.not_before()), whole(spec.not_before));
        leaf.verify(&authority.bundle(), SystemTime::now()).unwrap();
        let late = spec.not_after + Duration::from_secs(5);
        assert!(matches!(leaf.verify(&authority.bundle(), late), Err(CertificateError::Untrusted(_))));
        let stranger = TestAuthority::new("root").bundle();
        assert!(matches!(leaf.verify(&stranger, SystemTime::now()), Err(CertificateError::Untrusted(_))));
    }

    #[test]
    fn a_certificate_for_one_direction_only_is_not_enough() {
        let authority = TestAuthority::new("root");
        let mut spec = LeafSpec::proper(CART);
        spec.usages.truncate(1);
        let leaf = authority.leaf_of(&spec);
        assert!(leaf.verify(&authority.bundle(), SystemTime::now()).is_err());
    }

    #[test]
    fn anything_but_one_identity_is_refused() {
        let authority = TestAuthority::new("root");
        let with = |uris: &[&str]| {
            let mut spec = LeafSpec::proper(CART);
            spec.uris = uris.iter().map(|&uri| uri.to_owned()).collect();
            let (certificate, key) = authority.sign(&spec);
            WorkloadCertificate::new(vec![certificate], key).err()
        };
        assert_eq!(with(&[]), Some(CertificateError::Uris(0)));
        assert_eq!(with(&[CART, "spiffe://cluster.local/ns/shop/sa/till"]), Some(CertificateError::Uris(2)));
        assert!(matches!(with(&["https://shop.example"]), Some(CertificateError::Identity(_))));
        assert_eq!(with(&[CART]), None);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let authority = TestAuthority::new("root");
        let (certificate, _) = authority.sign(&LeafSpec::proper(CART));
        let (_, key) = authority.sign(&LeafSpec::proper(CART));
        assert_eq!(WorkloadCertificate::new(vec![certificate], key).unwrap_err(), CertificateError::OtherKey);
    }
}
