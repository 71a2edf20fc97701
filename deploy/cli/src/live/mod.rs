//! What `culvert` asks of a live cluster: objects of its API server, and the admin ports of Culvert's pods through it. [`gather`] and
//! [`proxies`] read; what is made of that is pure.

pub mod config;
pub mod gather;
pub mod node;
pub mod proxies;
pub mod proxy;
pub mod status;
pub mod target;

pub use target::{Cluster, ClusterArgs, Target, TargetArgs};
