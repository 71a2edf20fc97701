//! One request and the routes that apply to it: the same functions that the node proxy calls, asked for everything that
//! could happen instead of for one thing that does.

use culvert_node_proxy::http::answer::face;
use culvert_node_proxy::http::target::Target;
use culvert_node_proxy::http::{edge, hop, route};
use culvert_node_proxy::reason::Reason;
use culvert_node_proxy::state::RouteGroup;
use culvert_node_proxy::state::model::Service;
use culvert_routing::cors::Preflight;
use culvert_routing::filters::{Answer, FilteredRequest, apply_to_request};
use culvert_routing::model::{
    Action, Backend as Weighted, Mirror as Mirroring, PathMatch, Scheme, SessionPersistence,
};
use culvert_routing::request::is_grpc;
use culvert_routing::session::{Carrier, CookiePath, cookie_path};
use culvert_routing::{CompiledRule, RequestView, Selected};
use http::{HeaderMap, HeaderValue, header};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::data::{
    Backend, End, Explanation, Group, GroupKind, Header, Mirror, Outcome, Parent, Retry, RetryBudget, Rule,
    SentRequest, Session,
};
use super::describe;
use super::endpoints::{self, Chooser};
use super::groups::{candidates, names_in, route_name};
use super::question::Question;
use super::sent::{Sent, Unfit};

/// Where routes are asked.
pub struct Asked<'a> {
    pub chooser: Chooser<'a>,
    /// Of the Service that was called, or of the Gateway's listeners.
    pub port: u16,
    pub parent: AskedParent<'a>,
}

/// See [`Asked`].
pub enum AskedParent<'a> {
    /// The group that decides for the client; without one requests go to the Service's own endpoints.
    Service { group: Option<&'a RouteGroup>, service: &'a Service },
    /// `namespace/name`, and the client's address if it is known.
    Gateway { gateway: &'a str, client: Option<IpAddr> },
}

/// What takes a request.
enum Chosen<'a> {
    Rule(Selected<'a>),
    Endpoints(&'a Service),
}

/// Explains what the routes make of the request.
pub fn explain(explanation: &mut Explanation, question: &Question, asked: &Asked<'_>) {
    let is_call = is_grpc(question.version, &question.headers);
    let decided = Sent::new(question).and_then(|sent| decide(explanation, &sent, asked));
    if let Err(unfit) = decided {
        explanation.outcomes = vec![answered(1.0, unfit.reason, unfit.message, is_call)];
    }
}

fn decide(explanation: &mut Explanation, sent: &Sent, asked: &Asked<'_>) -> Result<(), Unfit> {
    let target = sent.target()?;
    let view = RequestView {
        method: &sent.method,
        host: &target.host,
        path: &target.path,
        query: target.query,
        headers: &sent.headers,
        grpc: sent.is_call(),
    };
    match choose(explanation, asked, &view)? {
        Chosen::Rule(Selected { rule, matched }) => {
            by_rule(explanation, sent, &target, asked, rule, &matched.path);
        }
        Chosen::Endpoints(service) => unrouted(explanation, sent, &target, asked, service),
    }
    Ok(())
}

fn choose<'a>(
    explanation: &mut Explanation,
    asked: &Asked<'a>,
    view: &RequestView<'_>,
) -> Result<Chosen<'a>, Unfit> {
    match asked.parent {
        AskedParent::Service { group, service } => {
            tell_candidates(explanation, group, view);
            Ok(route::select(group, view)?.map_or(Chosen::Endpoints(service), Chosen::Rule))
        }
        AskedParent::Gateway { gateway, .. } => {
            let snapshot = asked.chooser.snapshot;
            let picked = route::listener(snapshot, gateway, asked.port, view.host)?;
            if let Parent::Listener { listener, .. } = &mut explanation.parent {
                *listener = Some(picked.name.to_string());
            }
            let group = snapshot.listener_routes(&picked.name);
            explanation.group = group.map(|group| Group {
                kind: GroupKind::Listener,
                namespace: None,
                routes: names_in(group),
                replaced: Vec::new(),
            });
            tell_candidates(explanation, group, view);
            Ok(Chosen::Rule(route::select_at(snapshot, picked, view)?))
        }
    }
}

fn tell_candidates(explanation: &mut Explanation, group: Option<&RouteGroup>, view: &RequestView<'_>) {
    if let Some(RouteGroup::Table(table)) = group {
        explanation.candidates = candidates(table, view);
    }
}

/// The headers that go on: not those of the client's connection, and at a Gateway with the client's address.
fn passed_on(sent: &Sent, asked: &Asked<'_>) -> HeaderMap {
    let mut headers = sent.headers.clone();
    hop::strip(&mut headers);
    if let AskedParent::Gateway { client: Some(client), .. } = asked.parent {
        edge::introduce(&mut headers, client);
    }
    headers
}

fn millis(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
}

