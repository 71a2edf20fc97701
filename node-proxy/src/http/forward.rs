//! Takes a request to an endpoint: which one, over which connection, in which version of HTTP, for how long.

use std::cell::RefCell;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_routing::model::Retry;
use http::header::UPGRADE;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::body::Deadline;
use super::client::{self, Switched};
use super::flow::{Flow, Way};
use super::pool::{Held, Needs, Peer};
use super::request_body::{Progress, RequestBody};
use super::retry::discard;
use super::serve::ClientConnection;
use super::switch::Agreed;
use super::verdict;
use crate::balance::{Candidate, Carried, Family, InFlight, Wanted};
use crate::outbound::protocol::Version;
use crate::outbound::{Missed, TRIES, is_unreached};
use crate::reason::Reason;
use crate::state::Snapshot;
use crate::state::model::{Service, Workload};
use crate::telemetry::{Carrier, Failure, RequestRecord};
use crate::tunnel::early::EarlyData;

/// Connections that take nothing of a request before it counts as failed.
const UNSENT: usize = 4;

/// Where a request goes, and how long that may take.
pub struct Destination<'d> {
    pub service: &'d Arc<Service>,
    pub port: u16,
    pub snapshot: &'d Snapshot,
    /// Until when the response must be complete, and how long that was.
    pub request_deadline: Option<(Instant, Duration)>,
    /// Of one try.
    pub backend_limit: Option<Duration>,
    /// When a request that failed is sent again.
    pub retry: Option<&'d Retry>,
    /// Where the request's session is at home, until that cannot be reached.
    pub pinned: RefCell<Option<Candidate>>,
}

/// A backend's response, and what is held until it is complete.
pub struct Forwarded {
    pub response: Response<Incoming>,
    pub held: Held,
    pub progress: Rc<Progress>,
    pub in_flight: InFlight,
    /// When it must be complete, and what is said when it is not.
    pub deadline: Option<Deadline>,
    /// The server agreed to switch protocols.
    pub agreed: Option<Agreed>,
    /// Who answered.
    pub endpoint: Arc<Workload>,
}

/// Why a try failed.
struct Lost {
    failure: Failure,
    /// The request, if nothing of it was taken by anybody.
    request: Option<Box<Request<RequestBody>>>,
    /// The endpoint could not be reached: another may do.
    is_unreached: bool,
}

/// Where a connection for a request is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Pool,
    New,
}

/// A response's head, and what carried it.
struct Got {
    response: Response<Incoming>,
    held: Held,
    /// From sending the request on a connection that was there.
    took: Duration,
    switched: Option<oneshot::Receiver<Switched>>,
}

impl ClientConnection {
    /// Sends a request that is ready to be sent to an endpoint, which none of those `tried` is, if there is another: to another
    /// as long as none was reached, over another connection as long as nothing of it was taken. Adds what it tries.
    pub(super) async fn try_endpoints(
        &self,
        destination: &Destination<'_>,
        version: Version,
        mut request: Box<Request<RequestBody>>,
        record: &mut RequestRecord,
        tried: &mut Vec<Candidate>,
    ) -> Result<Forwarded, Failure> {
        let progress = request.body().progress();
        let end = self.outbound.connect_deadline();
        let mut tries = 0;
        let mut last: Option<Failure> = None;
        loop {
            let candidate = match self.pick(destination, tried) {
                Ok(candidate) => candidate,
                Err(_) if last.is_none() && !tried.is_empty() => {
                    tried.clear();
                    continue;
                }
                Err(failure) => return Err(last.unwrap_or(failure)),
            };
            tried.push(candidate.clone());
            tries += 1;
            let mut in_flight = candidate.begin();
            let (limit, began) = (destination.limit(), Instant::now());
            let mut spare = verdict::spare(&candidate, &request);
            let result = {
                let attempt = pin!(self.attempt(destination, &candidate, version, request, end, record));
                within(limit, attempt).await
            };
            let may_go_on = || tries < TRIES && Instant::now() < end;
            let lost = match result {
                Ok(got) => {
                    let Got { response, held, took, switched } = got;
                    let is_good = verdict::of_response(&response, took, &mut in_flight);
                    let agreed = switched.map(Agreed::new);
                    let (progress, endpoint) = (progress.clone(), candidate.workload.clone());
                    let deadline = limit;
                    let sent = Forwarded { response, held, progress, in_flight, deadline, agreed, endpoint };
                    match spare.take().filter(|_| !is_good && may_go_on()) {
                        Some(again) => {
                            request = again;
                            discard(sent);
                            continue;
                        }
                        None => return Ok(sent),
                    }
                }
                Err(lost) => lost,
            };
            let failure = explain(lost.failure, &progress);
            if lost.is_unreached {
                destination.pinned.take();
            }
            let waited = limit.filter(|limit| began.elapsed() * 2 >= limit.after && progress.has_ended());
            if lost.is_unreached && is_unreached(failure.reason) {
                in_flight.unreached();
            } else {
                verdict::of_failure(failure.reason, waited, &mut in_flight);
            }
            let unsent = lost.request.filter(|_| lost.is_unreached);
            match unsent.or(spare.filter(|_| failure.reason != Reason::RequestTimeout)) {
                Some(again) if may_go_on() => {
                    request = again;
                    last = Some(failure);
                }
                _ => return Err(failure),
            }
        }
    }

