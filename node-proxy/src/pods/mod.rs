//! Which pods of this node are enrolled, and their life cycle: the socket over which they are handed over ([`Manager`]),
//! what is in force in each, and what is said about it.

mod captured;
mod ending;
mod established;
mod gateway;
mod kept;
mod life;
mod manager;
mod offer;
mod parking;
mod pod;
mod report;
mod server;
mod wanted;

pub(crate) use manager::LONGEST_UID;
pub use manager::{Manager, ManagerError, ManagerSettings};
pub use pod::Pod;
pub use report::{Phase, PodReport, PodReports};
pub(crate) use server::bind;
