pub mod identity;
pub mod pods;
pub mod reason;
pub mod state;
pub mod telemetry;
