//! One request's account: what was asked, which route took it where, how it was answered.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use culvert_routing::CompiledRule;
use http::uri::Uri;
use http::{HeaderValue, Method, StatusCode, Version};

use tokio_util::sync::CancellationToken;

use super::connection::{ConnectionMeta, Failure};
use super::registry::Telemetry;
use super::request_series::{RequestProtocol, SeriesCache};
use crate::http::answer::face;
use crate::reason::Reason;
use crate::state::model::ServiceKey;

/// A request as the client asked it.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// Of the client's connection.
    pub source_addr: SocketAddr,
    /// The Service that was called; `None` at a Gateway.
    pub service: Option<ServiceKey>,
    pub method: Method,
    pub uri: Uri,
    /// `Host` or `:authority`, as it came.
    pub authority: Option<HeaderValue>,
    pub version: Version,
    pub request_id: HeaderValue,
    pub traceparent: HeaderValue,
    /// Of the page that asks, by a browser.
    pub origin: Option<HeaderValue>,
}

/// What a request is to the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// It waits for the answer.
    #[default]
    Asked,
    /// A copy for a mirror, of which it knows nothing.
    Mirrored,
}

/// What became of a copy for a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mirrored {
    Complete,
    /// The mirror did not take all of it.
    Cut,
    Failed,
    /// The workload's limits leave no room for it.
    Skipped,
    /// There is no such backend.
    Unresolved,
}

impl Mirrored {
    pub const ALL: [Self; 5] = [Self::Complete, Self::Cut, Self::Failed, Self::Skipped, Self::Unresolved];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Cut => "cut",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Unresolved => "unresolved",
        }
    }
}

/// What became of the wish to send a request again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retried {
    Sent,
    OverBudget,
    /// Its body was not kept.
    Body,
    /// The time of the whole request would have been up first.
    Deadline,
}

impl Retried {
    pub const ALL: [Self; 4] = [Self::Sent, Self::OverBudget, Self::Body, Self::Deadline];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::OverBudget => "over_budget",
            Self::Body => "body",
            Self::Deadline => "deadline",
        }
    }
}

/// Where a request went.
#[derive(Clone, Debug, Default)]
pub struct Routed {
    /// At a Gateway: the listener that took it.
    pub listener: Option<Arc<str>>,
    /// `None`: no route applies to the port.
    pub rule: Option<Arc<CompiledRule>>,
    pub backend: Option<(ServiceKey, u16)>,
    /// Endpoints tried, and connections of the last one.
    pub attempts: u32,
}

/// Why requests are dropped that were being answered: of one connection over HTTP/1, of one stream over HTTP/2.
#[derive(Debug)]
pub struct Ending {
    /// Cancelled at the end of a drain.
    cut: CancellationToken,
    failure: RefCell<Option<Failure>>,
}

impl Ending {
    pub fn new(cut: CancellationToken) -> Self {
        Self { cut, failure: RefCell::default() }
    }

    /// Culvert gives up what it carries, and why.
    pub fn set(&self, failure: Failure) {
        self.failure.borrow_mut().get_or_insert(failure);
    }

    fn failure(&self) -> Failure {
        if let Some(failure) = &*self.failure.borrow() {
            return failure.clone();
        }
        if self.cut.is_cancelled() {
            return Failure::new(Reason::Drained, "cut at the end of the drain");
        }
        Failure::new(Reason::ClientCancelled, "the client gave the request up")
    }
}

/// A request that is being answered. It is counted and logged when it ends; dropped before, it was given up by the
/// client. One pointer: it moves from the request to the body of its response.
#[derive(Debug)]
pub struct RequestRecord(Box<Open>);

#[derive(Debug)]
struct Open {
    telemetry: Telemetry,
    head: RequestHead,
    protocol: RequestProtocol,
    role: Role,
    routed: Routed,
    meta: Rc<ConnectionMeta>,
    series: Rc<SeriesCache>,
    started: Instant,
    /// Bytes of the request's body; shared with whoever reads it.
    received: Rc<Cell<u64>>,
    sent: u64,
    status: Option<StatusCode>,
    grpc_status: Option<u8>,
    failure: Option<Failure>,
    ending: Rc<Ending>,
    is_counted: bool,
}

/// A request at its end.
#[derive(Debug)]
pub(super) struct EndedRequest<'a> {
    pub head: &'a RequestHead,
    pub protocol: RequestProtocol,
    pub role: Role,
    pub routed: &'a Routed,
    pub meta: &'a ConnectionMeta,
    pub received: u64,
    pub sent: u64,
    /// As the client saw it; that of the reason when it saw none.
    pub status: StatusCode,
    pub grpc_status: Option<u8>,
    pub failure: Option<&'a Failure>,
    pub duration: std::time::Duration,
}

