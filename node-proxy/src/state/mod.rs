//! What the controller says about the mesh: the stream, the checked values, and the immutable snapshot that every
//! connection is decided on.

pub mod builder;
pub mod control;
pub mod convert;
mod enrolment;
pub mod gateways;
mod intern;
pub mod kept;
mod listeners;
pub mod model;
mod namespaces;
mod publisher;
pub mod resources;
pub mod routes;
pub mod snapshot;
mod status;
#[cfg(test)]
pub(crate) mod testing;

pub use builder::Builder;
pub use control::{ControlChannels, ControlClient, ControlSettings};
pub use convert::{ConversionError, Converter};
pub use gateways::GatewayListeners;
pub use kept::{Keeper, Kept, KeptError};
pub use namespaces::NamespaceKeeper;
pub use resources::Resources;
pub use routes::{Attached, RouteGroup, ServiceRoutes};
pub use snapshot::{Endpoint, EndpointSet, Origin, RefusedResource, Snapshot, Snapshots};
pub use status::{ControlReading, ControlStatus};
