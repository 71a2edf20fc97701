//! Certificates per identity: requested, kept in memory, renewed, forgotten, and turned into TLS configurations once.
//!
//! Private keys never touch the disk: a restarted node proxy asks for new certificates.

pub(crate) mod backoff;
mod clock;
mod manager;
mod store;

pub use manager::{CertificateManager, CertificateSettings};
pub(crate) use store::seconds_since_epoch;
pub use store::{ActiveCertificate, CertificateError, CertificateLease, CertificateStatus, Certificates};
