//! Socket to socket.

use std::cell::RefCell;
use std::io;
use std::pin::pin;

use bytes::{Buf, Bytes};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::buffer::{Growth, LARGEST};
use super::{Copy, CopyError, Pace, Side, shutdown_write, socket_error};
use crate::worker::socket::CarriedSocket;

thread_local! {
    /// Read into and written from without a wait between; so one is enough for all connections of a worker.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; LARGEST].into_boxed_slice());
}

/// Reads once into the worker's scratch buffer and hands over what came; `None` when nothing was there.
pub(crate) fn read_scratch<T>(
    socket: &TcpStream,
    size: usize,
    with: impl FnOnce(&[u8]) -> T,
) -> io::Result<Option<T>> {
    SCRATCH.with_borrow_mut(|scratch| match socket.try_read(&mut scratch[..size]) {
        Ok(read) => {
            note_read(socket, read, size);
            Ok(Some(with(&scratch[..read])))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(error),
    })
}

/// A read that has not filled its buffer has emptied the socket (epoll(7), edge-triggered), so the next one waits for news
/// instead of asking the kernel first.
pub(super) fn note_read(socket: &TcpStream, read: usize, size: usize) {
    if (1..size).contains(&read) {
        let emptied = || -> io::Result<()> { Err(io::ErrorKind::WouldBlock.into()) };
        let _ = socket.try_io(Interest::READABLE, emptied);
    }
}

/// Writes what fits now; 0 when nothing does.
pub(crate) fn write_some(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match socket.try_write(bytes) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        result => result,
    }
}

/// As [`write_some`], for bytes that the end follows at once: the kernel keeps them until it does, and sends one packet.
pub(super) fn write_last(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    const FLAGS: SendFlags = SendFlags::MORE.union(SendFlags::NOSIGNAL);
    match socket.try_io(Interest::WRITABLE, || Ok(send(socket, bytes, FLAGS)?)) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        result => result,
    }
}

/// Whether the peer has closed its direction and everything it sent has been read.
///
/// # Errors
/// When the connection is lost, which the socket tells only once.
pub(super) fn has_ended(socket: &TcpStream) -> io::Result<bool> {
    match recv(socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((read, _)) => Ok(read == 0),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Copy<'_> {
    /// Carries a connection between two sockets. Both are closed in order on success and reset otherwise, also when
    /// this future is dropped.
    ///
    /// # Errors
    /// When a side is lost, or stays silent for too long after the other has closed.
    pub async fn between(&self, client: CarriedSocket, server: CarriedSocket) -> Result<(), CopyError> {
        let lost = async |side| {
            let socket = match side {
                Side::Client => &client,
                Side::Server => &server,
            };
            CopyError::Read { side, error: socket_error(socket).await }
        };
        let to_server = pin!(self.pump(&client, &server, Side::Server));
        let to_client = pin!(self.pump(&server, &client, Side::Client));
        self.both(to_server, to_client, lost).await?;
        client.finish();
        server.finish();
        Ok(())
    }

    async fn pump(&self, from: &TcpStream, to: &TcpStream, target: Side) -> Result<(), CopyError> {
        enum Step {
            Closed,
            Moved(usize),
            Left(usize, Bytes),
        }
        let source = target.other();
        let (mut growth, mut pace) = (Growth::default(), Pace(0));
        loop {
            from.readable().await.map_err(|error| CopyError::Read { side: source, error })?;
            self.limits.relief().await;
            let size = growth.size(self.limits.memory_left());
            let step = read_scratch(from, size, |read| {
                if read.is_empty() {
                    return Ok(Step::Closed);
                }
                let written = write_some(to, read)?;
                growth.record(read.len(), size);
                Ok(if written == read.len() {
                    Step::Moved(written)
                } else {
                    Step::Left(written, Bytes::copy_from_slice(&read[written..]))
                })
            });
            let moved = match step.map_err(|error| CopyError::Read { side: source, error })? {
                None => continue,
                Some(Err(error)) => return Err(CopyError::Write { side: target, error }),
                Some(Ok(Step::Closed)) => return shutdown_write(to, target),
                Some(Ok(Step::Moved(moved))) => moved,
                Some(Ok(Step::Left(moved, rest))) => {
                    self.delivered(target.towards(), moved);
                    let left = rest.len();
                    // Boxed, because it is the exception and connections that idle should be small.
                    Box::pin(self.write_rest(from, to, rest, target)).await?;
                    left
                }
            };
            self.delivered(target.towards(), moved);
            pace.moved(moved).await;
        }
    }

    /// The source is not read meanwhile, so its reset has to be looked for.
    async fn write_rest(
        &self,
        from: &TcpStream,
        to: &TcpStream,
        mut rest: Bytes,
        target: Side,
    ) -> Result<(), CopyError> {
        let _charge = self.limits.charge(rest.len() as u64);
        while rest.has_remaining() {
            tokio::select! {
                biased;
                writable = to.writable() => {
                    let written = writable.and_then(|()| write_some(to, &rest));
                    rest.advance(written.map_err(|error| CopyError::Write { side: target, error })?);
                }
                error = socket_error(from) => return Err(CopyError::Read { side: target.other(), error }),
            }
        }
        Ok(())
    }
}
