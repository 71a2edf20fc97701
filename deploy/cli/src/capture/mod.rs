//! What is on a link: frames by AF_PACKET, kept as pcap, and questions about them: is this token readable, who talked
//! to whom, is it TLS 1.3 and nothing else.

pub mod command;
mod flows;
pub mod pcap;
mod sniff;
mod tls;

pub use flows::{Conversation, Flow, Flows};
pub use sniff::Sniffer;
pub use tls::{Side, TlsFault, check_stream};

use serde::Serialize;
use std::net::{IpAddr, SocketAddr};

/// What a capture says about one TCP connection.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionSummary {
    /// Who opened it (unknown direction: the higher port).
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// Payload bytes each way.
    pub sent: u64,
    pub received: u64,
    /// Bytes that the capture missed: then nothing can be said for sure.
    pub missing: u64,
    pub tls: Tls,
}

/// Whether a connection's payload is TLS 1.3 from its first to its last byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tls {
    /// Nothing was said.
    NoPayload,
    /// TLS 1.3 handshake, then protected records only.
    V13,
    /// Anything else, or not known because the beginning is missing.
    No(String),
}

/// The answers for a whole capture.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub frames: usize,
    pub connections: Vec<ConnectionSummary>,
    /// Where the token can be read: `CLIENT > SERVER`, or `frame N` outside TCP.
    pub token_seen: Vec<String>,
}

impl Summary {
    /// Looks at all frames. An empty token is seen nowhere.
    #[must_use]
    pub fn of(frames: &[pcap::Frame], token: &str) -> Self {
        let flows = Flows::of(frames);
        let connections = flows.conversations().into_iter().map(ConnectionSummary::of).collect();
        Self { frames: frames.len(), connections, token_seen: flows.find(frames, token.as_bytes()) }
    }

    /// Connections between two of these addresses.
    pub fn between<'a>(&'a self, addresses: &'a [IpAddr]) -> impl Iterator<Item = &'a ConnectionSummary> {
        self.connections.iter().filter(|connection| {
            addresses.contains(&connection.client.ip()) && addresses.contains(&connection.server.ip())
        })
    }
}

impl ConnectionSummary {
    fn of(conversation: Conversation<'_>) -> Self {
        Self {
            client: conversation.client,
            server: conversation.server,
            sent: conversation.sent.len(),
            received: conversation.received.len(),
            missing: conversation.sent.missing() + conversation.received.missing(),
            tls: tls::verdict(&conversation),
        }
    }
}
