//! The certificate authority: signs short-lived workload certificates for callers that prove by token who they are,
//! and for node proxies only identities of pods on their node. Its own process, because it holds the key.

pub mod authority;
pub mod authorize;
pub mod flags;
pub mod metrics;
pub mod placement;
pub mod refusal;
pub mod request;
pub mod run;
pub mod service;
pub mod serving;
