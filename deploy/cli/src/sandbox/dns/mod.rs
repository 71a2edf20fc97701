//! The cluster's DNS: names of Services and pods. There is no upstream; names outside the cluster do not exist.

mod answer;
mod server;
pub mod zone;

pub use server::{DOMAIN, Sockets, serve};
pub use zone::Zone;

#[cfg(test)]
mod tests;
