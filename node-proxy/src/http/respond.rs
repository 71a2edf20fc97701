//! What happens to one request, from top to bottom.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use culvert_routing::cors::{Preflight, origin};
use culvert_routing::filters::{Answer, Redirection, apply_to_own_answer};
use culvert_routing::request::is_grpc;
use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Version};
use hyper::body::Incoming;

use super::answer::{self, Asked, grpc_status};
use super::body::{Exchange, ResponseBody};
use super::decision::Routed;
use super::flow::{Flow, Way};
use super::forward::{Destination, Forwarded};
use super::heads::{self, Read, RefusedHead};
use super::hop;
use super::names::{REQUEST_ID, TRACEPARENT, named, new_request_id, new_traceparent};
use super::reader::BadRequest;
use super::request_body::{Http2Client, RequestBody};
use super::serve::ClientConnection;
use super::session::Kept;
use super::stream::Stream;
use super::target::BadTarget;
use crate::limits::{RequestLimitReached, RequestPermit};
use crate::reason::Reason;
use crate::telemetry::{Ending, Failure, RequestHead, RequestProtocol, RequestRecord};

/// Counts a request as under way.
struct UnderWay<'c>(&'c ClientConnection);

impl<'c> UnderWay<'c> {
    fn begin(connection: &'c ClientConnection) -> Self {
        connection.requests.set(connection.requests.get() + 1);
        connection.in_flight.set(connection.in_flight.get() + 1);
        Self(connection)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get().saturating_sub(1));
    }
}

/// What ends a request without a backend's response.
pub enum Instead {
    Refused(Failure),
    Redirect(Redirection),
    /// What is said to a browser before the request proper.
    Preflight(HeaderMap),
}

impl From<Failure> for Instead {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure)
    }
}

impl From<Answer> for Instead {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Preflight(Preflight::Refused) => refuse(
                Reason::OriginNotAllowed,
                "no allowOrigins of the rule has the origin of this preflight",
            ),
            Answer::Preflight(Preflight::Granted(headers)) => Self::Preflight(headers),
            Answer::Redirection(to) => Self::Redirect(to),
        }
    }
}

impl From<BadTarget> for Instead {
    fn from(bad: BadTarget) -> Self {
        Self::Refused(Failure::new(Reason::BadRequest, bad))
    }
}

impl From<RequestLimitReached> for Instead {
    fn from(limit: RequestLimitReached) -> Self {
        Self::Refused(Failure::new(Reason::WorkloadLimit, limit))
    }
}

pub(super) fn refuse(reason: Reason, message: impl std::fmt::Display) -> Instead {
    Instead::Refused(Failure::new(reason, message))
}

/// A request whose head was read.
struct Begun {
    /// Which of its connection it is.
    number: u64,
    is_http2: bool,
    asked: Asked,
    /// How long a client may be slow.
    patience: Duration,
    /// Over HTTP/2.
    stream: Option<Rc<Stream>>,
    record: RequestRecord,
    routed: Result<(Box<Routed>, RequestPermit), Instead>,
}

