//! The bytes of an inner connection: HTTP to one endpoint, inside a CONNECT stream of a tunnel, or on a socket where the
//! endpoint does not speak HBONE.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::flow::Flow;
use crate::copy::TunnelStream;
use crate::limits::WorkloadLimits;
use crate::outbound::Upstream;
use crate::telemetry::ConnectionRecord;
use crate::tunnel::pool::Lease;
use crate::tunnel::window::OpenStream;
use crate::worker::socket::CarriedSocket;

/// An inner connection's transport; counts what it carries.
pub struct UpstreamIo {
    way: Way,
    record: Rc<ConnectionRecord>,
    unsent: Flow,
}

enum Way {
    Tunnel(Box<Tunnel>),
    Plain(CarriedSocket),
}

struct Tunnel {
    stream: TunnelStream,
    lease: Rc<Lease>,
    _open: OpenStream,
    /// Drained since the stream started or last stalled.
    drained: usize,
    has_ended: bool,
    /// Written, and not on the wire yet.
    queued: Flow,
}

impl UpstreamIo {
    pub(super) fn new(
        upstream: Upstream,
        record: Rc<ConnectionRecord>,
        limits: &Arc<WorkloadLimits>,
    ) -> Self {
        let way = match upstream {
            Upstream::Plain(socket) => Way::Plain(socket),
            Upstream::Tunnel(stream, lease) => {
                let tunnel = Tunnel {
                    _open: stream.window.stream(),
                    stream,
                    lease: Rc::new(lease),
                    drained: 0,
                    has_ended: false,
                    queued: Flow::new(limits.clone()),
                };
                Way::Tunnel(Box::new(tunnel))
            }
        };
        Self { way, record, unsent: Flow::new(limits.clone()) }
    }

    /// Of bodies that are to be written.
    pub(super) fn unsent(&self) -> &Flow {
        &self.unsent
    }

    /// The tunnel's stream is told apart from others of the same tunnel by its lease.
    pub fn lease(&self) -> Option<Rc<Lease>> {
        match &self.way {
            Way::Tunnel(tunnel) => Some(tunnel.lease.clone()),
            Way::Plain(_) => None,
        }
    }

    /// For carrying another protocol.
    pub fn into_raw(self) -> Raw {
        match self.way {
            Way::Plain(socket) => Raw::Plain(socket),
            Way::Tunnel(tunnel) => Raw::Tunnel(tunnel.stream, tunnel.lease),
        }
    }
}

/// A transport without HTTP.
pub enum Raw {
    Tunnel(TunnelStream, Rc<Lease>),
    Plain(CarriedSocket),
}

impl Tunnel {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        if self.stream.early.is_empty() {
            match ready!(self.stream.recv.poll_data(cx)) {
                Some(Ok(bytes)) => self.stream.early = bytes,
                Some(Err(error)) => return Poll::Ready(Err(lost(error))),
                None => return Poll::Ready(Ok(0)),
            }
        }
        let early = &mut self.stream.early;
        let length = early.len().min(buf.remaining());
        buf.put_slice(&early[..length]);
        early.advance(length);
        self.drained = self.stream.window.drained(self.drained + length);
        self.stream.recv.flow_control().release_capacity(length).map_err(lost)?;
        Poll::Ready(Ok(length))
    }

    /// What is written together travels together.
    fn poll_write(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let whole: usize = pieces.iter().map(|piece| piece.len()).sum();
        let send = &mut self.stream.send;
        send.reserve_capacity(whole);
        let mut room = send.capacity();
        while room == 0 {
            room = match ready!(send.poll_capacity(cx)) {
                Some(room) => room.map_err(lost)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let length = room.min(whole);
        let bytes = self.queued.carry(gathered(pieces, length));
        send.send_data(bytes, false).map_err(lost)?;
        Poll::Ready(Ok(length))
    }

    fn end(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.has_ended, true) {
            return Ok(());
        }
        self.stream.send.send_data(Bytes::new(), true).map_err(lost)
    }
}

/// The first bytes of the pieces.
fn gathered(pieces: &[IoSlice<'_>], length: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(length);
    for piece in pieces {
        let left = length - bytes.len();
        bytes.extend_from_slice(&piece[..left.min(piece.len())]);
    }
    bytes.freeze()
}

fn lost(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl AsyncRead for UpstreamIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let length = match &mut this.way {
            Way::Tunnel(tunnel) => ready!(tunnel.poll_read(cx, buf))?,
            Way::Plain(socket) => {
                let before = buf.filled().len();
                ready!(Pin::new(socket).poll_read(cx, buf))?;
                buf.filled().len() - before
            }
        };
        this.record.sent(length as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length = match &mut this.way {
            Way::Tunnel(tunnel) => ready!(tunnel.poll_write(cx, pieces))?,
            Way::Plain(socket) => ready!(Pin::new(socket).poll_write_vectored(cx, pieces))?,
        };
        this.unsent.sent(length);
        this.record.received(length as u64);
        Poll::Ready(Ok(length))
    }

    /// hyper copies what it writes into one buffer otherwise, and keeps that as large as it ever was.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().way {
            Way::Tunnel(_) => Poll::Ready(Ok(())),
            Way::Plain(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().way {
            Way::Tunnel(tunnel) => Poll::Ready(tunnel.end()),
            Way::Plain(socket) => {
                socket.finish();
                Pin::new(socket).poll_shutdown(cx)
            }
        }
    }
}
