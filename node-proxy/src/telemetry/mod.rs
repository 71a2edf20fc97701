//! What happened to connections: metrics and the access log.

mod access_log;
mod connection;
#[cfg(test)]
mod docs;
mod labels;
mod live;
mod process;
mod registry;
mod request;
mod request_series;
mod scrape;
mod series;
mod spec;

pub use access_log::AccessLog;
pub use connection::{
    ConnectionMeta, ConnectionRecord, Failure, Reporter, RoutedConnection, Security, WhyPlaintext,
};
pub use registry::{Carrier, Direction, OpenTunnel, Outcome, Telemetry};
pub use request::{Ending, Mirrored, RequestHead, RequestRecord, Retried, Routed};
pub use request_series::{RequestProtocol, SeriesCache};

#[cfg(test)]
mod tests;
