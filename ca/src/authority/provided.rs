//! A root or an intermediate that others look after, in a directory as cert-manager and Kubernetes write TLS secrets:
//! `tls.crt` (the certificate, then what stands between it and its root), `tls.key`, and `ca.crt` (the roots). Read again
//! whenever it may have changed; a new one takes over as any next root does.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use rustls::pki_types::CertificateDer;
use thiserror::Error;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::state::{Above, NewRoot, RootError, ders_of, end_of, key_of};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOTS: &str = "ca.crt";

/// Why what is provided cannot be used. What was in force stays in force.
#[derive(Debug, Error)]
pub enum ProvidedError {
    #[error("{path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path}: {error}")]
    Content { path: PathBuf, error: RootError },
    #[error("{path}: {detail}")]
    Unusable { path: PathBuf, detail: String },
}

/// The directory.
#[derive(Clone, Debug)]
pub struct Provided {
    directory: PathBuf,
}

impl Provided {
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// What is there now, complete and fit to sign.
    pub(super) fn read(&self, now: SystemTime) -> Result<NewRoot, ProvidedError> {
        let file = |name: &str| {
            let path = self.directory.join(name);
            fs::read_to_string(&path).map_err(|error| ProvidedError::Read { path, error })
        };
        let (certificates, key) = (file(CERTIFICATE)?, file(KEY)?);
        let roots = match file(ROOTS) {
            Err(ProvidedError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                String::new()
            }
            other => other?,
        };
        let about = |name: &str| {
            let path = self.directory.join(name);
            move |error| ProvidedError::Content { path: path.clone(), error }
        };
        let unusable = |name: &str, detail: &str| ProvidedError::Unusable {
            path: self.directory.join(name),
            detail: detail.to_owned(),
        };
        let mut chain = ders_of(&certificates).map_err(about(CERTIFICATE))?;
        let mut anchors = ders_of(&roots).map_err(about(ROOTS))?;
        let first = chain.first().cloned().ok_or_else(|| unusable(CERTIFICATE, "no certificate in it"))?;
        if anchors.is_empty() {
            // Some write the root at the end of the chain instead.
            anchors.extend(chain.last().filter(|last| is_signed_by(last, last)).cloned());
        }
        chain.retain(|certificate| !anchors.contains(certificate));
        check(&first, now).map_err(|detail| unusable(CERTIFICATE, &detail))?;
        if !leads_to(&first, &chain, &anchors) {
            let detail =
                "does not lead to a root: put those between it and the root after it, and the root in ca.crt";
            return Err(unusable(CERTIFICATE, detail));
        }
        let certificate = encode(&[first]);
        key_of(&certificate, &key).map_err(about(KEY))?;
        Ok(NewRoot { certificate, key, above: Above { chain: encode(&chain), anchors: encode(&anchors) } })
    }
}

fn check(certificate: &CertificateDer<'_>, now: SystemTime) -> Result<(), String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    if !parsed.is_ca() {
        return Err(
            "not a certificate of an authority (basicConstraints; cert-manager: isCA: true)".to_owned()
        );
    }
    let usage = parsed.key_usage().map_err(|error| error.to_string())?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("may not sign certificates (keyUsage; cert-manager: usages: [cert sign])".to_owned());
    }
    if end_of(certificate).map_err(|error| error.to_string())? <= now {
        return Err("has expired".to_owned());
    }
    Ok(())
}

fn leads_to(
    first: &CertificateDer<'_>,
    chain: &[CertificateDer<'_>],
    anchors: &[CertificateDer<'_>],
) -> bool {
    if anchors.contains(first) {
        return true;
    }
    // The chain has the certificate itself at its head.
    let linked = chain.windows(2).all(|pair| is_signed_by(&pair[0], &pair[1]));
    linked && chain.last().is_some_and(|last| anchors.iter().any(|anchor| is_signed_by(last, anchor)))
}

fn is_signed_by(certificate: &CertificateDer<'_>, signer: &CertificateDer<'_>) -> bool {
    let parsed = X509Certificate::from_der(certificate).ok().zip(X509Certificate::from_der(signer).ok());
    parsed.is_some_and(|((_, certificate), (_, signer))| {
        certificate.issuer() == signer.subject()
            && certificate.verify_signature(Some(signer.public_key())).is_ok()
    })
}

fn encode(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|certificate| culvert_identity::pem::encode("CERTIFICATE", certificate)).collect()
}

#[cfg(test)]
mod tests;
