//! What is kept about the roots, and how it changes with time. No I/O.

use std::time::{Duration, SystemTime};

use culvert_identity::{TrustBundle, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use x509_parser::parse_x509_certificate;

use super::{CLOCK_SLACK, at, seconds};

const VERSION: u32 = 1;
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What is wrong with a root or with what is kept about the roots.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RootError {
    #[error("a root certificate does not parse: {0}")]
    Certificate(String),
    #[error("a root key is not usable: {0}")]
    Key(String),
    #[error("a root's key is not the key of its certificate")]
    OtherKey,
    #[error(
        "there must be exactly one active root and at most one announced; there are {active} and {announced}"
    )]
    Phases { active: usize, announced: usize },
    #[error("format version {0} is not known; this program writes {VERSION}")]
    Version(u32),
    #[error("making a root failed: {0}")]
    Generate(String),
}

/// A root that has never signed anything yet, or an intermediate with what leads to its root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NewRoot {
    /// That signs, PEM.
    pub(super) certificate: String,
    pub(super) key: String,
    #[serde(flatten)]
    pub(super) above: Above,
}

/// What stands above a certificate that signs; nothing above a root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Above {
    /// The certificate, if it is no root, and those between it and the root, PEM: sent along with what it signs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) chain: String,
    /// The roots, PEM; empty: the certificate itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) anchors: String,
}

impl NewRoot {
    /// A P-256 key and its self-signed certificate, ten years from `now`.
    pub(super) fn generate(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, RootError> {
        let failed = |error: rcgen::Error| RootError::Generate(error.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let serial = super::issuing::random_serial();
        let mut params = CertificateParams::default();
        params.not_before = (now - CLOCK_SLACK).into();
        params.not_after = (now + ROOT_LIFETIME).into();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
        // A name of its own, so that nobody has to try two roots for one signature.
        let name =
            format!("Culvert root {:02x}{:02x}{:02x}{:02x}", serial[0], serial[1], serial[2], serial[3]);
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self { certificate: certificate.pem(), key: key.serialize_pem(), above: Above::default() })
    }

    pub(super) fn check(&self) -> Result<(), RootError> {
        key_of(&self.certificate, &self.key).map(|_| ())
    }
}

/// What a root is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RootPhase {
    /// In the bundle, so that everybody knows it before it signs.
    Announced,
    /// In the bundle, and the one that signs.
    Active,
    /// In the bundle until everything it signed has ended; its key is gone.
    Retiring,
}

impl RootPhase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Announced => "announced",
            Self::Active => "active",
            Self::Retiring => "retiring",
        }
    }
}

/// The phase with what belongs to it. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub(super) enum Life {
    Announced { key: String, signs_from: u64 },
    Active { key: String },
    Retiring { until: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RootRecord {
    pub(super) certificate: String,
    #[serde(flatten)]
    pub(super) above: Above,
    #[serde(flatten)]
    pub(super) life: Life,
}

impl RootRecord {
    /// What peers must trust for what it signs.
    pub(super) fn anchors(&self) -> Result<Vec<CertificateDer<'static>>, RootError> {
        match self.above.anchors.as_str() {
            "" => Ok(vec![der_of(&self.certificate)?]),
            anchors => ders_of(anchors),
        }
    }

    pub(super) fn phase(&self) -> RootPhase {
        match self.life {
            Life::Announced { .. } => RootPhase::Announced,
            Life::Active { .. } => RootPhase::Active,
            Life::Retiring { .. } => RootPhase::Retiring,
        }
    }
}

/// Everything that must survive a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    pub(super) trust_domain: TrustDomain,
    /// Seconds; the longest lifetime ever allowed to a certificate while one of these roots signed.
    longest_lifetime: u64,
    pub(super) roots: Vec<RootRecord>,
}

/// A step in the life of the roots, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Announced { signs_from: SystemTime },
    Activated,
    Retired,
}

impl State {
    pub(super) fn new(trust_domain: TrustDomain, root: NewRoot) -> Self {
        let life = Life::Active { key: root.key };
        let root = RootRecord { certificate: root.certificate, above: root.above, life };
        Self { version: VERSION, trust_domain, longest_lifetime: 0, roots: vec![root] }
    }

    /// # Errors
    /// The first thing that is wrong.
    pub(super) fn check(&self) -> Result<(), RootError> {
        if self.version != VERSION {
            return Err(RootError::Version(self.version));
        }
        let count = |phase| self.roots.iter().filter(|root| root.phase() == phase).count();
        let (active, announced) = (count(RootPhase::Active), count(RootPhase::Announced));
        if active != 1 || announced > 1 {
            return Err(RootError::Phases { active, announced });
        }
        for root in &self.roots {
            match &root.life {
                Life::Announced { key, .. } | Life::Active { key } => {
                    key_of(&root.certificate, key)?;
                }
                Life::Retiring { .. } => {
                    der_of(&root.certificate)?;
                }
            }
            root.anchors()?;
            ders_of(&root.above.chain)?;
        }
        Ok(())
    }

    /// The active root's certificate and key, and what is sent along with what it signs.
    pub(super) fn active(&self) -> Result<(CertificateDer<'static>, KeyPair, String), RootError> {
        let active = self.roots.iter().find_map(|root| match &root.life {
            Life::Active { key } => Some((root, key)),
            Life::Announced { .. } | Life::Retiring { .. } => None,
        });
        let (root, key) = active.ok_or(RootError::Phases { active: 0, announced: 0 })?;
        let (certificate, key) = key_of(&root.certificate, key)?;
        Ok((certificate, key, root.above.chain.clone()))
    }

