//! A pod's network namespace: entering it, the sockets of the proxy in it, and the rules that steer its traffic to them.

mod netns;
pub mod rules;
mod sockets;

pub use netns::{Netns, NetnsId};
pub use sockets::{
    Listeners, application_socket, gateway_listeners, is_port_taken, listeners, outbound_socket, source_ports,
};
