//! What a client says before its CONNECT is answered follows the request at once (RFC 9113, 8.5: DATA may follow each
//! peer's HEADERS), so a connection costs one exchange with the server instead of two.

use std::cell::{Cell, OnceCell};
use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::Response;
use tokio::net::TcpStream;

use crate::copy::{read_scratch, write_some};
use crate::limits::{MemoryCharge, WorkloadLimits};

/// Bytes that a client's proxy sends before the answer, at most. Fits every window that HTTP/2 begins with.
pub const MOST_EARLY: usize = 16 << 10;
/// A workload that is short of memory reads so little.
const LITTLE: usize = 1 << 10;
/// For so many turns of the worker the server's proxy keeps its answer to a client that has spoken already, for the
/// application's own answer to travel with it. Turns and not time, because they last the longer the more there is to do, and
/// a timer that is due soon costs a system call.
pub const TURNS_TOGETHER: usize = 4;

/// The first bytes of a client, once it has said any. Kept until a server has answered: one that refuses has delivered
/// nothing, so another may be told the same.
pub struct EarlyData<'c> {
    client: Option<(&'c TcpStream, &'c Arc<WorkloadLimits>)>,
    said: OnceCell<(Bytes, MemoryCharge)>,
}

impl<'c> EarlyData<'c> {
    /// Whatever this client says, charged to its workload.
    pub fn of(client: &'c TcpStream, limits: &'c Arc<WorkloadLimits>) -> Self {
        Self { client: Some((client, limits)), said: OnceCell::new() }
    }

    /// Nothing is sent before the answer.
    pub fn none() -> Self {
        Self { client: None, said: OnceCell::new() }
    }

    /// Writes to a server without a tunnel what another was told before.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn say_to(&self, server: &TcpStream) -> io::Result<()> {
        let Some((bytes, _)) = self.said.get() else { return Ok(()) };
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.writable().await?;
            rest = &rest[write_some(server, rest)?..];
        }
        Ok(())
    }

    /// Bytes that every server asked since was told.
    pub fn length(&self) -> usize {
        self.said.get().map_or(0, |(bytes, _)| bytes.len())
    }

    /// Waits for the answer to a CONNECT request, and sends what the client says meanwhile. `sent` becomes true when
    /// something may have reached the server.
    ///
    /// # Errors
    /// When the stream or the tunnel is lost.
    pub async fn until_answered(
        &self,
        response: ResponseFuture,
        send: &mut SendStream<Bytes>,
        sent: &Cell<bool>,
    ) -> Result<Response<RecvStream>, h2::Error> {
        let mut response = pin!(response);
        let bytes = tokio::select! {
            biased;
            answered = &mut response => return answered,
            bytes = self.said() => bytes,
        };
        if let Some(bytes) = bytes {
            sent.set(true);
            // Fails when the stream has ended; how, the answer says.
            let _ = send.send_data(bytes, false);
        }
        response.await
    }

    /// What the client has said, or says first; `None` when it says nothing more.
    async fn said(&self) -> Option<Bytes> {
        let (client, limits) = self.client?;
        loop {
            if let Some((bytes, _)) = self.said.get() {
                return Some(bytes.clone());
            }
            client.readable().await.ok()?;
            let size = if limits.memory_left() < MOST_EARLY as u64 { LITTLE } else { MOST_EARLY };
            let Some(bytes) = read_scratch(client, size, Bytes::copy_from_slice).ok()? else { continue };
            if bytes.is_empty() {
                // The end is read again by whoever carries the connection.
                return None;
            }
            let charge = limits.charge(bytes.len() as u64);
            let _ = self.said.set((bytes, charge));
        }
    }
}

#[cfg(test)]
mod tests;