    /// Every root in force.
    pub(super) fn bundle(&self) -> Result<TrustBundle, RootError> {
        let roots = self.roots.iter().map(RootRecord::anchors).collect::<Result<Vec<_>, _>>()?;
        TrustBundle::from_der(roots.concat()).map_err(|error| RootError::Certificate(error.to_string()))
    }

    pub(super) fn announced(&self) -> Option<&RootRecord> {
        self.roots.iter().find(|root| root.phase() == RootPhase::Announced)
    }

    /// Certificates up to `lifetime` will be signed from now on.
    pub(super) fn allow_lifetime(&mut self, lifetime: Duration) {
        self.longest_lifetime = self.longest_lifetime.max(lifetime.as_secs());
    }

    /// Takes in the next root, unless it is here already or another is on its way. One whose roots everybody trusts already
    /// (a new intermediate) signs at once.
    pub(super) fn announce(&mut self, next: &NewRoot, now: SystemTime, overlap: Duration) -> Option<Step> {
        if self.announced().is_some() || self.roots.iter().any(|root| root.certificate == next.certificate) {
            return None;
        }
        let mut record = RootRecord {
            certificate: next.certificate.clone(),
            above: next.above.clone(),
            life: Life::Announced { key: next.key.clone(), signs_from: 0 },
        };
        let known = self.bundle().ok()?;
        let is_known = record.anchors().ok()?.iter().all(|anchor| known.roots().contains(anchor));
        let signs_from = seconds(if is_known { now } else { now + overlap });
        record.life = Life::Announced { key: next.key.clone(), signs_from };
        self.roots.push(record);
        Some(Step::Announced { signs_from: at(signs_from) })
    }

    /// Everything that is due at `now`. `next` is what was put down to be the next root; `is_public` says whether others can
    /// see a bundle's roots.
    pub(super) fn due(
        &self,
        next: Option<&NewRoot>,
        is_public: impl Fn(&[CertificateDer<'static>]) -> bool,
        now: SystemTime,
        overlap: Duration,
    ) -> Result<(Self, Vec<Step>), RootError> {
        let mut state = self.clone();
        let mut steps = Vec::new();
        if let Some(next) = next {
            steps.extend(state.announce(next, now, overlap));
        }
        // It may have been taken in just before a crash.
        let announced = state.announced().map(RootRecord::anchors).transpose()?;
        let hidden = announced.is_some_and(|anchors| !is_public(&anchors));
        if hidden {
            state.announce_again(now, overlap);
        }
        steps.extend(state.advance(now));
        Ok((state, steps))
    }

    /// The announced root was not to be seen by others until now: its overlap starts anew.
    pub(super) fn announce_again(&mut self, now: SystemTime, overlap: Duration) {
        for root in &mut self.roots {
            if let Life::Announced { signs_from, .. } = &mut root.life {
                *signs_from = (*signs_from).max(seconds(now + overlap));
            }
        }
    }

    /// Does what is due at `now`.
    pub(super) fn advance(&mut self, now: SystemTime) -> Vec<Step> {
        let mut steps = Vec::new();
        let now_seconds = seconds(now);
        let due = self
            .roots
            .iter()
            .any(|root| matches!(root.life, Life::Announced { signs_from, .. } if signs_from <= now_seconds));
        if due {
            let until = seconds(now + Duration::from_secs(self.longest_lifetime) + CLOCK_SLACK);
            for root in &mut self.roots {
                root.life = match std::mem::replace(&mut root.life, Life::Retiring { until }) {
                    Life::Announced { key, .. } => Life::Active { key },
                    // Its key is dropped with it: it never signs again.
                    Life::Active { .. } => Life::Retiring { until },
                    retiring @ Life::Retiring { .. } => retiring,
                };
            }
            steps.push(Step::Activated);
        }
        let before = self.roots.len();
        self.roots.retain(|root| !matches!(root.life, Life::Retiring { until } if until <= now_seconds));
        if self.roots.len() < before {
            steps.push(Step::Retired);
        }
        steps
    }
}

/// Every certificate of a PEM text.
pub(super) fn ders_of(pem: &str) -> Result<Vec<CertificateDer<'static>>, RootError> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    all.map_err(|error| RootError::Certificate(format!("{error:?}")))
}

pub(super) fn der_of(pem: &str) -> Result<CertificateDer<'static>, RootError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| RootError::Certificate(format!("{error:?}")))
}

/// When a root ends.
pub(super) fn end_of(der: &CertificateDer<'_>) -> Result<SystemTime, RootError> {
    let (_, parsed) =
        parse_x509_certificate(der).map_err(|error| RootError::Certificate(error.to_string()))?;
    Ok(at(u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0)))
}

pub(super) fn key_of(certificate: &str, key: &str) -> Result<(CertificateDer<'static>, KeyPair), RootError> {
    let der = der_of(certificate)?;
    let key = KeyPair::from_pem(key).map_err(|error| RootError::Key(error.to_string()))?;
    let (_, parsed) =
        parse_x509_certificate(&der).map_err(|error| RootError::Certificate(error.to_string()))?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
        return Err(RootError::OtherKey);
    }
    Ok((der, key))
}
