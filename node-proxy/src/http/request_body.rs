//! Requests' bodies on their way to an endpoint: counted, and waited for only so long.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::body::BodyError;
use super::copies::{CopyReader, CopyWriter};
use super::expect::Gate;
use super::flow::Way;
use super::heads::Receives;
use super::hop::strip_trailers;
use super::replay::Replay;
use super::timer::Patience;
use crate::reason::Reason;
use crate::telemetry::Failure;

/// What is known of a request's body by those who do not read it.
#[derive(Debug, Default)]
pub struct Progress {
    /// The client's body was lost, and why.
    lost: RefCell<Option<Failure>>,
    ended: Cell<bool>,
    touched: Cell<bool>,
    /// Something of the request or of its response was passed on.
    moved: Rc<Cell<Option<Instant>>>,
}

impl Progress {
    /// Of one attempt to send what comes of this body. What moves in one moves in both.
    fn of_attempt(&self) -> Self {
        Self { moved: self.moved.clone(), ..Self::default() }
    }

    pub fn lost(&self) -> Option<Failure> {
        self.lost.borrow().clone()
    }

    /// Something was passed on.
    pub fn move_on(&self) {
        self.moved.set(Some(Instant::now()));
    }

    /// Nothing of the body is left to be sent.
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Something of the body was taken.
    pub fn is_touched(&self) -> bool {
        self.touched.get()
    }
}

/// A request's body on its way to an endpoint.
pub struct RequestBody {
    source: Source,
    /// For mirrors; they get what is read.
    copies: Vec<CopyWriter>,
    counted: Rc<Cell<u64>>,
    progress: Rc<Progress>,
    /// Closed until the server asks for the body.
    gate: Option<Gate>,
    /// Over HTTP/2; what reads HTTP/1 has its own.
    client: Option<Http2Client>,
    way: Way,
}

/// Where a body comes from.
enum Source {
    /// There is none.
    Nothing,
    Client(Incoming),
    /// A mirror's copy.
    Copy(CopyReader),
    /// What an attempt sends of a body that is kept.
    Replay(Replay),
}

/// The client's part of a request's body over HTTP/2.
pub struct Http2Client {
    pub receives: Receives,
    /// How long neither the body nor the response may move.
    pub idle: Duration,
    waits_since: Option<Instant>,
    patience: Patience,
}

impl Http2Client {
    pub fn new(receives: Receives, idle: Duration) -> Self {
        Self { receives, idle, waits_since: None, patience: Patience::default() }
    }

    /// Ready when the client has sent nothing for too long while it was waited for.
    fn poll_idle(&mut self, cx: &mut Context<'_>, progress: &Progress) -> Poll<Failure> {
        let waits_since = *self.waits_since.get_or_insert_with(Instant::now);
        let since = progress.moved.get().map_or(waits_since, |moved| moved.max(waits_since));
        ready!(self.patience.poll(cx, since + self.idle));
        let message = format!("nothing of the body came for {:?}", self.idle);
        Poll::Ready(Failure::new(Reason::RequestBodyTimeout, message))
    }
}

impl RequestBody {
    pub fn new(inner: Incoming, counted: Rc<Cell<u64>>, client: Option<Http2Client>) -> Self {
        let progress = Rc::new(Progress::default());
        let is_empty = inner.is_end_stream();
        progress.ended.set(is_empty);
        let client = client.filter(|_| !is_empty);
        let source = if is_empty { Source::Nothing } else { Source::Client(inner) };
        Self { source, copies: Vec::new(), counted, progress, gate: None, client, way: Way::Nowhere }
    }

    /// Of a mirror's request.
    pub fn of_copy(copy: Option<CopyReader>, counted: Rc<Cell<u64>>) -> Self {
        let progress = Rc::new(Progress::default());
        progress.ended.set(copy.is_none());
        Self {
            source: copy.map_or(Source::Nothing, Source::Copy),
            copies: Vec::new(),
            counted,
            progress,
            gate: None,
            client: None,
            way: Way::Nowhere,
        }
    }

    /// Of one attempt to send a client's body; none for one that is empty.
    pub fn of_attempt(replay: Option<Replay>, of: &Self) -> Self {
        let progress = Rc::new(of.progress.of_attempt());
        progress.ended.set(replay.is_none());
        Self {
            source: replay.map_or(Source::Nothing, Source::Replay),
            copies: Vec::new(),
            // What is read is counted where it is read.
            counted: Rc::default(),
            progress,
            gate: None,
            client: None,
            way: Way::Nowhere,
        }
    }