fn by_rule(
    explanation: &mut Explanation,
    sent: &Sent,
    target: &Target<'_>,
    asked: &Asked<'_>,
    rule: &Arc<CompiledRule>,
    matched: &PathMatch,
) {
    let timeouts = rule.timeouts();
    explanation.rule = Some(Rule {
        route: route_name(rule.key()),
        rule: rule.label(),
        rule_index: rule.index(),
        filters: rule.filters().iter().map(describe::filter).collect(),
        request_timeout_ms: timeouts.request.map(millis),
        backend_request_timeout_ms: timeouts.backend_request.map(millis),
        retry: rule.retry().map(|retry| Retry {
            codes: retry.codes.iter().map(http::StatusCode::as_u16).collect(),
            attempts: retry.attempts.get(),
            backoff_ms: millis(retry.backoff),
        }),
        session: rule.session().map(|session| session_of(session, matched)),
    });
    let backends = match rule.action() {
        Action::Forward(backends) => backends,
        Action::Refuse(why) => {
            explanation.outcomes =
                vec![answered(1.0, Reason::RouteUnsupported, why.to_string(), sent.is_call())];
            return;
        }
    };
    let mut headers = passed_on(sent, asked);
    let mut request = filtered(sent, target, asked.port, &mut headers);
    let mut mirrors = Vec::new();
    let answer = apply_to_request(rule.filters(), matched, &mut request, |_, mirror, request| {
        mirrors.push(self::mirror(sent, target, asked, mirror, request));
    });
    if let Some(answer) = answer {
        explanation.outcomes = vec![Outcome { share: 1.0, end: by_filter(answer, sent.is_call()) }];
        return;
    }
    explanation.mirrors = mirrors;
    let after = Filtered::of(&request);
    let sum: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    if sum == 0 {
        let message = "the rule has no backend of weight above 0".to_owned();
        explanation.outcomes = vec![answered(1.0, Reason::NoBackend, message, sent.is_call())];
    }
    for backend in backends {
        let share = if sum == 0 { 0.0 } else { f64::from(backend.weight) / sum as f64 };
        let (described, mirrors, end) =
            self::backend(sent, target, asked, (matched, &after), (backend, share));
        let retry_budget = described.retry_budget.filter(|_| rule.retry().is_some());
        explanation.backends.push(Backend { retry_budget, ..described });
        explanation.mirrors.extend(mirrors);
        if share > 0.0 {
            explanation.outcomes.push(Outcome { share, end });
        }
    }
}

fn session_of(of: &SessionPersistence, matched: &PathMatch) -> Session {
    let (by, name, path) = match &of.carrier {
        Carrier::Cookie { name, path: CookiePath::Matched, .. } => {
            ("cookie", name.as_str(), Some(cookie_path(matched).into_owned()))
        }
        Carrier::Cookie { name, path: CookiePath::Unset, .. } => ("cookie", name.as_str(), None),
        Carrier::Header(name) => ("header", name.as_str(), None),
    };
    Session { by, name: name.to_owned(), path, absolute_timeout_ms: of.absolute_timeout.map(millis) }
}

/// A request after the filters of the rule, for those of each backend.
struct Filtered {
    host: Option<String>,
    path: Option<String>,
    headers: HeaderMap,
}

impl Filtered {
    fn of(request: &FilteredRequest<'_>) -> Self {
        // What is owned was made by a rewrite.
        let owned = |text: &std::borrow::Cow<'_, str>| match text {
            std::borrow::Cow::Owned(text) => Some(text.clone()),
            std::borrow::Cow::Borrowed(_) => None,
        };
        Self { host: owned(&request.host), path: owned(&request.path), headers: request.headers.clone() }
    }
}

fn filtered<'a>(
    sent: &'a Sent,
    target: &'a Target<'_>,
    port: u16,
    headers: &'a mut HeaderMap,
) -> FilteredRequest<'a> {
    FilteredRequest {
        method: &sent.method,
        scheme: Scheme::Http,
        port,
        host: (&*target.host).into(),
        path: (&*target.path).into(),
        query: target.query,
        headers,
    }
}