    /// What is asked of the balancer for a request of this client.
    pub(super) fn wanted<'w>(&'w self, service: &'w Arc<Service>, port: u16) -> Wanted<'w> {
        Wanted {
            service,
            port,
            family: Family::of(self.outbound.destination.ip()),
            client: self.outbound.client.ip(),
            zone: &self.outbound.source.zone,
            carried: Carried::Requests,
            ejection: self.outbound.ejection(),
        }
    }

    fn pick(&self, destination: &Destination<'_>, tried: &[Candidate]) -> Result<Candidate, Failure> {
        if let Some(pinned) = &*destination.pinned.borrow() {
            return Ok(pinned.clone());
        }
        let wanted = self.wanted(destination.service, destination.port);
        let endpoints = destination.snapshot.endpoints(&destination.service.key);
        let picked = self.outbound.context.balancer.pick(endpoints, &wanted, tried);
        picked.map_err(|error| self.outbound.not_picked(&error).failure)
    }

    /// Sends the request to one endpoint. A connection from the pool that turns out to be dead is replaced: as often as nothing
    /// of the request was taken; once, by a new one, where that is not known and the rule says nothing of sending again.
    async fn attempt(
        &self,
        destination: &Destination<'_>,
        candidate: &Candidate,
        version: Version,
        mut request: Box<Request<RequestBody>>,
        end: Instant,
        record: &mut RequestRecord,
    ) -> Result<Got, Lost> {
        let peer = self.outbound.pod.http.peer(candidate, version);
        let telemetry = &self.outbound.context.shared.telemetry;
        let can_repeat = is_repeatable(&request);
        let needs = Needs { tunnel: candidate.workload.tunnel, can_repeat };
        let mut source = Source::Pool;
        for _ in 0..UNSENT {
            record.attempt();
            let pooled = match (source, version) {
                (Source::New, _) => None,
                (Source::Pool, Version::Http1) => peer.take(needs),
                (Source::Pool, Version::Http2) => peer.share(needs),
            };
            let (held, carrier) = match pooled {
                Some(held) => (held, Carrier::Reused),
                None => {
                    // Boxed: a handshake's state is many times that of a request, and most requests need none.
                    let connected = self.connect(&peer, destination, candidate, version, needs, end, record);
                    match Box::pin(connected).await {
                        Ok(held) => (held, Carrier::New),
                        Err(missed) => {
                            let is_unreached = missed.may_try_another;
                            let failure = missed.refusal.failure;
                            return Err(Lost { failure, request: Some(request), is_unreached });
                        }
                    }
                }
            };
            telemetry.request_carried(carrier);
            let link = held.link();
            record.set_destination(link.meta.clone(), peer.series(destination.service, link.meta.security));
            let way = match version {
                Version::Http1 => Way::Copied(link.unsent.clone()),
                Version::Http2 => Way::Kept(Flow::new(self.outbound.pod.pod.limits.clone())),
            };
            request.body_mut().set_way(way);
            // Where the rule says how often a request may be sent, that is how often.
            let may_repeat = carrier == Carrier::Reused && source == Source::Pool && can_repeat;
            let copy = (may_repeat && destination.retry.is_none()).then(|| copy(&request)).flatten();
            let lost = match send(held, &peer, request).await {
                Ok(got) => return Ok(got),
                Err(lost) => lost,
            };
            request = match (lost.request, copy) {
                (Some(again), _) => again,
                (None, Some(again)) => {
                    source = Source::New;
                    again
                }
                (None, None) => return Err(Lost { request: None, ..lost }),
            };
        }
        let message = format!("{UNSENT} connections to {} took nothing of the request", candidate.address);
        Err(Lost { failure: Failure::new(Reason::BackendReset, message), request: None, is_unreached: false })
    }

