//! A Service's address as one node has to serve it.

use std::net::{IpAddr, SocketAddr};

use culvert_objects::types::Protocol;

/// How a new connection picks its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Random,
    /// The same client address goes to the same endpoint as long as the endpoints stay the same
    /// (`sessionAffinity: ClientIP`).
    ClientAddress,
}

/// Where a connection comes to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    Anywhere,
    /// From the link between the nodes; looked at first.
    Outside,
}

/// What becomes of connections without a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    Refuse,
    /// Another node has one: the client tries again, and comes to that one.
    Drop,
}

/// One virtual address and port, and where it leads on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// `namespace/name` of the Service.
    pub service: String,
    pub vip: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    pub entry: Entry,
    pub choice: Choice,
    /// Of the family of `vip`.
    pub backends: Vec<SocketAddr>,
    /// When there are no backends.
    pub without: Without,
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Port 80 over TCP, for everybody.
    pub fn frontend(service: &str, vip: &str, backends: &[&str]) -> Frontend {
        Frontend {
            service: service.to_owned(),
            vip: vip.parse().unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
            entry: Entry::Anywhere,
            choice: Choice::Random,
            without: Without::Refuse,
            backends: backends.iter().map(|backend| backend.parse().unwrap()).collect(),
        }
    }
}