    /// Writes what is read to a copy, too.
    pub fn copy_to(&mut self, copy: CopyWriter) {
        self.copies.push(copy);
    }

    /// The same, for a request that is sent again; only one without a body can be.
    pub fn again(&self) -> Option<Self> {
        matches!(self.source, Source::Nothing).then(|| Self {
            source: Source::Nothing,
            copies: Vec::new(),
            counted: self.counted.clone(),
            progress: self.progress.clone(),
            gate: None,
            client: None,
            way: Way::Nowhere,
        })
    }

    /// Waits for the gate.
    pub fn set_gate(&mut self, gate: Option<Gate>) {
        self.gate = gate;
    }

    /// Goes that way from now on.
    pub fn set_way(&mut self, way: Way) {
        self.way = way;
    }

    /// What comes from another body of this process.
    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        ready!(self.way.poll_room(cx));
        let frame = match &mut self.source {
            Source::Copy(copy) => ready!(copy.poll_frame(cx)),
            Source::Replay(replay) => ready!(replay.poll_frame(cx)),
            Source::Nothing | Source::Client(_) => return Poll::Ready(None),
        };
        self.progress.touched.set(true);
        self.progress.ended.set(self.is_end_stream());
        Poll::Ready(frame.map(|frame| match frame {
            Ok(frame) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                self.counted.set(self.counted.get() + length as u64);
                Ok(frame.map_data(|data| self.way.carry(data)))
            }
            Err(failure) => Err(self.lose(failure)),
        }))
    }

    fn lose(&self, failure: Failure) -> BodyError {
        *self.progress.lost.borrow_mut() = Some(failure.clone());
        BodyError::Client(failure)
    }

    pub fn progress(&self) -> Rc<Progress> {
        self.progress.clone()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let inner = match &mut this.source {
            Source::Nothing => return Poll::Ready(None),
            Source::Copy(_) | Source::Replay(_) => return this.poll_inner(cx),
            Source::Client(inner) => inner,
        };
        if let Some(gate) = &mut this.gate {
            ready!(gate.poll_open(cx));
            this.gate = None;
        }
        ready!(this.way.poll_room(cx));
        let frame = match (Pin::new(&mut *inner).poll_frame(cx), &mut this.client) {
            (Poll::Ready(frame), _) => frame,
            (Poll::Pending, None) => return Poll::Pending,
            (Poll::Pending, Some(client)) => {
                let failure = ready!(client.poll_idle(cx, &this.progress));
                return Poll::Ready(Some(Err(this.lose(failure))));
            }
        };
        this.progress.touched.set(true);
        match frame {
            Some(Ok(mut frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.counted.set(this.counted.get() + data.len() as u64);
                    this.copies.iter().for_each(|copy| copy.data(data));
                    if let Some(client) = &mut this.client {
                        client.receives.took(data.len());
                        client.waits_since = None;
                        this.progress.move_on();
                    }
                } else if let Some(trailers) = frame.trailers_mut() {
                    strip_trailers(trailers);
                    this.copies.iter().for_each(|copy| copy.trailers(trailers));
                }
                // Nothing follows trailers, whether the source knows it yet or not.
                let has_ended = frame.is_trailers() || inner.is_end_stream();
                this.progress.ended.set(has_ended);
                if has_ended {
                    this.copies.iter().for_each(CopyWriter::finish);
                }
                Poll::Ready(Some(Ok(frame.map_data(|data| this.way.carry(data)))))
            }
            Some(Err(error)) => {
                let message = format!("in the middle of the request's body: {error}");
                Poll::Ready(Some(Err(this.lose(Failure::new(Reason::ClientCancelled, message)))))
            }
            None => {
                this.progress.ended.set(true);
                this.copies.iter().for_each(CopyWriter::finish);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Nothing => true,
            Source::Client(inner) => inner.is_end_stream(),
            Source::Copy(copy) => copy.is_end_stream(),
            Source::Replay(replay) => replay.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Nothing => SizeHint::with_exact(0),
            Source::Client(inner) => inner.size_hint(),
            Source::Copy(copy) => copy.size_hint(),
            Source::Replay(replay) => replay.size_hint(),
        }
    }
}
