//! Who is who: SPIFFE identities, trust bundles, TLS configurations pinned to one set of algorithms, certificate
//! requests, service account tokens, and gRPC over mutually authenticated TLS.

pub mod spiffe;

pub use spiffe::{Identity, IdentityError, TrustDomain};
