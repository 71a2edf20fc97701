//! Certificates per identity: requested, kept in memory, renewed, forgotten, and turned into TLS configurations once.
//!
//! Private keys never touch the disk: a restarted node proxy asks for new certificates.

mod backoff;
mod clock;
mod store;

pub use store::{
    ActiveCertificate, CertificateError, CertificateLease, CertificateStatus, Certificates,
};
