//! An authority for tests: signs whatever a test wants, right or wrong.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{TrustBundle, WorkloadCertificate, pem};

/// What a test's certificate says.
#[derive(Clone, Debug)]
pub struct LeafSpec {
    pub uris: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub usages: Vec<ExtendedKeyUsagePurpose>,
}

impl LeafSpec {
    /// A proper certificate for `uri`, valid from a minute ago for an hour.
    pub fn proper(uri: &str) -> Self {
        let now = SystemTime::now();
        Self {
            uris: vec![uri.to_owned()],
            not_before: now - Duration::from_secs(60),
            not_after: now + Duration::from_secs(3600),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }
}

/// A root certificate with its key.
pub struct TestAuthority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

impl TestAuthority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).expect("a root");
        Self { der: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    pub fn pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.der)
    }

    pub fn bundle(&self) -> TrustBundle {
        TrustBundle::from_der(vec![self.der.clone()]).expect("a bundle")
    }

    /// A certificate and its key, unchecked.
    pub fn sign(&self, spec: &LeafSpec) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = spec.not_before.into();
        params.not_after = spec.not_after.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = spec.usages.clone();
        params.subject_alt_names =
            spec.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().expect("ASCII"))).collect();
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        (certificate.der().clone(), key)
    }

    /// A proper certificate.
    pub fn leaf(&self, uri: &str) -> WorkloadCertificate {
        self.leaf_of(&LeafSpec::proper(uri))
    }

    pub fn leaf_of(&self, spec: &LeafSpec) -> WorkloadCertificate {
        let (certificate, key) = self.sign(spec);
        WorkloadCertificate::new(vec![certificate], key).expect("a workload certificate")
    }
}
