//! How client and supervisor talk: frames over a Unix stream socket, each a length, a kind and a body; descriptors come
//! along with the first byte of a frame.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Largest body of a frame in bytes.
const LARGEST: usize = 64 << 20;
/// Most descriptors that come with one frame: the three streams of a process.
const DESCRIPTORS: usize = 3;
/// Length and kind.
const HEADER: usize = 5;

/// What a frame holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A request or response.
    Message(Vec<u8>),
    /// Raw bytes, of a log.
    Bytes(Vec<u8>),
}

/// One frame with what came along.
#[derive(Debug)]
pub struct Frame {
    pub body: Body,
    pub descriptors: Vec<OwnedFd>,
}

impl Frame {
    /// The message in it.
    ///
    /// # Errors
    /// `InvalidData` when it is none of this type.
    pub fn message<T: DeserializeOwned>(&self) -> io::Result<T> {
        match &self.body {
            Body::Message(bytes) => serde_json::from_slice(bytes).map_err(io::Error::from),
            Body::Bytes(_) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "bytes where a message was expected"))
            }
        }
    }
}

/// A connection. Reading is one task's, writing may be another's.
pub struct Connection {
    stream: UnixStream,
    buffer: tokio::sync::Mutex<Incoming>,
    sending: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Incoming {
    bytes: VecDeque<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Connection {
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: tokio::sync::Mutex::default(), sending: tokio::sync::Mutex::default() }
    }

    /// Sends a message, with descriptors.
    ///
    /// # Errors
    /// As `sendmsg(2)`.
    pub async fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_frame(b'm', &serde_json::to_vec(message)?, descriptors).await
    }

    /// Sends raw bytes.
    ///
    /// # Errors
    /// As `sendmsg(2)`.
    pub async fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        self.send_frame(b'b', bytes, &[]).await
    }

    /// The next frame; None when the peer has closed. Cancel-safe.
    ///
    /// # Errors
    /// As `recvmsg(2)`; `InvalidData` when it is no frame.
    pub async fn receive(&self) -> io::Result<Option<Frame>> {
        let mut incoming = self.buffer.lock().await;
        loop {
            if let Some(frame) = incoming.take_frame()? {
                return Ok(Some(frame));
            }
            let more = self
                .stream
                .async_io(Interest::READABLE, || receive_some(self.stream.as_fd(), &mut incoming))
                .await?;
            if more == 0 {
                return match incoming.bytes.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }

    async fn send_frame(&self, kind: u8, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?.to_le_bytes();
        let frame = [&length[..], &[kind], body].concat();
        // Frames of two tasks must not mix.
        let _turn = self.sending.lock().await;
        let mut sent = 0;
        while sent < frame.len() {
            let along = if sent == 0 { descriptors } else { &[] };
            sent += self
                .stream
                .async_io(Interest::WRITABLE, || send_some(self.stream.as_fd(), &frame[sent..], along))
                .await?;
        }
        Ok(())
    }
}

impl Incoming {
    fn take_frame(&mut self) -> io::Result<Option<Frame>> {
        if self.bytes.len() < HEADER {
            return Ok(None);
        }
        let mut header = [0; HEADER];
        self.bytes.iter().zip(&mut header).for_each(|(from, to)| *to = *from);
        let [a, b, c, d, kind] = header;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > LARGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
        }
        if self.bytes.len() < HEADER + length {
            return Ok(None);
        }
        let body: Vec<u8> = self.bytes.drain(..HEADER + length).skip(HEADER).collect();
        let body = match kind {
            b'm' => Body::Message(body),
            b'b' => Body::Bytes(body),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "unknown kind of frame")),
        };
        Ok(Some(Frame { body, descriptors: std::mem::take(&mut self.descriptors) }))
    }
}

fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

fn receive_some(socket: BorrowedFd<'_>, incoming: &mut Incoming) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 16 << 10];
    let got = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            incoming.descriptors.extend(descriptors);
        }
    }
    incoming.bytes.extend(&bytes[..got.bytes]);
    Ok(got.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[tokio::test]
    async fn frames_and_descriptors_arrive_in_order() {
        let (a, b) = UnixStream::pair().unwrap();
        let (a, b) = (Connection::new(a), Connection::new(b));
        let (mut reader, writer) = std::io::pipe().unwrap();
        let long = "x".repeat(300_000);
        let sending = async {
            a.send(&"first", &[writer.as_fd()]).await.unwrap();
            a.send_bytes(b"raw").await.unwrap();
            a.send(&long, &[]).await.unwrap();
            drop(a);
        };
        let receiving = async {
            let mut frame = b.receive().await.unwrap().unwrap();
            assert_eq!(frame.message::<String>().unwrap(), "first");
            let mut passed = std::fs::File::from(frame.descriptors.remove(0));
            passed.write_all(b"through").unwrap();
            assert_eq!(b.receive().await.unwrap().unwrap().body, Body::Bytes(b"raw".to_vec()));
            assert_eq!(b.receive().await.unwrap().unwrap().message::<String>().unwrap(), long);
            assert!(b.receive().await.unwrap().is_none());
        };
        tokio::join!(sending, receiving);
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }
}
