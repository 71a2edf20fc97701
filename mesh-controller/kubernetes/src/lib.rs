//! What controller, CA and command line do with the Kubernetes API server: follow objects, read them once, check tokens, elect a leader.
//!
//! Everything here survives an API server that is away: what was read stays, requests end in an error that says so, and
//! watches go on where they were.

pub mod client;
pub mod discovery;
pub mod lease;
pub mod listing;
pub mod source;
pub mod tokens;

pub use client::{ConnectError, Server};
pub use discovery::{Resource, Served};
pub use kube::Client;
pub use source::{Interest, Purpose, Source};
pub use tokens::Tokens;
