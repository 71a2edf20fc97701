//! Which pods of this node are enrolled, and their life cycle: the socket over which they are handed over ([`Manager`]),
//! what is in force in each, and what is said about it. Pods that nobody handed over are looked for (`search`).

mod captured;
mod ending;
mod established;
mod gateway;
mod kept;
mod life;
mod manager;
mod pod;
mod removal;
mod report;
mod search;
mod server;
mod wanted;

pub use manager::{Manager, ManagerError, ManagerSettings};
pub use pod::Pod;
pub use removal::{RemovalError, remove_rules};
pub use report::{Phase, PodReport, PodReports};
pub use search::Places;
