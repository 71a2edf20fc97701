//! A server that answers what it is told to, byte by byte, and remembers what it was sent: for answers that no correct
//! server gives, and for proof that something never arrived.
//!
//! `GET /?hex=4854...` is answered with those bytes, and the connection closed; `&keep=1` keeps it open, `&reset=1` resets
//! it. `GET /received` says how many connections and bytes came before it, with the last 4 KiB in hexadecimal.

use crate::hex;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const REMEMBERED: usize = 4096;
const LARGEST_HEAD: usize = 64 * 1024;

/// What was received on the port, by all connections.
#[derive(Default)]
pub(crate) struct Received {
    connections: u64,
    bytes: u64,
    last: Vec<u8>,
}

impl Received {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.last.extend_from_slice(bytes);
        let over = self.last.len().saturating_sub(REMEMBERED);
        self.last.drain(..over);
    }
}

/// What a request asks for.
#[derive(Debug, PartialEq)]
enum Order {
    Received,
    Send(Vec<u8>, Then),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Close,
    Keep,
    Reset,
}

/// Serves one connection.
pub(crate) async fn serve(mut stream: TcpStream, received: Arc<Mutex<Received>>) -> io::Result<()> {
    let lock = || received.lock().unwrap_or_else(PoisonError::into_inner);
    let mut head = Vec::new();
    let mut is_counted = false;
    loop {
        let mut buffer = [0; 16 * 1024];
        let read = stream.read(&mut buffer).await?;
        if read == 0 || head.len() > LARGEST_HEAD {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..read]);
        let end = head.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let order = end.map(|_| order(&head));
        if order == Some(Order::Received) {
            let answer = report(&lock());
            return stream.write_all(answer.as_bytes()).await;
        }
        {
            let mut received = lock();
            received.connections += u64::from(!std::mem::replace(&mut is_counted, true));
            received.add(&buffer[..read]);
        }
        let Some(Order::Send(bytes, then)) = order else { continue };
        stream.write_all(&bytes).await?;
        head.clear();
        match then {
            Then::Close => return stream.shutdown().await,
            Then::Keep => {}
            Then::Reset => {
                // What was written gets out first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return super::tcp::abort(stream);
            }
        }
    }
}

fn order(head: &[u8]) -> Order {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let target = line.split(' ').nth(1).unwrap_or_default();
    if target == "/received" {
        return Order::Received;
    }
    let (mut bytes, mut then) = (b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(), Then::Close);
    let query = target.split_once('?').map_or("", |(_, query)| query);
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match (key, value) {
            ("hex", value) => bytes = hex::decode(value).unwrap_or(bytes),
            ("keep", "1") => then = Then::Keep,
            ("reset", "1") => then = Then::Reset,
            _ => {}
        }
    }
    Order::Send(bytes, then)
}

fn report(received: &Received) -> String {
    let Received { connections, bytes, last } = received;
    let last = hex::encode(last);
    let body = format!("{{\"connections\":{connections},\"bytes\":{bytes},\"last\":\"{last}\"}}\n");
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_says_what_is_sent() {
        assert_eq!(order(b"GET /received HTTP/1.1\r\n\r\n"), Order::Received);
        let sent = Order::Send(b"ab".to_vec(), Then::Keep);
        assert_eq!(order(b"GET /x?hex=6162&keep=1 HTTP/1.1\r\nHost: a\r\n\r\n"), sent);
    }

    #[test]
    fn the_last_bytes_are_remembered() {
        let mut received = Received::default();
        received.add(&[b'a'; 5000]);
        received.add(b"end");
        assert_eq!((received.bytes, received.last.len()), (5003, REMEMBERED));
        assert!(report(&received).ends_with("656e64\"}\n"));
    }
}
