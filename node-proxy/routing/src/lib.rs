//! Route tables: what a request is matched against, in which order, and what is done to it. Pure: no I/O, no async,
//! no clock. The controller compiles a route with this crate before it accepts it, the node proxy decides with it, and
//! `culvert explain` asks it why.
//!
//! A request comes in with its path through [`path::normalize`] and its host through [`host::Host::parse`]; a
//! [`table::RouteTable`] selects the rule; [`filters`] change the request; the rule's [`weights::Wheel`] chooses the
//! backend.

pub mod compile;
mod conditions;
pub mod cors;
mod error;
pub mod filters;
pub mod host;
pub mod hostname;
pub mod language;
pub mod mismatch;
pub mod model;
pub mod path;
mod pattern;
pub mod precedence;
pub mod request;
pub mod retry;
pub mod session;
pub mod table;
mod text;
pub mod weights;

pub use compile::{CompiledRoute, CompiledRule, MirrorPlace};
pub use error::CompileError;
pub use mismatch::Mismatch;
pub use request::RequestView;
pub use table::{Candidate, RouteTable, Selected};
