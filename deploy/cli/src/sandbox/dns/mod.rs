//! The cluster's DNS: its sockets. What is answered is crate `culvert-dns`.

mod server;

pub use culvert_dns::zone;
pub use culvert_dns::zone::Zone;
pub use server::{DOMAIN, Sockets, serve};
