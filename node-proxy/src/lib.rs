//! The node proxy: captures the traffic of its node's enrolled pods and carries it over mutually authenticated
//! tunnels. The data path reads top to bottom in `outbound`, `tunnel`, `inbound`.

pub mod admin;
pub mod balance;
pub mod copy;
pub mod handover;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod intercept;
pub mod limits;
pub mod outbound;
pub mod pods;
pub mod ready;
pub mod reason;
pub mod run;
pub mod session;
pub mod state;
pub mod telemetry;
pub mod tunnel;
pub mod uninstall;
pub mod worker;
