//! Interim responses (1xx) of a server on their way to an HTTP/1 client. hyper's server sends none but `100 Continue`, so
//! they are written between two of its messages, where its buffer is empty.

use std::fmt::Write as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::task::AtomicWaker;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;

use super::hop;

/// Bytes that may wait: a server that floods its client with hints loses some.
const MOST_WAITING: usize = 16 << 10;

/// What waits to be written; shared by a connection's socket and the callbacks of its requests, which hyper wants to be
/// free to run anywhere.
#[derive(Debug, Default)]
pub struct Interim {
    waiting: Mutex<Waiting>,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// A request is under way whose final response has not begun.
    is_open: bool,
}

impl Interim {
    /// A request begins that may be answered so.
    pub fn open(&self) {
        self.waiting.lock().is_open = true;
    }

    /// Its final response begins: what was not written by now is too late.
    pub fn close(&self) {
        *self.waiting.lock() = Waiting::default();
    }

    /// Takes an interim response of the server. `100` is the business of the expectation.
    pub fn put(&self, status: StatusCode, headers: &HeaderMap) {
        if status == StatusCode::CONTINUE {
            return;
        }
        let mut headers = headers.clone();
        hop::strip(&mut headers);
        let mut head = String::new();
        let _ = write!(
            head,
            "HTTP/1.1 {} {}\r\n",
            status.as_str(),
            status.canonical_reason().unwrap_or("Interim")
        );
        let mut waiting = self.waiting.lock();
        if !waiting.is_open || waiting.bytes.len() >= MOST_WAITING {
            return;
        }
        waiting.bytes.extend_from_slice(head.as_bytes());
        for (name, value) in &headers {
            waiting.bytes.extend_from_slice(name.as_str().as_bytes());
            waiting.bytes.extend_from_slice(b": ");
            waiting.bytes.extend_from_slice(value.as_bytes());
            waiting.bytes.extend_from_slice(b"\r\n");
        }
        waiting.bytes.extend_from_slice(b"\r\n");
        drop(waiting);
        self.waker.wake();
    }

    /// Writes what waits, when nothing else is being written. `rest` is what the socket did not take the last time.
    pub fn poll_write(
        &self,
        cx: &mut Context<'_>,
        rest: &mut Vec<u8>,
        mut socket: Pin<&mut impl AsyncWrite>,
    ) -> Poll<io::Result<()>> {
        self.waker.register(cx.waker());
        rest.append(&mut self.waiting.lock().bytes);
        while !rest.is_empty() {
            let written = ready!(socket.as_mut().poll_write(cx, rest))?;
            rest.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

/// What a request's server says before its response, as hyper tells it.
pub fn callback(
    interim: Arc<Interim>,
    opener: Option<super::expect::Opener>,
) -> impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static {
    move |status, headers| match &opener {
        Some(opener) if status == StatusCode::CONTINUE => opener.open(),
        _ => interim.put(status, headers),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn written(interim: &Interim) -> String {
        let (mut bytes, mut rest) = (Vec::new(), Vec::new());
        poll_fn(|cx| interim.poll_write(cx, &mut rest, Pin::new(&mut bytes))).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn hints_are_passed_on_until_the_response_begins() {
        let interim = Interim::default();
        let headers: HeaderMap = [("link", "</a>"), ("connection", "x-b"), ("x-b", "1")]
            .iter()
            .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap()))
            .collect();
        interim.put(StatusCode::EARLY_HINTS, &headers);
        assert_eq!(written(&interim).await, "", "nobody asked");
        interim.open();
        interim.put(StatusCode::CONTINUE, &headers);
        interim.put(StatusCode::EARLY_HINTS, &headers);
        assert_eq!(written(&interim).await, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
        interim.put(StatusCode::EARLY_HINTS, &headers);
        interim.close();
        interim.put(StatusCode::EARLY_HINTS, &headers);
        assert_eq!(written(&interim).await, "", "too late");
    }

    #[tokio::test]
    async fn a_flood_is_bounded() {
        let interim = Interim::default();
        interim.open();
        for _ in 0..10_000 {
            interim.put(StatusCode::PROCESSING, &HeaderMap::new());
        }
        assert!(written(&interim).await.len() < MOST_WAITING + 100);
    }
}