    /// A new connection; for HTTP/2 perhaps one that another request has made meanwhile.
    #[allow(clippy::too_many_arguments)]
    async fn connect(
        &self,
        peer: &Rc<Peer>,
        destination: &Destination<'_>,
        candidate: &Candidate,
        version: Version,
        needs: Needs,
        end: Instant,
        record: &mut RequestRecord,
    ) -> Result<Held, Missed> {
        let telemetry = &self.outbound.context.shared.telemetry;
        let (cancel, limits) = (&self.outbound.pod.cancel, &self.outbound.pod.pod.limits);
        let dialing = match version {
            Version::Http1 => None,
            Version::Http2 => loop {
                match peer.may_dial().await {
                    Some(dialing) => break Some(dialing),
                    None => {
                        if let Some(held) = peer.share(needs) {
                            return Ok(held);
                        }
                    }
                }
            },
        };
        let connected =
            match self.outbound.reach(candidate, destination.service, end, &EarlyData::none()).await {
                Ok(connected) => connected,
                Err(missed) => {
                    let meta = Rc::new((*missed.refusal.meta).clone());
                    record.set_destination(meta.clone(), peer.series(destination.service, meta.security));
                    return Err(missed);
                }
            };
        let meta = connected.meta.clone();
        let held = match dialing {
            None => client::http1(connected, peer, telemetry, limits, cancel).await,
            Some(dialing) => {
                let opened = client::http2(connected, telemetry, limits, cancel).await;
                opened.map(|(sender, link)| dialing.done(sender, link))
            }
        };
        held.map_err(|failure| Missed {
            refusal: crate::outbound::Refusal { meta: Box::new(meta), failure },
            may_try_another: true,
            is_endpoints_fault: true,
        })
    }
}

impl Destination<'_> {
    /// When a try that begins now must be over, by the limit that comes first.
    fn limit(&self) -> Option<Deadline> {
        let limit = |at, reason, after| Deadline { at, reason, after };
        let request = self.request_deadline.map(|(at, after)| limit(at, Reason::RequestTimeout, after));
        let backend =
            self.backend_limit.map(|after| limit(Instant::now() + after, Reason::BackendTimeout, after));
        request.into_iter().chain(backend).min_by_key(|limit| limit.at)
    }
}

/// Safe to send again, and without a body that would have to be kept (RFC 9110, 9.2.2).
pub(super) fn is_repeatable(request: &Request<RequestBody>) -> bool {
    let method = request.method();
    let is_idempotent = method.is_safe() || matches!(*method, Method::PUT | Method::DELETE);
    is_idempotent && request.body().is_end_stream() && !request.headers().contains_key(UPGRADE)
}

/// One try, for as long as it may take.
async fn within(
    limit: Option<Deadline>,
    attempt: Pin<&mut impl Future<Output = Result<Got, Lost>>>,
) -> Result<Got, Lost> {
    let Some(Deadline { at, reason, after }) = limit else { return attempt.await };
    timeout_at(at, attempt).await.unwrap_or_else(|_| {
        let failure = Failure::new(reason, format!("no response within {after:?}"));
        Err(Lost { failure, request: None, is_unreached: false })
    })
}

pub(super) fn copy(request: &Request<RequestBody>) -> Option<Box<Request<RequestBody>>> {
    let mut copy = Box::new(Request::new(request.body().again()?));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

async fn send(held: Held, peer: &Peer, request: Box<Request<RequestBody>>) -> Result<Got, Lost> {
    let started = Instant::now();
    match held {
        Held::Http1 { mut sender, link, peer } => {
            let switch = request.headers().contains_key(UPGRADE).then(|| link.expect_switch());
            match sender.try_send_request(*request).await {
                Ok(response) => {
                    let switched = switch.filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS);
                    let held = Held::Http1 { sender, link, peer };
                    Ok(Got { response, held, took: started.elapsed(), switched })
                }
                Err(mut error) => Err(lost(error.take_message(), error.error())),
            }
        }
        Held::Http2(stream) => match stream.0.sender.clone().try_send_request(*request).await {
            Ok(response) => {
                let held = Held::Http2(stream);
                Ok(Got { response, held, took: started.elapsed(), switched: None })
            }
            Err(mut error) => {
                let request = error.take_message();
                if request.is_some() || error.error().is_closed() || error.error().is_canceled() {
                    peer.retire(&Held::Http2(stream));
                }
                Err(lost(request, error.error()))
            }
        },
    }
}

fn lost(request: Option<Request<RequestBody>>, error: &hyper::Error) -> Lost {
    let reason = if error.is_parse() || error.is_parse_too_large() {
        Reason::BadResponse
    } else {
        Reason::BackendReset
    };
    let failure = Failure::new(reason, format!("before the response: {}", with_sources(error)));
    Lost { failure, request: request.map(Box::new), is_unreached: false }
}

/// hyper's errors say little without what caused them.
pub(super) fn with_sources(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A client that was lost in the middle of its body is the cause of what follows.
fn explain(failure: Failure, progress: &Progress) -> Failure {
    progress.lost().unwrap_or(failure)
}
