//! The mesh as real processes in network namespaces, driven as a user drives it: by the command `culvert`.
//!
//! Every test file brings up one sandbox and shares it among its tests; a test that hurts the whole sandbox (kills a
//! component) asks for it exclusively. A sandbox ends with the test program, however that ends.

mod agreement;
mod command;
pub mod generate;
mod manifests;
mod mesh;
mod metrics;
mod probe;
mod recording;
pub mod routes;
mod session;
mod wait;

pub use agreement::{Happened, is_logged};
pub use command::{Done, binary, run, run_with_input};
pub use manifests::{Labelled, Shop};
pub use mesh::{Exclusive, Mesh, Pod, Shared};
pub use metrics::Metrics;
pub use recording::Recording;
pub use session::Session;
pub use wait::{SOON, eventually, holds};
