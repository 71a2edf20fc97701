//! The node proxy: captures the traffic of its node's enrolled pods and carries it over mutually authenticated
//! tunnels. The data path reads top to bottom in `outbound`, `tunnel`, `inbound`.

pub mod identity;
pub mod intercept;
pub mod limits;
pub mod pods;
pub mod reason;
pub mod state;
pub mod telemetry;
