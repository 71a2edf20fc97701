//! Statuses: what is wanted of each object, and writing it.

mod api_server;
mod desired;
mod merge;
mod writer;

pub use api_server::{ApiStatuses, lead};
pub use desired::{DesiredAncestor, DesiredCondition, DesiredListener, DesiredParent, DesiredStatus};
pub use merge::is_ours;
pub use writer::{StatusQueue, StatusWriter};
