//! What happened to connections: metrics and the access log.

mod access_log;
mod connection;
#[cfg(test)]
mod docs;
mod labels;
mod process;
mod registry;
mod scrape;
mod series;
mod spec;

pub use access_log::AccessLog;
pub use connection::{ConnectionMeta, ConnectionRecord, Failure, Reporter, Security, WhyPlaintext};
pub use registry::{Carrier, Direction, OpenTunnel, Outcome, Telemetry};

#[cfg(test)]
mod tests;
