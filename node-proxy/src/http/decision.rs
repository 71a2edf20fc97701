//! Where a request goes and as what, decided before anything of it is sent.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_routing::filters::{FilteredRequest, apply_to_request, apply_to_response};
use culvert_routing::model::{Action, PathMatch, Retry, Scheme, Timeouts};
use culvert_routing::request::is_grpc;
use culvert_routing::{CompiledRule, MirrorPlace, RequestView};
use http::header::HeaderValue;
use http::request::Parts;
use http::{HeaderMap, Method, Request};
use tokio::time::Instant;

use super::edge;
use super::mirror::{Copy, Original};
use super::outgoing::{Outgoing, Told};
use super::parent::Parent;
use super::request_body::RequestBody;
use super::respond::{Instead, refuse};
use super::route::{self, version_towards};
use super::serve::ClientConnection;
use super::session::Kept;
use super::target::{self, Target};
use crate::outbound::protocol::Version;
use crate::reason::Reason;
use crate::state::Snapshot;
use crate::state::model::{Service, ServiceKey, Workload};
use crate::telemetry::RequestRecord;

/// A request that is ready to be sent.
pub struct Routed {
    pub decision: Decision,
    pub snapshot: Arc<Snapshot>,
    /// Until when its response must be complete, and how long that was.
    pub request_deadline: Option<(Instant, Duration)>,
    /// What the endpoint is spoken to in.
    pub version: Version,
    pub wants_upgrade: bool,
    /// Boxed, because it passes through many hands.
    pub request: Box<Request<RequestBody>>,
}

/// What decides about a request.
enum Chosen<'c> {
    /// A rule, and the path it matched with.
    Rule(Arc<CompiledRule>, PathMatch),
    /// No route applies to the client: to the endpoints of the Service.
    Endpoints(&'c ServiceKey),
}

/// Where a rule, or the absence of routes, sends a request.
pub struct Decision {
    rule: Option<Arc<CompiledRule>>,
    pub service: Arc<Service>,
    pub port: u16,
    /// Place of the backend in its rule.
    backend: Option<usize>,
    pub session: Option<Kept>,
    pub timeouts: Timeouts,
    /// Rewritten.
    host: Option<String>,
    path: Option<String>,
}

impl Decision {
    /// When the request is sent again should it fail: never, if its connection is to carry another protocol.
    pub fn retry(&self, wants_upgrade: bool) -> Option<&Retry> {
        self.rule.as_ref()?.retry().filter(|_| !wants_upgrade)
    }

    /// Applies what the rule says about responses, from the inside out: what the backend's filters say is said before what the
    /// rule's say.
    pub fn filter_response(
        &self,
        origin: Option<&HeaderValue>,
        endpoint: &Workload,
        headers: &mut HeaderMap,
    ) {
        if let Some(rule) = &self.rule {
            if let (Action::Forward(backends), Some(index)) = (rule.action(), self.backend) {
                apply_to_response(&backends[index].filters, origin, headers);
            }
            apply_to_response(rule.filters(), origin, headers);
        }
        if let Some(session) = &self.session {
            session.answer(self.backend, &endpoint.uid, headers);
        }
    }
}

impl ClientConnection {
    /// Selects the rule, applies what it says about requests, sends mirrors on their way, and makes the head that is sent.
    pub(super) fn routed(
        self: &Rc<Self>,
        mut parts: Parts,
        mut body: RequestBody,
        record: &mut RequestRecord,
    ) -> Result<Box<Routed>, Instead> {
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
        let (mut decision, copies) = match chosen {
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
        outgoing.host = decision.host.take();
        outgoing.path = decision.path.take().or(outgoing.path);
        let wants_upgrade = outgoing.wants_upgrade();
        // Of attempts that come to nothing the client is told nothing.
        let told = match decision.retry(wants_upgrade) {
            Some(_) => Told::Nobody,
            None => Told::Client,
        };
        let version = version_towards(&decision.service, decision.port, parts.version);
        let gate = outgoing.prepare(&mut parts, &body, version, self, told)?;
        body.set_gate(gate);
        let request = Box::new(Request::from_parts(parts, body));
        Ok(Box::new(Routed { decision, snapshot, request_deadline, version, wants_upgrade, request }))
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
}
