//! Waits for a client's whole ClientHello without taking it away: what is looked at stays in the socket, for the backend.

use std::io;
use std::sync::Arc;

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client_hello::{LONGEST, Read, Reader};
use super::{Outbound, Refusal};
use crate::reason::Reason;

/// A ClientHello with post-quantum key shares fits.
const USUAL: usize = 2 << 10;

/// Why there is no ClientHello.
enum Missing {
    Not(String),
    TooLong,
    Closed,
    Lost(io::Error),
}

impl Outbound {
    /// The server name that the client's TLS asks for, once all of its ClientHello is there.
    pub(super) async fn server_name(&self, client: &TcpStream) -> Result<Option<Arc<str>>, Refusal> {
        let patience = self.timeouts().request_head;
        let Ok(read) = timeout(patience, server_name(client)).await else {
            let message = format!("no complete ClientHello within {patience:?}");
            return Err(self.refusal(Reason::RequestHeaderTimeout, message));
        };
        read.map_err(|missing| match missing {
            Missing::Not(why) => {
                self.refusal(Reason::ProtocolMismatch, format!("not a ClientHello of TLS: {why}"))
            }
            Missing::TooLong => {
                let message = format!("the ClientHello is not complete within {LONGEST} bytes");
                self.refusal(Reason::HeadersTooLarge, message)
            }
            Missing::Closed => {
                self.refusal(Reason::ProtocolMismatch, "the client closed in the middle of its ClientHello")
            }
            Missing::Lost(error) => {
                self.refusal(Reason::PeerReset, format!("reading from the client: {error}"))
            }
        })
    }
}

async fn server_name(client: &TcpStream) -> Result<Option<Arc<str>>, Missing> {
    let mut bytes = vec![0; USUAL];
    let mut reader = Reader::default();
    let mut seen = 0;
    loop {
        let ready = client.ready(Interest::READABLE).await.map_err(Missing::Lost)?;
        // Nothing new is told as nothing there, so that the next wait is for more bytes. Where the name is found it is not,
        // and the bytes are seen by who reads them.
        let more = client.try_io(Interest::READABLE, || match recv(client, &mut bytes, RecvFlags::PEEK)? {
            (length, _) if length > seen => Ok(length),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        });
        match more {
            Ok(length) => seen = length,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(Missing::Lost(error)),
            Err(_) if ready.is_read_closed() => return Err(Missing::Closed),
            Err(_) => continue,
        }
        match reader.read(&bytes[..seen]) {
            Read::Whole { server_name } => return Ok(server_name),
            Read::Not(why) => return Err(Missing::Not(why.to_string())),
            Read::Partial if seen == LONGEST => return Err(Missing::TooLong),
            Read::Partial if seen == bytes.len() => bytes.resize(LONGEST.min(seen * 2), 0),
            Read::Partial => {}
        }
    }
}
