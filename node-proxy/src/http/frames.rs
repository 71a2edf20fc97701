//! What h2 reads of a client that speaks HTTP/2: heads whole, none larger than it may be, and not many before their requests
//! are taken. So h2 never answers for a head's size by itself, and decodes none that would be kept half-way.
//!
//! A head that is refused on the wire is replaced by one that says nothing but a word no client can know: so hyper asks for
//! its answer, and the answer is ours, with its reason. What the head would have done to the tables of HPACK is lost then,
//! so no other head is handed on; what belongs to requests under way is, until they have ended.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::blocks::{
    CONTINUATION, DATA, FRAME_HEAD, Frame, HEADERS, PUSH_PROMISE, Walk, Walked, has_endless_target,
};
use super::heads::{FrameReading, HeadLimits};
use super::reader::BadRequest;
use super::timer::Timer;
use crate::limits::{MemoryCharge, WorkloadLimits};

/// `PRI * HTTP/2.0`, an empty line, `SM`, an empty line.
const PREFACE: usize = 24;
/// Bytes of heads handed on before h2 must let go of the requests that it has read. One byte of HPACK can stand for a
/// whole field.
const HEADS_AT_ONCE: usize = 4 << 10;
/// Over the workload's budget a client that has sent what nobody takes is read this often.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, PartialEq, Eq)]
enum Mode {
    Judges,
    /// A head was refused: no other is handed on. So many bytes are part of one.
    Refuses(usize),
}

/// A socket whose reader sees only heads that it can take.
#[derive(Debug)]
pub struct Frames<T> {
    inner: T,
    reading: Rc<FrameReading>,
    limits: HeadLimits,
    mode: Mode,
    /// Bytes that are handed on whatever they say.
    passing: usize,
    walk: Walk,
    /// From the first byte of a frame's head or of a request's head that is not complete.
    held: BytesMut,
    /// To be handed on before anything else.
    approved: BytesMut,
    heads: usize,
    /// The first frame has come.
    has_begun: bool,
    timer: Timer,
    is_timed: bool,
    workload: Arc<WorkloadLimits>,
    charge: MemoryCharge,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<T> Frames<T> {
    pub fn new(
        inner: T,
        reading: Rc<FrameReading>,
        limits: HeadLimits,
        workload: Arc<WorkloadLimits>,
    ) -> Self {
        Self {
            inner,
            reading,
            limits,
            mode: Mode::Judges,
            passing: PREFACE,
            walk: Walk::default(),
            held: BytesMut::new(),
            approved: BytesMut::new(),
            heads: 0,
            has_begun: false,
            timer: Timer::default(),
            is_timed: false,
            charge: workload.charge(0),
            workload,
            pause: None,
        }
    }

    /// How many of the bytes may be handed on, in order; those after them are to be kept.
    fn follow(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            if self.passing > 0 {
                let step = self.passing.min(rest.len());
                self.passing -= step;
                done += step;
                continue;
            }
            let Some(frame) = Frame::parse(rest) else { break };
            self.has_begun = true;
            if frame.kind != HEADERS {
                self.passing = frame.whole();
                if frame.kind == DATA {
                    self.reading.received.add(frame.length);
                }
                continue;
            }
            match self.walk.go_on(rest, self.limits.on_the_wire()) {
                Walked::Partial => break,
                Walked::Whole(length) if has_endless_target(&rest[..length]) => {
                    self.refuse(frame, BadRequest::HeadTooLong(self.limits.bytes));
                    break;
                }
                Walked::Whole(length) => {
                    self.walk = Walk::default();
                    self.heads += length;
                    done += length;
                }
                Walked::TooLong => {
                    self.refuse(frame, BadRequest::HeadTooLong(self.limits.bytes));
                    break;
                }
            }
        }
        if done > 0 && self.has_begun {
            self.timer.stop();
            self.is_timed = false;
        }
        done
    }

    fn refuse(&mut self, head: Frame, why: BadRequest) {
        self.approved.extend_from_slice(&self.reading.refuse(head, why));
        self.mode = Mode::Refuses(0);
    }