impl ClientConnection {
    /// Answers a request: with a backend's response, or with one of its own. `refused`: over HTTP/2, what is wrong with its
    /// head.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async fn keeps its arguments twice, and they are moved for every request"
    )]
    pub fn respond(
        self: Rc<Self>,
        request: Request<Incoming>,
        refused: Option<RefusedHead>,
    ) -> impl Future<Output = Response<ResponseBody>> {
        async move {
            let _under_way = UnderWay::begin(&self);
            let Begun { number, is_http2, asked, patience, stream, mut record, routed } =
                self.begin(request, refused);
            let exchanged = match routed {
                Err(instead) => Err(instead),
                // Boxed: a connection without requests has no room for one.
                Ok((routed, permit)) => {
                    let exchanged = Box::pin(self.exchange(routed, &mut record)).await;
                    exchanged.map(|forwarded| (forwarded, permit))
                }
            };
            self.interim.close();
            let instead = match exchanged {
                Ok((forwarded, permit)) => {
                    let watched = stream.inspect(|stream| stream.watch(patience, forwarded.deadline));
                    return self.pass_on(forwarded, record, permit, watched, number);
                }
                Err(instead) => instead,
            };
            self.reading.stays(number);
            // What went wrong while the body was read explains what went wrong with sending it.
            let instead = match self.reading.refused(number).filter(|_| !is_http2) {
                Some(bad) => refused_by_reader(bad),
                None => instead,
            };
            let closes = !is_http2 && self.reading.has_refused();
            own_answer(instead, asked, closes, record)
        }
    }

    /// Admits and routes a request, or says why not.
    fn begin(self: &Rc<Self>, request: Request<Incoming>, refused: Option<RefusedHead>) -> Begun {
        let number = self.requests.get();
        let is_http2 = request.version() == Version::HTTP_2;
        // What is not known of a head is taken to be as in the request before.
        let is_unread = refused.is_some_and(|refused| refused.read == Read::Not);
        let is_call =
            if is_unread { self.calls.get() } else { is_grpc(request.version(), request.headers()) };
        self.calls.set(is_call);
        let (head_bytes, stream) = (heads::size(&request).1, Stream::current());
        let (mut parts, body) = request.into_parts();
        let ending = stream.as_ref().map_or(&self.ending, |stream| &stream.ending).clone();
        let mut record = self.record(&mut parts, is_call, ending);
        let timeouts = self.outbound.timeouts();
        let patience = if is_call { timeouts.connection_idle } else { timeouts.body_idle };
        let client = is_http2.then(|| Http2Client::new(self.frames.receives(), patience));
        let body = RequestBody::new(body, record.received(), client);
        let refused =
            refused.map(|refused| refused.why).or_else(|| self.reading.refused(number).filter(|_| !is_http2));
        let permit = match refused {
            Some(bad) => Err(refused_by_reader(bad)),
            None => self.outbound.pod.pod.limits.request(head_bytes as u64).map_err(Instead::from),
        };
        let routed = permit.and_then(|permit| Ok((self.routed(parts, body, &mut record)?, permit)));
        let asked = if is_call { Asked::Grpc } else { Asked::Http };
        Begun { number, is_http2, asked, patience, stream, record, routed }
    }

    /// Notes what was asked, and gives the request the names it is logged under.
    fn record(&self, parts: &mut Parts, is_call: bool, ending: Rc<Ending>) -> RequestRecord {
        let authority = match parts.uri.authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => parts.headers.get(HOST).cloned(),
        };
        let head = RequestHead {
            source_addr: self.outbound.client,
            service: self.parent.service().cloned(),
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            authority,
            version: parts.version,
            request_id: named(&mut parts.headers, REQUEST_ID, new_request_id),
            traceparent: named(&mut parts.headers, TRACEPARENT, new_traceparent),
            origin: origin(&parts.headers).cloned(),
        };
        let protocol = if is_call { RequestProtocol::Grpc } else { RequestProtocol::Http };
        let telemetry = self.outbound.context.shared.telemetry.clone();
        RequestRecord::begin(telemetry, head, protocol, self.meta.clone(), self.series.clone(), ending)
    }

    /// Sends a request whose way is decided, and applies to the response what the rule says.
    async fn exchange(&self, routed: Box<Routed>, record: &mut RequestRecord) -> Result<Forwarded, Instead> {
        let destination = Destination {
            service: &routed.decision.service,
            port: routed.decision.port,
            snapshot: &routed.snapshot,
            request_deadline: routed.request_deadline,
            backend_limit: routed.decision.timeouts.backend_request,
            retry: routed.decision.retry(routed.wants_upgrade),
            pinned: RefCell::new(routed.decision.session.as_ref().and_then(Kept::endpoint)),
        };
        let (version, request) = (routed.version, routed.request);
        let mut forwarded = match destination.retry {
            // Boxed, so that requests without retries do not make room for those with.
            Some(retry) => {
                Box::pin(self.send_with_retries(&destination, version, request, retry, record)).await?
            }
            None => self.try_endpoints(&destination, version, request, record, &mut Vec::new()).await?,
        };
        if forwarded.agreed.is_none() {
            leave_connection(&mut forwarded.response);
        }
        let origin = record.head().origin.as_ref();
        routed.decision.filter_response(origin, &forwarded.endpoint, forwarded.response.headers_mut());
        Ok(forwarded)
    }

    /// Makes the backend's response the client's.
    fn pass_on(
        &self,
        forwarded: Forwarded,
        mut record: RequestRecord,
        permit: RequestPermit,
        stream: Option<Rc<Stream>>,
        number: u64,
    ) -> Response<ResponseBody> {
        let Forwarded { response, held, progress, in_flight, deadline, agreed, .. } = forwarded;
        let (parts, body) = response.into_parts();
        record.answered(parts.status, grpc_status(&parts.headers));
        if let Some(mut agreed) = agreed {
            agreed.record = Some(record);
            agreed.in_flight = Some((in_flight, permit));
            *self.agreed.borrow_mut() = Some(agreed);
            self.reading.switched(number);
            return Response::from_parts(parts, ResponseBody::own(Bytes::new()));
        }
        self.reading.stays(number);
        let is_head = record.head().method == Method::HEAD;
        let exchange = Exchange { record, held: Some(held), progress, in_flight, _permit: permit };
        if is_head {
            // There is none, whatever a server sends over HTTP/2; and its length is that of an answer to GET.
            exchange.finish();
            return Response::from_parts(parts, ResponseBody::own(Bytes::new()));
        }
        let way = match stream {
            None => Way::Copied(self.unsent.clone()),
            Some(_) => Way::Kept(Flow::new(self.outbound.pod.pod.limits.clone())),
        };
        Response::from_parts(parts, ResponseBody::backend(body, exchange, deadline, stream, way))
    }
}

