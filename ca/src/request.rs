//! Checks certificate requests. Only the public key is ever taken from one.

use culvert_identity::{Identity, IdentityError};
use rcgen::SubjectPublicKeyInfo;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384};
use x509_parser::prelude::FromDer;

/// No honest request is longer.
const LARGEST: usize = 16 * 1024;
/// A point on P-256 or P-384, uncompressed.
const POINT_LENGTHS: [usize; 2] = [65, 97];

/// What is wrong with a certificate request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CsrProblem {
    #[error("longer than {LARGEST} bytes")]
    TooLong,
    #[error("not a PKCS#10 request in PEM")]
    Malformed,
    #[error("the key must be an elliptic curve key on P-256 or P-384")]
    KeyType,
    #[error("it is not signed with its own key")]
    Signature,
    #[error("it must name exactly one subject alternative name, a URI; it names {0}")]
    Names(usize),
    #[error("its only subject alternative name is not a URI")]
    NotAUri,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("it asks to become a certificate authority")]
    Authority,
}

/// A request that is in order.
#[derive(Debug)]
pub struct CheckedRequest {
    /// The identity it names.
    pub identity: Identity,
    pub key: SubjectPublicKeyInfo,
}

/// # Errors
/// The first thing that is wrong with it.
pub fn check(pem: &str) -> Result<CheckedRequest, CsrProblem> {
    if pem.len() > LARGEST {
        return Err(CsrProblem::TooLong);
    }
    let der =
        CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| CsrProblem::Malformed)?;
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrProblem::Malformed)?;
    if !rest.is_empty() {
        return Err(CsrProblem::Malformed);
    }
    let key = checked_key(&request)?;
    request.verify_signature().map_err(|_| CsrProblem::Signature)?;
    Ok(CheckedRequest { identity: named(&request)?, key })
}

fn checked_key(request: &X509CertificationRequest<'_>) -> Result<SubjectPublicKeyInfo, CsrProblem> {
    let info = &request.certification_request_info.subject_pki;
    let curve = info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let known_curve = curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384);
    let point = &info.subject_public_key.data;
    if info.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY
        || !known_curve
        || !POINT_LENGTHS.contains(&point.len())
    {
        return Err(CsrProblem::KeyType);
    }
    SubjectPublicKeyInfo::from_der(info.raw).map_err(|_| CsrProblem::KeyType)
}

/// The one identity named, over all extension requests: a second place must not hide another name.
fn named(request: &X509CertificationRequest<'_>) -> Result<Identity, CsrProblem> {
    let mut names = Vec::new();
    for attribute in request.certification_request_info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(wanted) = attribute.parsed_attribute() else { continue };
        for extension in &wanted.extensions {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => names.extend(&san.general_names),
                ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                    return Err(CsrProblem::Authority);
                }
                ParsedExtension::ParseError { .. } => return Err(CsrProblem::Malformed),
                // Nothing else is copied, so nothing else matters.
                _ => {}
            }
        }
    }
    match names.as_slice() {
        [GeneralName::URI(uri)] => Ok(uri.parse()?),
        [_] => Err(CsrProblem::NotAUri),
        several => Err(CsrProblem::Names(several.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_identity::csr::CertificateRequest;
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, IsCa, KeyPair,
        PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData,
        SanType, SignatureAlgorithm,
    };

    const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn params(names: Vec<SanType>) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params
    }

    fn signed(params: &CertificateParams, algorithm: &'static SignatureAlgorithm) -> String {
        let key = KeyPair::generate_for(algorithm).unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    fn problem(params: &CertificateParams) -> CsrProblem {
        check(&signed(params, &PKCS_ECDSA_P256_SHA256)).unwrap_err()
    }

    #[test]
    fn our_own_requests_pass() {
        let request = CertificateRequest::new(&CART.parse().unwrap()).unwrap();
        assert_eq!(check(&request.pem).unwrap().identity.uri(), CART);
    }

    #[test]
    fn only_curves_p256_and_p384_pass() {
        let params = params(vec![uri(CART)]);
        check(&signed(&params, &PKCS_ECDSA_P256_SHA256)).unwrap();
        check(&signed(&params, &PKCS_ECDSA_P384_SHA384)).unwrap();
        for algorithm in [&PKCS_RSA_SHA256, &PKCS_ED25519, &rcgen::PKCS_ECDSA_P521_SHA512] {
            assert_eq!(check(&signed(&params, algorithm)).unwrap_err(), CsrProblem::KeyType);
        }
    }

    #[test]
    fn exactly_one_identity_must_be_named() {
        let till = "spiffe://cluster.local/ns/shop/sa/till";
        let dns = || SanType::DnsName("shop.example".try_into().unwrap());
        assert_eq!(problem(&params(vec![])), CsrProblem::Names(0));
        assert_eq!(problem(&params(vec![uri(CART), uri(till)])), CsrProblem::Names(2));
        assert_eq!(problem(&params(vec![uri(CART), dns()])), CsrProblem::Names(2));
        assert_eq!(problem(&params(vec![dns()])), CsrProblem::NotAUri);
        assert!(matches!(problem(&params(vec![uri("spiffe://x/y")])), CsrProblem::Identity(_)));
    }

    #[test]
    fn a_second_extension_cannot_hide_a_name() {
        let mut hidden = params(vec![uri(CART)]);
        // SubjectAltName ::= SEQUENCE { [6] "a:b" }
        let second =
            CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 5, 0x86, 3, b'a', b':', b'b']);
        hidden.custom_extensions = vec![second];
        assert_eq!(problem(&hidden), CsrProblem::Names(2));
    }

    #[test]
    fn nobody_becomes_an_authority() {
        let mut authority = params(vec![uri(CART)]);
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        assert_eq!(problem(&authority), CsrProblem::Authority);
    }

    #[test]
    fn a_request_for_a_key_that_is_not_its_own_is_refused() {
        let (one, two) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let request = params(vec![uri(CART)]).serialize_request(&one).unwrap();
        let mut der = request.der().to_vec();
        let own = one.der_bytes();
        let at = der.windows(own.len()).position(|window| window == own).unwrap();
        der[at..at + own.len()].copy_from_slice(two.der_bytes());
        let forged = rcgen_pem(&der);
        assert_eq!(check(&forged).unwrap_err(), CsrProblem::Signature);
    }

    /// PEM of a request, through the only writer at hand.
    fn rcgen_pem(der: &[u8]) -> String {
        let key = KeyPair::generate().unwrap();
        let template = params(vec![uri(CART)]).serialize_request(&key).unwrap().pem().unwrap();
        let (head, tail) = (template.lines().next().unwrap(), template.lines().last().unwrap());
        format!("{head}\n{}\n{tail}\n", base64(der))
    }

    fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let word =
                chunk.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
            for index in 0..4 {
                let digit = DIGITS[(word >> (18 - 6 * index)) as usize & 63] as char;
                text.push(if index <= chunk.len() { digit } else { '=' });
            }
        }
        text
    }

    #[test]
    fn garbage_is_refused() {
        let long = "-".repeat(LARGEST + 1);
        assert_eq!(check(&long).unwrap_err(), CsrProblem::TooLong);
        let pem = CertificateRequest::new(&CART.parse().unwrap()).unwrap().pem;
        for garbage in
            ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
        {
            assert_eq!(check(garbage).unwrap_err(), CsrProblem::Malformed);
        }
        assert_eq!(check(&pem[..pem.len() / 2]).unwrap_err(), CsrProblem::Malformed);
    }
}
