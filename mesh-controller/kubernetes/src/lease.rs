//! The election of a leader by a Lease (`coordination.k8s.io/v1`), as Kubernetes' own controllers do it.
//!
//! [`Election`] is the state machine: pure, told what was seen and when. Whoever holds the Lease leads from the moment
//! before it sent the write that succeeded, for two thirds of the Lease's duration; others take it only when they have seen
//! it unchanged for the whole duration. Clocks of different machines are never compared.

mod election;
mod holding;

pub use election::{Election, Seen, Step};
pub use holding::{Leadership, run};
