//! What hyper reads of a client that speaks HTTP/1: whole heads that were judged, bodies whose framing was followed, and
//! nothing after the first thing that is wrong.
//!
//! A request that is refused is replaced by one that says nothing: so hyper asks for its answer in its turn, after the
//! answers of those before it, and the answer is ours, with its reason. How a refused request is known: by its number.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::chunks::{BadChunk, Chunks, Taken};
use super::head::{BadHead, Framing, Head, Judged, judge};
use super::timer::Timer;
use crate::limits::{MemoryCharge, WorkloadLimits};

/// Stands in for a request that is refused; never seen by anybody but hyper.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
/// Bytes that a client may send before it is known whether the protocol switches.
const MOST_HELD: usize = 64 << 10;

/// What a client may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    pub head_bytes: usize,
    /// From a head's first byte to its last.
    pub head: Duration,
    /// Between two bytes of a body that is waited for.
    pub body_idle: Duration,
}

/// Why a request is refused while it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadRequest {
    #[error("{0}")]
    Head(#[from] BadHead),
    #[error("the head is longer than {0} bytes")]
    HeadTooLong(usize),
    #[error("the head was not complete within {0:?}")]
    HeadTimeout(Duration),
    #[error("{0}")]
    Chunk(#[from] BadChunk),
    #[error("nothing of the body came for {0:?}")]
    BodyTimeout(Duration),
}

/// Shared by the reader and the requests of a connection.
#[derive(Debug, Default)]
pub struct Reading {
    /// Heads handed on so far.
    heads: Cell<u64>,
    /// The request that is refused: always the last one.
    refused: Cell<Option<(u64, BadRequest)>>,
    /// What becomes of a connection that may switch protocols.
    switch: Cell<Switch>,
    waiting: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Switch {
    #[default]
    Undecided,
    Stays,
    Switched,
}

impl Reading {
    /// Why the request of that number (from 1) is refused.
    pub fn refused(&self, number: u64) -> Option<BadRequest> {
        self.refused.get().filter(|(refused, _)| *refused == number).map(|(_, why)| why)
    }

    /// The request of that number is answered by a switch of protocols: what follows is passed on as it is.
    pub fn switched(&self, number: u64) {
        self.decide(number, Switch::Switched);
    }

    /// It is not: requests follow.
    pub fn stays(&self, number: u64) {
        self.decide(number, Switch::Stays);
    }

    /// Whether anything was refused.
    pub fn has_refused(&self) -> bool {
        self.refused.get().is_some()
    }

    /// Only the last request that was read can be one that the reader waits for.
    fn decide(&self, number: u64, switch: Switch) {
        if number != self.heads.get() {
            return;
        }
        self.switch.set(switch);
        if let Some(waker) = self.waiting.borrow_mut().take() {
            waker.wake();
        }
    }

    fn refuse(&self, number: u64, why: BadRequest) {
        if self.refused.get().is_none() {
            self.refused.set(Some((number, why)));
        }
    }
}

#[derive(Debug)]
enum At {
    Head,
    Length(u64),
    Chunks(Chunks),
    /// After a request that may switch protocols.
    Held,
    Switched,
    /// Nothing is handed on any more.
    Refused,
}

/// A socket whose reader sees only what is in order.
#[derive(Debug)]
pub struct Checked<T> {
    inner: T,
    reading: Rc<Reading>,
    limits: ReadLimits,
    at: At,
    /// Of a head that is not complete.
    partial: BytesMut,
    /// To be handed on before anything else.
    approved: BytesMut,
    timer: Timer,
    charge: MemoryCharge,
}

impl<T> Checked<T> {
    /// What it keeps counts as buffered by the workload.
    pub fn new(inner: T, reading: Rc<Reading>, limits: ReadLimits, workload: &Arc<WorkloadLimits>) -> Self {
        Self {
            inner,
            reading,
            limits,
            at: At::Head,
            partial: BytesMut::new(),
            approved: BytesMut::new(),
            timer: Timer::default(),
            charge: workload.charge(0),
        }
    }

    /// The socket, and what was read of it and not handed on.
    pub fn into_parts(mut self) -> (T, BytesMut) {
        self.approved.unsplit(self.partial);
        (self.inner, self.approved)
    }

    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    /// Follows the bytes as far as they are in order; says how many may be handed on now. Others are kept.
    fn follow(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            match &mut self.at {
                At::Head => {
                    let Some(taken) = self.follow_head(rest) else { return done };
                    done += taken;
                }
                At::Length(left) => {
                    let step = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= step as u64;
                    if *left == 0 {
                        self.at = At::Head;
                    }
                    done += step;
                }
                At::Chunks(chunks) => match chunks.take(rest) {
                    Taken::All => return bytes.len(),
                    Taken::End(taken) => {
                        self.at = At::Head;
                        done += taken;
                    }
                    Taken::Bad(_, why) => {
                        self.reading.refuse(self.reading.heads.get(), why.into());
                        self.at = At::Refused;
                        return done;
                    }
                },
                At::Held => {
                    self.partial.extend_from_slice(rest);
                    return done;
                }
                At::Switched => return bytes.len(),
                At::Refused => return done,
            }
        }
        done
    }

    /// How much of `rest` completes a head; `None` when it does not, or must not.
    fn follow_head(&mut self, rest: &[u8]) -> Option<usize> {
        let before = self.partial.len();
        let judged = if before == 0 {
            judge(rest)
        } else {
            self.partial.extend_from_slice(rest);
            judge(&self.partial)
        };
        let most = self.limits.head_bytes;
        match judged {
            Judged::Complete(head) if head.length > most => self.refuse_next(BadRequest::HeadTooLong(most)),
            Judged::Complete(head) => {
                self.timer.stop();
                self.partial.truncate(before);
                if before > 0 {
                    self.approved.unsplit(self.partial.split());
                }
                self.reading.heads.set(self.reading.heads.get() + 1);
                self.at = after(head, &self.reading);
                return Some(head.length - before);
            }
            Judged::Partial if before + rest.len() > most => {
                self.refuse_next(BadRequest::HeadTooLong(most));
            }
            Judged::Partial => {
                if before == 0 {
                    self.partial.extend_from_slice(rest);
                    self.timer.start(self.limits.head);
                }
            }
            Judged::Refused(why) => self.refuse_next(why.into()),
        }
        None
    }

    /// Puts the stand-in where the request would be.
    fn refuse_next(&mut self, why: BadRequest) {
        let number = self.reading.heads.get() + 1;
        self.reading.heads.set(number);
        self.reading.refuse(number, why);
        self.partial.clear();
        self.approved.extend_from_slice(STAND_IN);
        self.timer.stop();
        self.at = At::Refused;
    }
}

impl<T: AsyncRead + Unpin> Checked<T> {
    /// Waits for the answer that decides, and for the client's end meanwhile.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<()>>> {
        match self.reading.switch.get() {
            Switch::Undecided => {}
            Switch::Stays => {
                self.reading.switch.set(Switch::Undecided);
                self.at = At::Head;
                self.replay();
                return Poll::Ready(Ok(None));
            }
            Switch::Switched => {
                self.at = At::Switched;
                self.replay();
                return Poll::Ready(Ok(None));
            }
        }
        *self.reading.waiting.borrow_mut() = Some(cx.waker().clone());
        while self.partial.len() < MOST_HELD {
            let mut bytes = [0; 4096];
            let mut buf = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(Some(())));
            }
            self.partial.extend_from_slice(buf.filled());
        }
        Poll::Pending
    }

    /// Follows what was kept.
    fn replay(&mut self) {
        let held = self.partial.split();
        let done = self.follow(&held);
        // Bytes of heads that completed are in `held`: nothing was partial when it began.
        let tail = self.approved.split();
        self.approved.extend_from_slice(&held[..done]);
        self.approved.unsplit(tail);
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match self.at {
            At::Length(_) | At::Chunks(_) => self.timer.idle(self.limits.body_idle),
            At::Head if !self.partial.is_empty() => {}
            _ => return Poll::Pending,
        }
        ready!(self.timer.poll(cx));
        if !matches!(self.at, At::Head) {
            let why = BadRequest::BodyTimeout(self.limits.body_idle);
            self.reading.refuse(self.reading.heads.get(), why);
            self.at = At::Refused;
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        self.refuse_next(BadRequest::HeadTimeout(self.limits.head));
        Poll::Pending
    }
}

