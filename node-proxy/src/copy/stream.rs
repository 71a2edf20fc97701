//! Socket to stream of a tunnel.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason as H2Reason, RecvStream, SendStream};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::buffer::Growth;
use super::tcp::{has_ended, note_read, read_scratch, write_last, write_some};
use super::{Copy, CopyError, Pace, Side, shutdown_write, socket_error};
use crate::limits::MemoryCharge;
use crate::tunnel::window::Window;
use crate::worker::socket::CarriedSocket;

/// Below this, bytes are read into the worker's scratch buffer and copied, so that they hold no more than their size.
const COPIED: usize = 1 << 10;
/// How often the tunnel is given a turn to send what a side said last before that side's reset follows.
const TURNS_BEFORE_RESET: usize = 3;

/// How often the bytes that wait for a stalled reader are counted.
const RECOUNT_EVERY: Duration = Duration::from_millis(250);

/// A carried connection's stream of a tunnel. Dropped before both directions have ended, it is reset.
pub struct TunnelStream {
    pub send: SendStream<Bytes>,
    pub recv: RecvStream,
    pub window: Rc<Window>,
    /// Received, but not delivered yet; its flow-control capacity is not released.
    pub early: Bytes,
}

impl TunnelStream {
    pub fn new(send: SendStream<Bytes>, recv: RecvStream, window: Rc<Window>) -> Self {
        Self { send, recv, window, early: Bytes::new() }
    }

    /// Returns when the far side has said something, or has ended its direction.
    pub async fn speaks(&mut self) {
        if self.early.is_empty() {
            // An end or a reset is told again to whoever reads next.
            if let Some(Ok(bytes)) = poll_fn(|cx| self.recv.poll_data(cx)).await {
                self.early = bytes;
            }
        }
    }
}