fn backend(
    sent: &Sent,
    target: &Target<'_>,
    asked: &Asked<'_>,
    (matched, after): (&PathMatch, &Filtered),
    (backend, share): (&Weighted, f64),
) -> (Backend, Vec<Mirror>, End) {
    let mut described = Backend {
        backend: describe::target(&backend.target),
        weight: Some(backend.weight),
        share,
        filters: backend.filters.iter().map(describe::filter).collect(),
        request: None,
        retry_budget: None,
        endpoints: Vec::new(),
    };
    let mut mirrors = Vec::new();
    let (service, port) = match route::backend_service(asked.chooser.snapshot, &backend.target) {
        Ok(found) => found,
        Err(failure) => {
            let end = answer(failure.reason, failure.message, sent.is_call());
            return (described, mirrors, end);
        }
    };
    let mut headers = after.headers.clone();
    let mut request = filtered(sent, target, asked.port, &mut headers);
    if let Some(host) = &after.host {
        request.host = host.clone().into();
    }
    if let Some(path) = &after.path {
        request.path = path.clone().into();
    }
    let answer = apply_to_request(&backend.filters, matched, &mut request, |_, mirror, request| {
        let of_backend = Some(described.backend.clone());
        mirrors.push(Mirror { backend: of_backend, ..self::mirror(sent, target, asked, mirror, request) });
    });
    if let Some(answer) = answer {
        return (described, Vec::new(), by_filter(answer, sent.is_call()));
    }
    let last = Filtered::of(&request);
    described.request = Some(sent_request(sent, target, &last));
    described.endpoints = endpoints::of_service(asked.chooser, &service, port);
    let budget = service.retry_budget;
    described.retry_budget = Some(RetryBudget {
        percent: budget.percent,
        interval_ms: millis(budget.interval),
        min_retries: budget.min_retries,
        min_interval_ms: millis(budget.min_interval),
    });
    let end = forwarded(&described, sent);
    (described, mirrors, end)
}

/// Who gets a copy of the request as it stands at a mirror.
fn mirror(
    sent: &Sent,
    target: &Target<'_>,
    asked: &Asked<'_>,
    mirror: &Mirroring,
    request: &FilteredRequest<'_>,
) -> Mirror {
    let described = Mirror {
        mirror: describe::target(&mirror.target),
        share: mirror.share.as_fraction(),
        backend: None,
        why_not: None,
        request: None,
        endpoints: Vec::new(),
    };
    match route::backend_service(asked.chooser.snapshot, &mirror.target) {
        Err(failure) => Mirror { why_not: Some(failure.message), ..described },
        Ok((service, port)) => Mirror {
            request: Some(sent_request(sent, target, &Filtered::of(request))),
            endpoints: endpoints::of_service(asked.chooser, &service, port),
            ..described
        },
    }
}

fn unrouted(
    explanation: &mut Explanation,
    sent: &Sent,
    target: &Target<'_>,
    asked: &Asked<'_>,
    service: &Service,
) {
    let port = asked.port;
    let whole = PathMatch::Prefix("/".into());
    explanation.session = service.session.as_ref().map(|of| session_of(of, &whole));
    let unchanged = Filtered { host: None, path: None, headers: passed_on(sent, asked) };
    let backend = Backend {
        backend: format!("{}:{port}", service.key),
        weight: None,
        share: 1.0,
        filters: Vec::new(),
        request: Some(sent_request(sent, target, &unchanged)),
        retry_budget: None,
        endpoints: endpoints::of_service(asked.chooser, service, port),
    };
    explanation.outcomes = vec![Outcome { share: 1.0, end: forwarded(&backend, sent) }];
    explanation.backends = vec![backend];
}

fn forwarded(backend: &Backend, sent: &Sent) -> End {
    if backend.endpoints.iter().any(|endpoint| endpoint.used) {
        return End::Forwarded { backend: backend.backend.clone() };
    }
    let message = format!("{} has no endpoint that may be used", backend.backend);
    answer(Reason::NoEndpoint, message, sent.is_call())
}

fn sent_request(sent: &Sent, target: &Target<'_>, filtered: &Filtered) -> SentRequest {
    let path = filtered.path.as_deref().unwrap_or(&target.path);
    let host = filtered.host.clone().unwrap_or_else(|| sent.authority.clone());
    let headers = filtered.headers.iter().filter(|(name, _)| *name != header::HOST);
    SentRequest {
        method: sent.method.to_string(),
        path: target.query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}")),
        host,
        headers: headers.map(header).collect(),
    }
}

/// What a filter answers in a backend's place.
fn by_filter(answer: Answer, is_call: bool) -> End {
    match answer {
        Answer::Redirection(to) => End::Redirected {
            status: to.status.as_u16(),
            location: String::from_utf8_lossy(to.location.as_bytes()).into_owned(),
        },
        Answer::Preflight(Preflight::Granted(headers)) => {
            End::Preflight { status: 204, headers: headers.iter().map(header).collect() }
        }
        Answer::Preflight(Preflight::Refused) => {
            let message = "no allowOrigins of the rule has the origin of this preflight".to_owned();
            self::answer(Reason::OriginNotAllowed, message, is_call)
        }
    }
}

fn header((name, value): (&http::HeaderName, &HeaderValue)) -> Header {
    Header { name: name.to_string(), value: String::from_utf8_lossy(value.as_bytes()).into_owned() }
}

fn answered(share: f64, reason: Reason, message: String, is_call: bool) -> Outcome {
    Outcome { share, end: answer(reason, message, is_call) }
}

/// Culvert's own answer for a reason.
fn answer(reason: Reason, message: String, is_call: bool) -> End {
    let face = face(reason);
    End::Answered {
        status: if is_call { 200 } else { face.status.as_u16() },
        grpc_status: is_call.then_some(face.grpc as u16),
        reason: reason.to_string(),
        message,
    }
}
