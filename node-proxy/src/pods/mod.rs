//! Which pods of this node are enrolled, and their life cycle.

mod pod;
mod report;

pub use pod::Pod;
pub use report::{Phase, PodReport, PodReports};
