//! Signing with the active root.

use std::time::{Duration, SystemTime};

use culvert_identity::{Identity, TrustBundle};
use rand::RngCore;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use thiserror::Error;

use super::CLOCK_SLACK;
use super::state::{RootError, RootPhase, State, der_of, end_of};

/// 128 bits, as many as fit without a sign bit in the way.
const SERIAL_BYTES: usize = 16;

/// Why nothing was signed.
#[derive(Debug, Error)]
pub enum SignError {
    #[error("the cryptographic library: {0}")]
    Library(#[from] rcgen::Error),
    #[error("the root certificate has expired; replace it with `culvert-ca rotate-root`")]
    RootExpired,
}

/// A signed certificate.
#[derive(Clone, Debug)]
pub struct Signed {
    /// PEM of the certificate alone.
    pub certificate: String,
    /// PEM of what leads from it to a root: empty when a root has signed it.
    pub chain: String,
    /// Hexadecimal digits.
    pub serial: String,
    pub not_after: SystemTime,
}

/// One root, as metrics show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootSummary {
    pub phase: RootPhase,
    pub not_after: SystemTime,
}

/// The authority at one moment: the root that signs and the bundle in force. Immutable.
pub struct Issuing {
    issuer: Issuer<'static, KeyPair>,
    chain: String,
    root_not_after: SystemTime,
    bundle: TrustBundle,
    bundle_pem: String,
    roots: Vec<RootSummary>,
}

impl Issuing {
    pub(super) fn of(state: &State) -> Result<Self, RootError> {
        let (root, key, chain) = state.active()?;
        let issuer = Issuer::from_ca_cert_der(&root, key)
            .map_err(|error| RootError::Certificate(error.to_string()))?;
        let bundle = state.bundle()?;
        let summary = |record: &super::state::RootRecord| {
            let not_after = end_of(&der_of(&record.certificate)?)?;
            Ok(RootSummary { phase: record.phase(), not_after })
        };
        Ok(Self {
            issuer,
            chain,
            root_not_after: end_of(&root)?,
            bundle_pem: bundle.pem(),
            bundle,
            roots: state.roots.iter().map(summary).collect::<Result<_, RootError>>()?,
        })
    }

    /// Every root in force.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The same as PEM.
    pub fn bundle_pem(&self) -> &str {
        &self.bundle_pem
    }

    pub fn roots(&self) -> &[RootSummary] {
        &self.roots
    }

    /// When the root that signs ends.
    pub fn root_not_after(&self) -> SystemTime {
        self.root_not_after
    }

    /// A certificate for exactly one identity and this key, for clients and servers, valid from a minute before `now`
    /// for `lifetime` after it, never beyond the root.
    ///
    /// # Errors
    /// When the root has expired or the cryptographic library fails.
    pub fn sign(
        &self,
        identity: &Identity,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Signed, SignError> {
        if self.root_not_after <= now {
            return Err(SignError::RootExpired);
        }
        let not_after = (now + lifetime).min(self.root_not_after);
        let serial = random_serial();
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = (now - CLOCK_SLACK).into();
        params.not_after = not_after.into();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.uri().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(Signed {
            certificate: certificate.pem(),
            chain: self.chain.clone(),
            serial: hexadecimal(&serial),
            not_after,
        })
    }
}

/// Random, positive, and always of the same length.
pub(super) fn random_serial() -> [u8; SERIAL_BYTES] {
    let mut serial = [0; SERIAL_BYTES];
    rand::rng().fill_bytes(&mut serial);
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
