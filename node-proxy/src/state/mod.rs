//! What the controller says about the mesh: the stream, the checked values, and the immutable snapshot that every
//! connection is decided on.

pub mod builder;
pub mod convert;
pub mod model;
pub mod snapshot;
mod status;

pub use builder::Builder;
pub use convert::{ConversionError, Converter};
pub use snapshot::{Endpoint, EndpointSet, Origin, RefusedResource, Snapshot, Snapshots};
pub use status::{ControlReading, ControlStatus};
