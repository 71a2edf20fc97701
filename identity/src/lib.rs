//! Who is who: SPIFFE identities, trust bundles, TLS configurations pinned to one set of algorithms, certificate
//! requests, service account tokens, and gRPC over mutually authenticated TLS. Beside them what every process of the
//! control plane needs once: the admin server, logging, orderly files and signals.

pub mod admin;
pub mod bundle;
pub mod certificate;
pub mod certificate_client;
pub mod csr;
pub mod files;
pub mod grpc;
pub mod logging;
pub mod process;
pub mod spiffe;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
pub mod token;

pub mod pem;

pub use bundle::{BundleError, TrustBundle};
pub use certificate::{CertificateError, WorkloadCertificate};
pub use spiffe::{Identity, IdentityError, TrustDomain};
pub use tls::{Peer, PeerError};
