//! Responses' bodies as they pass: counted, bounded in time, and the place where a request ends.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use thiserror::Error;
use tokio::time::{Instant, Sleep};

use super::answer::grpc_status;
use super::flow::Way;
use super::hop::strip_trailers;
use super::pool::Held;
use super::request_body::Progress;
use super::stream::Stream;
use super::verdict;
use crate::balance::InFlight;
use crate::limits::RequestPermit;
use crate::reason::Reason;
use crate::telemetry::{Failure, RequestRecord};

/// Why a body was cut.
#[derive(Clone, Debug, Error)]
pub enum BodyError {
    #[error("the client's body was lost: {0}")]
    Client(Failure),
    #[error("{0}")]
    Cut(Failure),
}

/// What is held until a response is complete.
pub struct Exchange {
    pub record: RequestRecord,
    /// The connection to the endpoint, to be used again.
    pub held: Option<Held>,
    pub progress: Rc<Progress>,
    /// Counts towards the endpoint's load.
    pub in_flight: InFlight,
    /// Counts towards the workload's limits.
    pub _permit: RequestPermit,
}

impl Exchange {
    /// The response is complete.
    pub fn finish(mut self) {
        if let Some(held) = self.held.take().filter(|_| self.progress.has_ended()) {
            held.put_back();
        }
        self.in_flight.completed();
        self.record.finish();
    }

    fn fail(mut self, failure: Failure) {
        if failure.reason == Reason::BackendReset {
            self.in_flight.broken();
        }
        self.record.fail(failure);
        self.record.finish();
    }
}

/// A response's body on its way to the client. The request ends with it.
pub struct ResponseBody {
    inner: Inner,
    exchange: Option<Exchange>,
    deadline: Option<(Deadline, Pin<Box<Sleep>>)>,
    /// Over HTTP/2.
    stream: Option<Rc<Stream>>,
    way: Way,
}

enum Inner {
    Backend(Incoming),
    Own(Option<Bytes>),
}

/// When a response must be complete, and what is said when it is not.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    pub at: Instant,
    pub reason: Reason,
    pub after: Duration,
}

impl Deadline {
    pub fn failure(self) -> Failure {
        Failure::new(self.reason, format!("the response was not complete within {:?}", self.after))
    }
}

impl ResponseBody {
    /// Of an answer of Culvert's own.
    pub fn own(bytes: Bytes) -> Self {
        Self {
            inner: Inner::Own(Some(bytes).filter(|bytes| !bytes.is_empty())),
            exchange: None,
            deadline: None,
            stream: None,
            way: Way::Nowhere,
        }
    }

    /// Of a backend's response. One without a body ends here.
    pub fn backend(
        inner: Incoming,
        exchange: Exchange,
        deadline: Option<Deadline>,
        stream: Option<Rc<Stream>>,
        way: Way,
    ) -> Self {
        let deadline = deadline.map(|deadline| (deadline, Box::pin(tokio::time::sleep_until(deadline.at))));
        let mut body = Self { inner: Inner::Backend(inner), exchange: Some(exchange), deadline, stream, way };
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

    fn fail(&mut self, failure: Failure) -> BodyError {
        if let Some(exchange) = self.exchange.take() {
            exchange.fail(failure.clone());
        }
        BodyError::Cut(failure)
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let Some((deadline, sleep)) = &mut self.deadline else { return Poll::Pending };
        ready!(sleep.as_mut().poll(cx));
        let failure = deadline.failure();
        self.deadline = None;
        Poll::Ready(self.fail(failure))
    }

    /// A piece of the response goes to the client.
    fn pass(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        if let Some(stream) = &self.stream {
            stream.given();
            if let Some(exchange) = &self.exchange {
                exchange.progress.move_on();
            }
        }
        frame.map_data(|data| self.way.carry(data))
    }

    fn note_trailers(&mut self, trailers: &mut HeaderMap) {
        strip_trailers(trailers);
        if let (Some(exchange), Some(status)) = (&mut self.exchange, grpc_status(trailers)) {
            exchange.record.set_grpc_status(status);
            if verdict::is_failed_call(status) {
                exchange.in_flight.broken();
            }
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
        if let Some(stream) = &this.stream {
            stream.taken();
        }
        if let Poll::Ready(error) = this.poll_deadline(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        ready!(this.way.poll_room(cx));
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
                    frame = this.pass(frame);
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
                // A backend gives up what the client does not go on with.
                let lost = this.exchange.as_ref().and_then(|exchange| exchange.progress.lost());
                let failure = lost.unwrap_or_else(|| {
                    Failure::new(Reason::BackendReset, format!("in the middle of the response: {error}"))
                });
                Poll::Ready(Some(Err(this.fail(failure))))
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