/// Bytes on their way into a tunnel, charged to their workload until the tunnel has sent them.
struct Charged {
    bytes: BytesMut,
    _charge: MemoryCharge,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn lost(side: Side, error: h2::Error) -> CopyError {
    match error.is_reset() && error.is_remote() {
        true => CopyError::StreamReset { side, error },
        false => CopyError::TunnelLost { side, error },
    }
}

impl Copy<'_> {
    /// Carries a connection between a socket, which is the connection's `near` side, and a stream. On success both are
    /// closed in order; otherwise the socket and the stream are reset, also when this future is dropped.
    ///
    /// # Errors
    /// When a side or the tunnel is lost, or nothing is sent for too long after one side has closed.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async fn keeps its arguments twice, as long as a connection is open"
    )]
    pub fn tunnelled(
        &self,
        socket: CarriedSocket,
        near: Side,
        mut stream: TunnelStream,
    ) -> impl Future<Output = Result<(), CopyError>> {
        async move {
            // Borrowed, because what is taken out of an argument is kept twice, too.
            let TunnelStream { send, recv, window, early } = &mut stream;
            let _open = window.stream();
            let gone = async |side| match side == near {
                true => CopyError::Read { side, error: socket_error(&socket).await },
                // The direction that goes on towards that side sees its reset.
                false => std::future::pending().await,
            };
            let result = {
                let out = pin!(self.feed_stream(&socket, send, near));
                let back = pin!(self.drain_stream(std::mem::take(early), recv, &socket, window, near));
                match near {
                    Side::Client => self.both(out, back, gone).await,
                    Side::Server => self.both(back, out, gone).await,
                }
            };
            match result {
                Ok(()) => socket.finish(),
                Err(_) => {
                    for _ in 0..TURNS_BEFORE_RESET {
                        tokio::task::yield_now().await;
                    }
                    stream.send.send_reset(H2Reason::CANCEL);
                }
            }
            result
        }
    }

    async fn feed_stream(
        &self,
        from: &TcpStream,
        send: &mut SendStream<Bytes>,
        near: Side,
    ) -> Result<(), CopyError> {
        let far = near.other();
        let (mut growth, mut pace) = (Growth::default(), Pace(0));
        loop {
            let is_closed = tokio::select! {
                biased;
                ready = from.ready(Interest::READABLE) => {
                    ready.map_err(|error| CopyError::Read { side: near, error })?.is_read_closed()
                }
                reset = poll_fn(|cx| send.poll_reset(cx)) => return Err(match reset {
                    Ok(reason) => CopyError::StreamReset { side: far, error: reason.into() },
                    Err(error) => lost(far, error),
                }),
            };
            self.limits.relief().await;
            let size = growth.size(self.limits.memory_left());
            let read = self.read(from, size).map_err(|error| CopyError::Read { side: near, error })?;
            let Some(bytes) = read else { continue };
            let length = bytes.len();
            if length == 0 {
                return send.send_data(Bytes::new(), true).map_err(|error| lost(far, error));
            }
            growth.record(length, size);
            // What a side says last travels together with its end.
            let ended = if is_closed && length < size { has_ended(from) } else { Ok(false) };
            let then = if matches!(ended, Ok(true)) { Then::End } else { Then::More };
            self.send_all(from, send, bytes, near, then).await?;
            if ended.map_err(|error| CopyError::Read { side: near, error })? {
                return Ok(());
            }
            pace.moved(length).await;
        }
    }

    fn read(&self, from: &TcpStream, size: usize) -> std::io::Result<Option<Bytes>> {
        if size <= COPIED {
            return read_scratch(from, size, Bytes::copy_from_slice);
        }
        let mut bytes = BytesMut::with_capacity(size);
        let read = from.try_read_buf(&mut bytes);
        note_read(from, read.as_ref().map_or(0, |read| *read), bytes.capacity());
        match read {
            Ok(read) if read * 4 < size => Ok(Some(Bytes::copy_from_slice(&bytes))),
            Ok(_) => {
                let charge = self.limits.charge(bytes.capacity() as u64);
                Ok(Some(Bytes::from_owner(Charged { bytes, _charge: charge })))
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The source is not read while the stream has no room, so its reset has to be looked for.
    async fn send_all(
        &self,
        from: &TcpStream,
        send: &mut SendStream<Bytes>,
        mut bytes: Bytes,
        near: Side,
        then: Then,
    ) -> Result<(), CopyError> {
        let far = near.other();
        while bytes.has_remaining() {
            send.reserve_capacity(bytes.len());
            let room = tokio::select! {
                biased;
                room = poll_fn(|cx| send.poll_capacity(cx)) => room,
                error = socket_error(from) => return Err(CopyError::Read { side: near, error }),
            };
            let room = match room {
                Some(Ok(room)) => room.min(bytes.len()),
                Some(Err(error)) => return Err(lost(far, error)),
                None => {
                    return Err(CopyError::StreamReset { side: far, error: H2Reason::STREAM_CLOSED.into() });
                }
            };
            let next = bytes.split_to(room);
            let is_last = then == Then::End && bytes.is_empty();
            send.send_data(next, is_last).map_err(|error| lost(far, error))?;
            self.delivered(far.towards(), room);
        }
        Ok(())
    }

    async fn drain_stream(
        &self,
        mut early: Bytes,
        recv: &mut RecvStream,
        to: &TcpStream,
        window: &Window,
        near: Side,
    ) -> Result<(), CopyError> {
        let far = near.other();
        let mut pace = Pace(0);
        let (mut drained, mut untold) = (0, 0);
        loop {
            let next = poll_fn(|cx| match poll_next(&mut early, recv, cx) {
                Poll::Ready(data) => Poll::Ready(Next::Data(data)),
                Poll::Pending => window.poll_untold(untold, cx).map(|()| Next::Untold),
            });
            let Next::Data(data) = next.await else {
                tell(recv, &mut untold, far)?;
                continue;
            };
            let Some(data) = data else { break };
            let mut data = data.map_err(|error| match lost(far, error) {
                // Everything that was sent before the reset has been delivered.
                CopyError::StreamReset { side, error } => CopyError::Read {
                    side,
                    error: std::io::Error::new(std::io::ErrorKind::ConnectionReset, error),
                },
                other => other,
            })?;
            let length = data.len();
            if length == 0 {
                continue;
            }
            let write = if recv.is_end_stream() { write_last } else { write_some };
            let mut written = write(to, &data).map_err(|error| CopyError::Write { side: near, error })?;
            drained += written;
            if written < length {
                data.advance(written);
                drained = 0;
                tell(recv, &mut untold, far)?;
                // Boxed, because it is the exception and connections that idle should be small.
                written += Box::pin(self.write_out(recv, to, data, window, near)).await?;
            } else {
                drained = window.drained(drained);
            }
            debug_assert_eq!(written, length);
            untold += length;
            if untold > window.most_untold() {
                tell(recv, &mut untold, far)?;
            }
            self.delivered(near.towards(), length);
            pace.moved(length).await;
        }
        shutdown_write(to, near)
    }

    /// While the socket takes nothing, what the stream has received so far is charged to the workload.
    async fn write_out(
        &self,
        recv: &mut RecvStream,
        to: &TcpStream,
        mut data: Bytes,
        window: &Window,
        near: Side,
    ) -> Result<usize, CopyError> {
        let length = data.len();
        let mut charge = self.limits.charge(0);
        while data.has_remaining() {
            charge.set(recv.flow_control().used_capacity() as u64);
            window.stalled();
            if let Ok(writable) = tokio::time::timeout(RECOUNT_EVERY, to.writable()).await {
                let written = writable.and_then(|()| write_some(to, &data));
                data.advance(written.map_err(|error| CopyError::Write { side: near, error })?);
            }
        }
        Ok(length)
    }
}

/// What follows bytes that are sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    More,
    End,
}

enum Next {
    Data(Option<Result<Bytes, h2::Error>>),
    /// The peer must be told what was delivered, because the window has become smaller.
    Untold,
}

/// Tells the peer that it may send again what was delivered.
fn tell(recv: &mut RecvStream, untold: &mut usize, far: Side) -> Result<(), CopyError> {
    recv.flow_control().release_capacity(std::mem::take(untold)).map_err(|error| lost(far, error))
}

/// What was received before, then what follows.
fn poll_next(
    early: &mut Bytes,
    recv: &mut RecvStream,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, h2::Error>>> {
    if early.is_empty() { recv.poll_data(cx) } else { Poll::Ready(Some(Ok(std::mem::take(early)))) }
}
