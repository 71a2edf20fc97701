//! Bodies of requests that may be sent again: what was read of one is kept, up to 64 KiB, for the attempts that follow.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::body::BodyError;
use super::request_body::RequestBody;
use crate::limits::{MemoryCharge, WorkloadLimits};
use crate::reason::Reason;
use crate::telemetry::Failure;

/// Bytes of a body that are kept, at most.
const MOST_KEPT: usize = 64 << 10;

/// A client's body, and what was read of it.
pub struct Kept(Rc<RefCell<State>>);

struct State {
    body: RequestBody,
    hint: SizeHint,
    pieces: Vec<Piece>,
    bytes: usize,
    charge: MemoryCharge,
    /// Everything that was read is kept.
    is_whole: bool,
    has_ended: bool,
    /// Of the attempt that may read now.
    attempt: u32,
}

enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// The body as one attempt reads it, from its beginning.
pub struct Replay {
    state: Rc<RefCell<State>>,
    attempt: u32,
    next: usize,
}

impl Kept {
    pub fn new(body: RequestBody, limits: &Arc<WorkloadLimits>) -> Self {
        let hint = body.size_hint();
        let fits = hint.lower() <= MOST_KEPT as u64;
        let state = State {
            hint,
            pieces: Vec::new(),
            bytes: 0,
            charge: limits.charge(0),
            is_whole: fits,
            has_ended: body.is_end_stream(),
            attempt: 0,
            body,
        };
        Self(Rc::new(RefCell::new(state)))
    }

    /// The body for another attempt. That of the one before is over.
    pub fn attempt(&self) -> RequestBody {
        let mut state = self.0.borrow_mut();
        state.attempt += 1;
        let replay = Replay { state: self.0.clone(), attempt: state.attempt, next: 0 };
        let is_empty = state.has_ended && state.pieces.is_empty();
        RequestBody::of_attempt((!is_empty).then_some(replay), &state.body)
    }

    /// Whether another attempt would get the body from its beginning.
    pub fn can_be_sent_again(&self) -> bool {
        let state = self.0.borrow();
        state.is_whole && state.body.progress().lost().is_none()
    }
}

impl State {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        if !self.is_whole {
            return;
        }
        self.bytes += frame.data_ref().map_or(0, Bytes::len);
        self.is_whole = self.bytes <= MOST_KEPT;
        if !self.is_whole {
            self.pieces = Vec::new();
            return self.charge.set(0);
        }
        self.charge.set(self.bytes as u64);
        match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => self.pieces.push(Piece::Data(data.clone())),
            (None, Some(trailers)) => self.pieces.push(Piece::Trailers(trailers.clone())),
            (None, None) => {}
        }
    }
}

impl Replay {
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let mut state = self.state.borrow_mut();
        if state.attempt != self.attempt {
            let failure = Failure::new(Reason::BackendReset, "given up for another attempt");
            return Poll::Ready(Some(Err(failure)));
        }
        if let Some(piece) = state.pieces.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(match piece {
                Piece::Data(data) => Frame::data(data.clone()),
                Piece::Trailers(trailers) => Frame::trailers(trailers.clone()),
            })));
        }
        if state.has_ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut state.body).poll_frame(cx));
        state.has_ended = frame.is_none() || state.body.is_end_stream();
        Poll::Ready(frame.map(|frame| match frame {
            Ok(frame) => {
                state.keep(&frame);
                self.next += 1;
                Ok(frame)
            }
            Err(BodyError::Client(failure) | BodyError::Cut(failure)) => Err(failure),
        }))
    }

    pub fn is_end_stream(&self) -> bool {
        let state = self.state.borrow();
        state.has_ended && self.next >= state.pieces.len()
    }

    /// Of the whole.
    pub fn size_hint(&self) -> SizeHint {
        self.state.borrow().hint
    }
}