    /// Follows what is kept, and lets it go as far as it can.
    fn replay(&mut self) {
        let mut held = self.held.split();
        if self.mode == Mode::Judges {
            let done = self.follow(&held);
            // What goes before a head that is refused comes before what stands in for it. Nothing else was waiting.
            let stand_in = self.approved.split();
            self.approved.extend_from_slice(&held[..done]);
            self.approved.unsplit(stand_in);
            held.advance(done);
        }
        if let Mode::Refuses(skipping) = self.mode {
            self.mode = Mode::Refuses(self.drop_heads(&mut held, skipping));
        }
        self.held = held;
    }

    /// Hands on all but heads; says how much of a head is still to come.
    fn drop_heads(&mut self, held: &mut BytesMut, mut skipping: usize) -> usize {
        while !held.is_empty() {
            if skipping > 0 {
                let step = skipping.min(held.len());
                held.advance(step);
                skipping -= step;
                continue;
            }
            if self.passing > 0 {
                let step = self.passing.min(held.len());
                self.approved.extend_from_slice(&held[..step]);
                held.advance(step);
                self.passing -= step;
                continue;
            }
            match Frame::parse(held) {
                Some(frame) if matches!(frame.kind, HEADERS | CONTINUATION | PUSH_PROMISE) => {
                    skipping = frame.whole();
                }
                Some(frame) => self.passing = frame.whole(),
                None => break,
            }
        }
        skipping
    }

    /// Takes what was read into `buf` after its first `before` bytes.
    fn take(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        if self.held.is_empty() && self.mode == Mode::Judges && self.approved.is_empty() {
            let bytes = &buf.filled()[before..];
            let done = self.follow(bytes);
            if done < bytes.len() {
                self.held.extend_from_slice(&bytes[done..]);
            }
            buf.set_filled(before + done);
            if self.mode != Mode::Judges {
                self.replay();
            }
        } else {
            self.held.extend_from_slice(&buf.filled()[before..]);
            buf.set_filled(before);
            self.replay();
        }
        self.charge.set((self.held.len() + self.approved.len()) as u64);
    }

    /// What came of a head must become all of it in time.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let is_waiting = self.mode == Mode::Judges && !(self.held.is_empty() && self.has_begun);
        if !is_waiting {
            return Poll::Pending;
        }
        if !std::mem::replace(&mut self.is_timed, true) {
            self.timer.start(self.limits.time);
        }
        std::task::ready!(self.timer.poll(cx));
        let why = BadRequest::HeadTimeout(self.limits.time);
        match Frame::parse(&self.held) {
            Some(frame) if self.held.len() >= FRAME_HEAD => {
                self.refuse(frame, why);
                self.replay();
                Poll::Ready(Ok(()))
            }
            _ => {
                self.reading.give_up(why);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
            }
        }
    }

    /// Ready when more may be read: over the budget not before a pause, if what came is not taken.
    fn poll_budget(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.workload.is_over_budget() || self.reading.received.is_empty() {
            self.pause = None;
            return Poll::Ready(());
        }
        let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(PAUSE)));
        std::task::ready!(pause.as_mut().poll(cx));
        self.pause = None;
        Poll::Ready(())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Frames<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.approved.is_empty() {
                let length = this.approved.len().min(buf.remaining());
                buf.put_slice(&this.approved[..length]);
                this.approved.advance(length);
                this.charge.set((this.held.len() + this.approved.len()) as u64);
                return Poll::Ready(Ok(()));
            }
            if this.heads >= HEADS_AT_ONCE {
                this.heads = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if this.poll_budget(cx).is_pending() {
                return Poll::Pending;
            }
            let before = buf.filled().len();
            match Pin::new(&mut this.inner).poll_read(cx, buf) {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    this.heads = 0;
                    match this.poll_timer(cx) {
                        Poll::Ready(refused) => refused?,
                        Poll::Pending => return Poll::Pending,
                    }
                    continue;
                }
            }
            if buf.filled().len() == before {
                return Poll::Ready(Ok(()));
            }
            this.take(buf, before);
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Frames<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "frames/tests.rs"]
mod tests;
