//! Certificate signing requests for one identity.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;

use crate::Identity;

/// Why no request could be made.
#[derive(Debug, Error)]
#[error("no certificate request for {identity}: {detail}")]
pub struct CsrError {
    identity: Identity,
    detail: String,
}

/// A certificate request and the key it was made for, which never leaves the process.
pub struct CertificateRequest {
    /// PEM of a PKCS#10 request.
    pub pem: String,
    pub key: PrivateKeyDer<'static>,
}

impl CertificateRequest {
    /// A new P-256 key, and a request with an empty subject and exactly one, critical, subject alternative name: the
    /// identity.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn new(identity: &Identity) -> Result<Self, CsrError> {
        Self::with_new_key(identity)
            .map_err(|error| CsrError { identity: identity.clone(), detail: error.to_string() })
    }

    fn with_new_key(identity: &Identity) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        // With an empty subject the name extension must be critical (RFC 5280, 4.2.1.6), and rcgen makes it so.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.uri().try_into()?)];
        let pem = params.serialize_request(&key)?.pem()?;
        Ok(Self { pem, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::CertificateSigningRequestDer;
    use rustls::pki_types::pem::PemObject;
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::cri_attributes::ParsedCriAttribute;
    use x509_parser::extensions::{GeneralName, ParsedExtension};
    use x509_parser::prelude::FromDer;

    #[test]
    fn a_request_names_one_identity_and_nothing_else() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let request = CertificateRequest::new(&identity).unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(request.pem.as_bytes()).unwrap();
        let (_, parsed) = X509CertificationRequest::from_der(&der).unwrap();
        let info = &parsed.certification_request_info;
        assert_eq!(info.subject.iter().count(), 0);
        let attributes: Vec<_> = info.iter_attributes().collect();
        let [attribute] = attributes.as_slice() else { panic!("{attributes:?}") };
        let ParsedCriAttribute::ExtensionRequest(wanted) = attribute.parsed_attribute() else { panic!() };
        let [extension] = wanted.extensions.as_slice() else { panic!() };
        assert!(extension.critical);
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { panic!() };
        assert_eq!(names.general_names, vec![GeneralName::URI(identity.uri())]);
    }

    #[test]
    fn each_request_has_its_own_key() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let (one, two) =
            (CertificateRequest::new(&identity).unwrap(), CertificateRequest::new(&identity).unwrap());
        assert_ne!(one.key.secret_der(), two.key.secret_der());
    }
}
