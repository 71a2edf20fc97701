//! What happens to one request, from top to bottom.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use culvert_routing::MirrorPlace;
use culvert_routing::cors::{Preflight, origin};
use culvert_routing::filters::{
    Answer, FilteredRequest, Redirection, apply_to_own_answer, apply_to_request, apply_to_response,
};
use culvert_routing::model::{Action, PathMatch, Scheme, Timeouts};
use culvert_routing::request::is_grpc;
use culvert_routing::{CompiledRule, RequestView};
use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Version};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::answer::{self, Asked, grpc_status};
use super::body::{Exchange, ResponseBody};
use super::edge;
use super::flow::{Flow, Way};
use super::forward::{Destination, Forwarded};
use super::heads::{self, Read, RefusedHead};
use super::hop;
use super::mirror::{Copy, Original};
use super::names::{REQUEST_ID, TRACEPARENT, named, new_request_id, new_traceparent};
use super::outgoing::Outgoing;
use super::parent::Parent;
use super::reader::BadRequest;
use super::request_body::{Http2Client, RequestBody};
use super::route;
use super::serve::ClientConnection;
use super::session::Kept;
use super::stream::Stream;
use super::target::{self, BadTarget, Target};
use crate::limits::{RequestLimitReached, RequestPermit};
use crate::reason::Reason;
use crate::state::Snapshot;
use crate::state::model::{Service, ServiceKey};
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

fn refuse(reason: Reason, message: impl std::fmt::Display) -> Instead {
    Instead::Refused(Failure::new(reason, message))
}

/// What decides about a request.
enum Chosen<'c> {
    /// A rule, and the path it matched with.
    Rule(Arc<CompiledRule>, PathMatch),
    /// No route applies to the client: to the endpoints of the Service.
    Endpoints(&'c ServiceKey),
}

/// Where a rule, or the absence of routes, sends a request.
struct Decision {
    rule: Option<Arc<CompiledRule>>,
    service: Arc<Service>,
    port: u16,
    /// Place of the backend in its rule.
    backend: Option<usize>,
    session: Option<Kept>,
    timeouts: Timeouts,
    /// Rewritten.
    host: Option<String>,
    path: Option<String>,
}