/// Takes away what was for the backend's connection only, before filters add what is for the client.
fn leave_connection(response: &mut Response<Incoming>) {
    let headers = response.headers_mut();
    if headers.contains_key(TRANSFER_ENCODING) {
        // What it says of the length does not count (RFC 9112, 6.3).
        headers.remove(CONTENT_LENGTH);
    }
    hop::strip(headers);
    // A proxy speaks its own version (RFC 9110, 2.5).
    *response.version_mut() = Version::HTTP_11;
}

fn refused_by_reader(bad: BadRequest) -> Instead {
    let reason = match bad {
        BadRequest::HeadTooLong(_) => Reason::HeadersTooLarge,
        BadRequest::Head(head) if head.is_size() => Reason::HeadersTooLarge,
        BadRequest::Head(_) | BadRequest::Chunk(_) => Reason::BadRequest,
        BadRequest::HeadTimeout(_) => Reason::RequestHeaderTimeout,
        BadRequest::BodyTimeout(_) => Reason::RequestBodyTimeout,
    };
    refuse(reason, bad)
}

fn own_answer(
    instead: Instead,
    asked: Asked,
    closes: bool,
    mut record: RequestRecord,
) -> Response<ResponseBody> {
    let mut response = match instead {
        Instead::Preflight(headers) => answer::preflight(headers),
        Instead::Redirect(to) => readable(answer::redirect(to.status, to.location), &record),
        Instead::Refused(failure) => {
            let response = readable(answer::refusal(failure.reason, asked), &record);
            record.fail(failure);
            response
        }
    };
    if closes {
        answer::close_after(&mut response);
    }
    if record.head().method == Method::HEAD {
        answer::leave_body(&mut response);
    }
    record.answered(response.status(), grpc_status(response.headers()));
    record.sent(response.body().len());
    record.finish();
    response.map(ResponseBody::own)
}

/// An own answer that a page of another origin can read where the rule lets it.
fn readable(mut response: Response<Bytes>, record: &RequestRecord) -> Response<Bytes> {
    if let Some(rule) = record.rule() {
        apply_to_own_answer(rule.filters(), record.head().origin.as_ref(), response.headers_mut());
    }
    response
}
