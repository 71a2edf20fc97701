//! Looks at what a client says first, without taking it away.

use std::io;
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::protocol::{First, UNDECIDED, first};
use super::{Outbound, Refusal};
use crate::reason::Reason;

/// Bytes looked at: a request line that is longer and undecided is not HTTP.
const LOOKED_AT: usize = 1024;
/// How often first bytes that do not decide yet are looked at again. There is no event for more bytes behind bytes that
/// were not taken.
const AGAIN: Duration = Duration::from_millis(5);

/// What was seen of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    First(First),
    /// It closed without a byte.
    Closed,
}

impl Outbound {
    /// Waits for the client's first bytes for so long, or without end.
    pub(super) async fn look(&self, client: &TcpStream, patience: Option<Duration>) -> Result<Seen, Refusal> {
        let looking = look(client);
        let seen = match patience {
            None => looking.await,
            Some(patience) => {
                tokio::time::timeout(patience, looking).await.unwrap_or(Ok(Seen::First(First::Silence)))
            }
        };
        seen.map_err(|error| self.refusal(Reason::PeerReset, format!("reading from the client: {error}")))
    }
}

async fn look(client: &TcpStream) -> io::Result<Seen> {
    let mut undecided_since = None;
    loop {
        client.readable().await?;
        let (length, first) = match peek(client) {
            Ok(peeked) => peeked,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        if length == 0 {
            return Ok(Seen::Closed);
        }
        if let Some(first) = first {
            return Ok(Seen::First(first));
        }
        let since = *undecided_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= UNDECIDED {
            return Ok(Seen::First(First::Other));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// How many bytes there are, up to [`LOOKED_AT`], and what they are.
fn peek(client: &TcpStream) -> io::Result<(usize, Option<First>)> {
    let mut bytes = [0; LOOKED_AT];
    let (length, _) = client.try_io(Interest::READABLE, || Ok(recv(client, &mut bytes, RecvFlags::PEEK)?))?;
    Ok((length, first(&bytes[..length])))
}