impl ClientConnection {
    /// Answers a request: with a backend's response, or with one of its own. `refused`: over HTTP/2, what is wrong with its
    /// head.
    pub async fn respond(
        self: Rc<Self>,
        request: Request<Incoming>,
        refused: Option<RefusedHead>,
    ) -> Response<ResponseBody> {
        let _under_way = UnderWay::begin(&self);
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
        let exchanged = match permit {
            Err(instead) => Err(instead),
            Ok(permit) => {
                let exchanged = Box::pin(self.exchange(parts, body, &mut record)).await;
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
        own_answer(instead, if is_call { Asked::Grpc } else { Asked::Http }, closes, record)
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

    async fn exchange(
        self: &Rc<Self>,
        mut parts: Parts,
        mut body: RequestBody,
        record: &mut RequestRecord,
    ) -> Result<Forwarded, Instead> {
        if parts.method == Method::CONNECT {
            return Err(refuse(Reason::ConnectRefused, "requests are routed here; CONNECT is none"));
        }
        let started = Instant::now();
        target::authority(&parts.uri, &parts.headers, parts.version)?;
        let (uri, authority) = (parts.uri.clone(), record.head().authority.clone());
        let host = authority.as_ref().and_then(|value| value.to_str().ok());
        let target = Target::new(&parts.method, &uri, host)?;
        let snapshot = self.outbound.context.shared.snapshots.load_full();

        let chosen = self.choose(&snapshot, &parts, &target, record)?;
        let mut outgoing = Outgoing::new(&mut parts, &target, &uri, authority.clone());
        if let Parent::Gateway(_) = self.parent {
            edge::introduce(&mut parts.headers, self.outbound.client.ip());
        }
        let (decision, copies) = match chosen {
            Chosen::Rule(rule, matched) => {
                record.set_rule(rule.clone());
                self.filter(&snapshot, &rule, &matched, &target, &mut parts)?
            }
            Chosen::Endpoints(service) => {
                (self.pass_through(&snapshot, service, &parts.headers)?, Vec::new())
            }
        };
        record.set_backend(decision.service.key.clone(), decision.port);
        let request_deadline = decision.timeouts.request.map(|limit| (started + limit, limit));
        let original =
            Original { parts: &parts, outgoing: &outgoing, snapshot: &snapshot, deadline: request_deadline };
        self.mirror(copies, &original, &mut body, record);
        outgoing.host = decision.host;
        outgoing.path = decision.path.or(outgoing.path);
        let destination = Destination {
            service: &decision.service,
            port: decision.port,
            snapshot: &snapshot,
            request_deadline,
            backend_limit: decision.timeouts.backend_request,
            retry: decision.rule.as_ref().and_then(|rule| rule.retry()),
            pinned: RefCell::new(decision.session.as_ref().and_then(Kept::endpoint)),
        };
        let mut forwarded = self.forward(destination, parts, body, outgoing, record).await?;
        if forwarded.agreed.is_none() {
            leave_connection(&mut forwarded.response);
        }
        if let Some(rule) = &decision.rule {
            let origin = record.head().origin.as_ref();
            // From the inside out: what the backend's filters say is said before what the rule's say.
            if let (Action::Forward(backends), Some(index)) = (rule.action(), decision.backend) {
                apply_to_response(&backends[index].filters, origin, forwarded.response.headers_mut());
            }
            apply_to_response(rule.filters(), origin, forwarded.response.headers_mut());
        }
        if let Some(session) = &decision.session {
            session.answer(decision.backend, &forwarded.endpoint.uid, forwarded.response.headers_mut());
        }
        Ok(forwarded)
    }

    /// The rule that takes the request, if routes decide about it.
    fn choose(
        &self,
        snapshot: &Snapshot,
        parts: &Parts,
        target: &Target<'_>,
        record: &mut RequestRecord,
    ) -> Result<Chosen<'_>, Instead> {
        let view = RequestView {
            method: &parts.method,
            host: &target.host,
            path: &target.path,
            query: target.query,
            headers: &parts.headers,
            grpc: is_grpc(parts.version, &parts.headers),
        };
        let selected = match &self.parent {
            Parent::Service(service) => {
                let routes = snapshot.routes(&service.key, self.port);
                let group = routes.and_then(|routes| routes.for_clients_in(&self.outbound.source.namespace));
                match route::select(group, &view)? {
                    Some(selected) => selected,
                    None => return Ok(Chosen::Endpoints(&service.key)),
                }
            }
            Parent::Gateway(gateway) => {
                let listener = route::listener(snapshot, gateway, self.port, &target.host)?;
                record.set_listener(listener.name.clone());
                route::select_at(snapshot, listener, &view)?
            }
        };
        Ok(Chosen::Rule(selected.rule.clone(), selected.matched.path.clone()))
    }

    /// Without routes: to the endpoints of the Service that was called, as it is now.
    fn pass_through(
        &self,
        snapshot: &Snapshot,
        called: &ServiceKey,
        headers: &HeaderMap,
    ) -> Result<Decision, Instead> {
        let Some(service) = snapshot.service(called) else {
            return Err(refuse(Reason::NoEndpoint, format!("{called} is gone")));
        };
        Ok(Decision {
            rule: None,
            service: service.clone(),
            port: self.port,
            backend: None,
            session: self.session_of_service(snapshot, service, headers)?,
            timeouts: Timeouts::default(),
            host: None,
            path: None,
        })
    }

    /// Applies what the rule says about requests; says where it goes, and what mirrors are sent of it.
    fn filter(
        &self,
        snapshot: &Snapshot,
        rule: &Arc<CompiledRule>,
        matched: &PathMatch,
        target: &Target<'_>,
        parts: &mut Parts,
    ) -> Result<(Decision, Vec<Copy>), Instead> {
        let backends = match rule.action() {
            Action::Forward(backends) => backends,
            Action::Refuse(why) => return Err(refuse(Reason::RouteUnsupported, why)),
        };
        // What the client shows, before filters change it.
        let session = self.session_of_rule(snapshot, rule, matched, &parts.headers)?;
        let mut copies = Vec::new();
        let mut request = FilteredRequest {
            method: &parts.method,
            scheme: Scheme::Http,
            port: self.port,
            host: (&*target.host).into(),
            path: (&*target.path).into(),
            query: target.query,
            headers: &mut parts.headers,
        };
        let answer = apply_to_request(rule.filters(), matched, &mut request, |filter, mirror, request| {
            let place = MirrorPlace { backend: None, filter };
            copies.extend(rule.is_mirrored(place).then(|| Copy::of(mirror, request)));
        });
        if let Some(answer) = answer {
            return Err(answer.into());
        }
        let bound = session.as_ref().and_then(|session| Some((session.backend()?, backends)));
        let (index, backend) = bound
            .and_then(|(index, backends)| Some((index, backends.get(index)?)))
            .or_else(|| rule.pick_backend())
            .ok_or_else(|| refuse(Reason::NoBackend, "the rule has no backend of weight above 0"))?;
        debug_assert!(index < backends.len());
        let (service, port) = route::backend_service(snapshot, &backend.target)?;
        let answer = apply_to_request(&backend.filters, matched, &mut request, |filter, mirror, request| {
            let place = MirrorPlace { backend: Some(index), filter };
            copies.extend(rule.is_mirrored(place).then(|| Copy::of(mirror, request)));
        });
        if let Some(answer) = answer {
            return Err(answer.into());
        }
        // What is owned was made by a rewrite.
        let rewritten = |text: Cow<'_, str>| match text {
            Cow::Owned(text) => Some(text),
            Cow::Borrowed(_) => None,
        };
        let decision = Decision {
            rule: Some(rule.clone()),
            service,
            port,
            backend: Some(index),
            session,
            timeouts: rule.timeouts(),
            host: rewritten(request.host),
            path: rewritten(request.path),
        };
        Ok((decision, copies))
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
