//! The chained CNI plugin: no pod that is wanted in the mesh starts before it is captured, and no other pod waits for the
//! mesh. [`run`] is one call of a container runtime; [`install`] keeps the plugin in the runtime's configuration.
//!
//! The protocol is the CNI specification 1.1.0. Its own types, because the crates for it are not kept any more.

mod admission;
mod answer;
mod api;
mod call;
pub mod install;
mod plugin;

pub use plugin::run;

/// Name of the plugin: of its program, and `type` in network configurations.
pub const PLUGIN: &str = "culvert-cni";

/// Whether this process is a container runtime's call of the plugin: it tells by the name of the program alone.
#[must_use]
pub fn is_called() -> bool {
    let program = std::env::args_os().next();
    program
        .is_some_and(|program| std::path::Path::new(&program).file_name().is_some_and(|name| name == PLUGIN))
}
