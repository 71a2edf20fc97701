//! Bodies as they pass: counted, bounded in time, and the place where a request ends.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use thiserror::Error;
use tokio::time::Sleep;

use super::answer::grpc_status;
use super::expect::Gate;
use super::hop::strip_trailers;
use super::pool::Held;
use crate::balance::InFlight;
use crate::reason::Reason;
use crate::telemetry::{Failure, RequestRecord};

/// Why a body was cut.
#[derive(Clone, Debug, Error)]
pub enum BodyError {
    #[error("the client's body was lost: {0}")]
    Client(String),
    #[error("{0}")]
    Cut(Failure),
}

/// What is known of a request's body by those who do not read it.
#[derive(Debug, Default)]
pub struct Progress {
    /// The client's body was lost.
    lost: RefCell<Option<String>>,
    ended: Cell<bool>,
    touched: Cell<bool>,
}

impl Progress {
    pub fn lost(&self) -> Option<String> {
        self.lost.borrow().clone()
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
    /// `None`: there is none.
    inner: Option<Incoming>,
    counted: Rc<Cell<u64>>,
    progress: Rc<Progress>,
    /// Closed until the server asks for the body.
    gate: Option<Gate>,
}

impl RequestBody {
    pub fn new(inner: Incoming, counted: Rc<Cell<u64>>, gate: Option<Gate>) -> Self {
        let progress = Rc::new(Progress::default());
        let is_empty = inner.is_end_stream();
        progress.ended.set(is_empty);
        Self { inner: (!is_empty).then_some(inner), counted, progress, gate }
    }

    /// The same, for a request that is sent again; only one without a body can be.
    pub fn again(&self) -> Option<Self> {
        self.inner.is_none().then(|| Self {
            inner: None,
            counted: self.counted.clone(),
            progress: self.progress.clone(),
            gate: None,
        })
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
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        if let Some(gate) = &mut this.gate {
            ready!(gate.poll_open(cx));
            this.gate = None;
        }
        let frame = ready!(Pin::new(&mut *inner).poll_frame(cx));
        this.progress.touched.set(true);
        match frame {
            Some(Ok(mut frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.counted.set(this.counted.get() + data.len() as u64);
                } else if let Some(trailers) = frame.trailers_mut() {
                    strip_trailers(trailers);
                }
                this.progress.ended.set(inner.is_end_stream());
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                let error = error.to_string();
                *this.progress.lost.borrow_mut() = Some(error.clone());
                Poll::Ready(Some(Err(BodyError::Client(error))))
            }
            None => {
                this.progress.ended.set(true);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// What is held until a response is complete.
pub struct Exchange {
    pub record: RequestRecord,
    /// The connection to the endpoint, to be used again.
    pub held: Option<Held>,
    pub progress: Rc<Progress>,
    /// Counts towards the endpoint's load.
    pub _in_flight: InFlight,
}

impl Exchange {
    /// The response is complete.
    pub fn finish(mut self) {
        if let Some(held) = self.held.take().filter(|_| self.progress.has_ended()) {
            held.put_back();
        }
        self.record.finish();
    }

    fn fail(mut self, failure: Failure) {
        self.record.fail(failure);
        self.record.finish();
    }
}

/// A response's body on its way to the client. The request ends with it.
pub struct ResponseBody {
    inner: Inner,
    exchange: Option<Exchange>,
    deadline: Option<Deadline>,
}

enum Inner {
    Backend(Incoming),
    Own(Option<Bytes>),
}

/// When a response must be complete, and what is said when it is not.
pub struct Deadline {
    sleep: Pin<Box<Sleep>>,
    reason: Reason,
    after: Duration,
}

impl Deadline {
    pub fn new(at: tokio::time::Instant, reason: Reason, after: Duration) -> Self {
        Self { sleep: Box::pin(tokio::time::sleep_until(at)), reason, after }
    }
}

impl ResponseBody {
    /// Of an answer of Culvert's own.
    pub fn own(bytes: Bytes) -> Self {
        Self {
            inner: Inner::Own(Some(bytes).filter(|bytes| !bytes.is_empty())),
            exchange: None,
            deadline: None,
        }
    }

    /// Of a backend's response. One without a body ends here.
    pub fn backend(inner: Incoming, exchange: Exchange, deadline: Option<Deadline>) -> Self {
        let mut body = Self { inner: Inner::Backend(inner), exchange: Some(exchange), deadline };
        if body.is_end_stream() {
            body.finish();
        }
        body
    }

    fn finish(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.finish();
        }
    }

    fn fail(&mut self, reason: Reason, message: impl std::fmt::Display) -> BodyError {
        let failure = Failure::new(reason, message);
        if let Some(exchange) = self.exchange.take() {
            exchange.fail(failure.clone());
        }
        BodyError::Cut(failure)
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        ready!(deadline.sleep.as_mut().poll(cx));
        let (reason, after) = (deadline.reason, deadline.after);
        self.deadline = None;
        Poll::Ready(self.fail(reason, format!("the response was not complete within {after:?}")))
    }

    fn note_trailers(&mut self, trailers: &mut HeaderMap) {
        strip_trailers(trailers);
        if let (Some(exchange), Some(status)) = (&mut self.exchange, grpc_status(trailers)) {
            exchange.record.set_grpc_status(status);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Poll::Ready(error) = this.poll_deadline(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        let inner = match &mut this.inner {
            Inner::Own(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Inner::Backend(inner) => inner,
        };
        match ready!(Pin::new(inner).poll_frame(cx)) {
            Some(Ok(mut frame)) => {
                if let Some(data) = frame.data_ref() {
                    let length = data.len();
                    if let Some(exchange) = &mut this.exchange {
                        exchange.record.sent(length);
                    }
                    // Whoever writes the body does not ask again after its last byte.
                    if this.is_end_stream() {
                        this.finish();
                    }
                } else if let Some(trailers) = frame.trailers_mut() {
                    this.note_trailers(trailers);
                    this.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                let message = format!("in the middle of the response: {error}");
                Poll::Ready(Some(Err(this.fail(Reason::BackendReset, message))))
            }
            None => {
                this.finish();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Backend(inner) => inner.is_end_stream(),
            Inner::Own(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Backend(inner) => inner.size_hint(),
            Inner::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
        }
    }
}
