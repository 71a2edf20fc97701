//! Culvert's controller: objects in, resources for node proxies and statuses out.
//!
//! [`translate`] is the pure part. [`hub`] follows objects and reports and publishes [`snapshot`]s; [`serve`] brings them
//! to the node proxies; [`status`] writes what the objects are told, [`wanted`] the objects that Gateways need.

pub mod certificate;
pub mod cluster;
mod files;
pub mod hub;
pub mod metrics;
pub mod render;
pub mod run;
pub mod serve;
pub mod session_keys;
pub mod snapshot;
pub mod status;
pub mod translate;
pub mod uninstall;
pub mod wanted;

/// The `controllerName` of what the mesh itself does.
pub const CONTROLLER_NAME: &str = "culvert.dev/node-proxy";
/// The name of the XMesh that is made for the mesh.
pub const MESH_NAME: &str = "culvert";