impl EndedRequest<'_> {
    /// Whether the log of failures shows it: refused or lost by Culvert, or failed by the server.
    pub fn has_failed(&self) -> bool {
        self.failure.is_some() || self.status.is_server_error()
    }
}

impl RequestRecord {
    /// `meta` and `series` are those of the parent until an endpoint is reached.
    pub fn begin(
        telemetry: Telemetry,
        head: RequestHead,
        protocol: RequestProtocol,
        meta: Rc<ConnectionMeta>,
        series: Rc<SeriesCache>,
        ending: Rc<Ending>,
    ) -> Self {
        Self(Box::new(Open {
            telemetry,
            head,
            protocol,
            role: Role::Asked,
            routed: Routed::default(),
            meta,
            series,
            started: Instant::now(),
            received: Rc::default(),
            sent: 0,
            status: None,
            grpc_status: None,
            failure: None,
            ending,
            is_counted: false,
        }))
    }

    /// The account of a copy of this request for a mirror.
    pub fn mirrored(&self, backend: ServiceKey, port: u16, meta: Rc<ConnectionMeta>) -> Self {
        let of = &self.0;
        let ending = Rc::new(Ending::new(of.ending.cut.clone()));
        let (head, telemetry) = (of.head.clone(), of.telemetry.clone());
        let mut record = Self::begin(telemetry, head, of.protocol, meta, Rc::default(), ending);
        record.0.role = Role::Mirrored;
        record.0.routed.listener = of.routed.listener.clone();
        record.0.routed.rule = of.routed.rule.clone();
        record.set_backend(backend, port);
        record
    }

    /// The rule that takes the request.
    pub fn rule(&self) -> Option<&Arc<CompiledRule>> {
        self.0.routed.rule.as_ref()
    }

    pub fn head(&self) -> &RequestHead {
        &self.0.head
    }

    pub fn started(&self) -> Instant {
        self.0.started
    }

    pub fn set_listener(&mut self, listener: Arc<str>) {
        self.0.routed.listener = Some(listener);
    }

    pub fn set_rule(&mut self, rule: Arc<CompiledRule>) {
        self.0.routed.rule = Some(rule);
    }

    pub fn set_backend(&mut self, service: ServiceKey, port: u16) {
        self.0.routed.backend = Some((service, port));
    }

    /// Counts a try to send the request.
    pub fn attempt(&mut self) {
        self.0.routed.attempts += 1;
    }

    /// An endpoint was reached, or it is known which one could not be.
    pub fn set_destination(&mut self, meta: Rc<ConnectionMeta>, series: Rc<SeriesCache>) {
        self.0.meta = meta;
        self.0.series = series;
    }

    /// Where bytes of the request's body are counted.
    pub fn received(&self) -> Rc<Cell<u64>> {
        self.0.received.clone()
    }

    /// The response's head.
    pub fn answered(&mut self, status: StatusCode, grpc_status: Option<u8>) {
        self.0.status = Some(status);
        self.0.grpc_status = grpc_status.or(self.0.grpc_status);
    }

    /// From trailers.
    pub fn set_grpc_status(&mut self, status: u8) {
        self.0.grpc_status = Some(status);
    }

    /// Counts bytes of the response's body.
    pub fn sent(&mut self, bytes: usize) {
        self.0.sent += bytes as u64;
    }

    /// Why Culvert refused or lost it. The first reason counts.
    pub fn fail(&mut self, failure: Failure) {
        self.0.failure.get_or_insert(failure);
    }

    /// The response is complete, or was cut for the reason given before.
    pub fn finish(mut self) {
        self.0.finish();
    }
}

impl Open {
    fn finish(&mut self) {
        self.is_counted = true;
        // Nobody saw a status then: it says why.
        let given_up = |failure: &Failure| face(failure.reason).status;
        let status = self.status.or_else(|| self.failure.as_ref().map(given_up));
        let ended = EndedRequest {
            head: &self.head,
            protocol: self.protocol,
            role: self.role,
            routed: &self.routed,
            meta: &self.meta,
            received: self.received.get(),
            sent: self.sent,
            status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            grpc_status: self.grpc_status,
            failure: self.failure.as_ref(),
            duration: self.started.elapsed(),
        };
        self.telemetry.request_ended(&self.series, &ended);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.is_counted {
            let ending = self.ending.clone();
            self.failure.get_or_insert_with(|| ending.failure());
            self.finish();
        }
    }
}
