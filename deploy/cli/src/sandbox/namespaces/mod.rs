//! Namespaces: the sandbox's own (user, PID, mount, network), one network namespace per node and pod, and how a
//! process is started in them without unsafe code: this binary executes itself with a hidden subcommand which, still
//! single-threaded, enters the namespaces and then executes the program.

pub mod entry;
pub mod init;
pub mod keeper;
pub mod missing;
pub mod netns;
pub mod private;

pub use entry::{Entry, Mount};
pub use netns::Netns;

/// The hidden subcommand of `culvert` that the functions in here execute.
pub const INIT_COMMAND: &str = "sandbox-init";