fn after(head: Head, reading: &Reading) -> At {
    match head.body {
        Framing::Length(length) => At::Length(length),
        Framing::Chunked => At::Chunks(Chunks::default()),
        Framing::None if head.may_switch => {
            reading.switch.set(Switch::Undecided);
            At::Held
        }
        Framing::None => At::Head,
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Checked<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.approved.is_empty() {
                let length = this.approved.len().min(buf.remaining());
                buf.put_slice(&this.approved[..length]);
                this.approved.advance(length);
                return Poll::Ready(Ok(()));
            }
            this.charge.set(this.partial.len() as u64);
            match this.at {
                At::Refused => {
                    return match this.reading.refused.get() {
                        // A body that went wrong: its request is given up.
                        Some((_, why @ (BadRequest::Chunk(_) | BadRequest::BodyTimeout(_)))) => {
                            Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)))
                        }
                        // The stand-in is answered, and the answer ends the connection.
                        _ => Poll::Pending,
                    };
                }
                At::Held => match ready!(this.poll_held(cx))? {
                    Some(()) => return Poll::Ready(Ok(())),
                    None => continue,
                },
                _ => {}
            }
            let before = buf.filled().len();
            match Pin::new(&mut this.inner).poll_read(cx, buf) {
                Poll::Ready(read) => read?,
                Poll::Pending => match this.poll_timer(cx) {
                    Poll::Ready(error) => return Poll::Ready(Err(error)),
                    Poll::Pending if this.approved.is_empty() => return Poll::Pending,
                    Poll::Pending => continue,
                },
            }
            if buf.filled().len() == before {
                return Poll::Ready(Ok(()));
            }
            this.timer.moved();
            let done = this.follow(&buf.filled()[before..]);
            if this.approved.is_empty() || done == 0 {
                buf.set_filled(before + done);
            } else {
                // Kept bytes come first, then these, then a stand-in if there is one.
                this.put_in_order(&buf.filled()[before..before + done]);
                buf.set_filled(before);
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<T> Checked<T> {
    /// `approved` is a completed head's first part, or a stand-in, or both; `now` belongs between the two.
    fn put_in_order(&mut self, now: &[u8]) {
        let is_refused = matches!(self.at, At::Refused) && self.approved.ends_with(STAND_IN);
        let kept = self.approved.len() - if is_refused { STAND_IN.len() } else { 0 };
        let tail = self.approved.split_off(kept);
        self.approved.extend_from_slice(now);
        self.approved.unsplit(tail);
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Checked<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "reader/answers.rs"]
mod answers;
#[cfg(test)]
#[path = "reader/tests.rs"]
mod tests;
