//! Statuses: what is wanted of each object, and writing it.

mod desired;
mod writer;

pub use desired::{DesiredAncestor, DesiredCondition, DesiredListener, DesiredParent, DesiredStatus};
pub use writer::{StatusQueue, StatusWriter};
