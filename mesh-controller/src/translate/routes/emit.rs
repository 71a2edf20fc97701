//! Routes as messages.

use std::sync::Arc;
use std::time::Duration;

use culvert_api::mesh as pb;
use culvert_objects::{Kind, ObjectKey};
use culvert_routing::cors::Credentials;
use culvert_routing::model::{
    Action, Backend, Cors, Filter, HeaderEdit, Hostname, Match, Mirror, PathEdit, PathMatch, Redirect,
    RedirectStatus, Rewrite, Route, RouteKey, RouteKind, Rule, Scheme, SessionPersistence, Target,
    ValueMatch,
};
use culvert_routing::session::{Carrier, CookiePath, Lifetime};
use http::{HeaderName, HeaderValue};
use pb::route::Parent;

/// `KIND/NAMESPACE/NAME@PARENT`.
pub fn name(route: &RouteKey, parent: &str) -> String {
    format!("{}/{}/{}@{parent}", route.kind, route.namespace, route.name)
}

/// The object that a resource of this name comes from.
pub fn object(name: &str) -> Option<ObjectKey> {
    let (route, _) = name.split_once('@')?;
    let mut parts = route.split('/');
    let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    Some(ObjectKey::namespaced(object_kind(RouteKind::named(kind)?), namespace, name))
}

/// The kind of its objects.
pub fn object_kind(route: RouteKind) -> Kind {
    match route {
        RouteKind::Grpc => Kind::GrpcRoute,
        RouteKind::Http => Kind::HttpRoute,
        RouteKind::Tls => Kind::TlsRoute,
        RouteKind::Tcp => Kind::TcpRoute,
    }
}

/// A route at one parent; `hostnames` are those in effect there.
pub fn route(route: &Route, hostnames: &[Hostname], parent: Parent) -> pb::Route {
    let kind = match route.key.kind {
        RouteKind::Http => pb::RouteKind::Http,
        RouteKind::Grpc => pb::RouteKind::Grpc,
        RouteKind::Tls => pb::RouteKind::Tls,
        RouteKind::Tcp => pb::RouteKind::Tcp,
    };
    pb::Route {
        kind: kind.into(),
        namespace: route.key.namespace.to_string(),
        name: route.key.name.to_string(),
        created: route.created,
        parent: Some(parent),
        hostnames: hostnames.iter().map(ToString::to_string).collect(),
        rules: route.rules.iter().map(rule).collect(),
    }
}

fn rule(rule: &Rule) -> pb::RouteRule {
    let (backends, refuse) = match &rule.action {
        Action::Forward(backends) => (backends.iter().map(backend).collect(), String::new()),
        Action::Refuse(why) => (Vec::new(), why.to_string()),
    };
    pb::RouteRule {
        name: text(rule.name.as_ref()),
        matches: rule.matches.iter().map(one_match).collect(),
        filters: rule.filters.iter().map(filter).collect(),
        backends,
        refuse,
        request_timeout_ms: millis(rule.timeouts.request),
        backend_request_timeout_ms: millis(rule.timeouts.backend_request),
        retry: rule.retry.as_ref().map(|retry| pb::Retry {
            codes: retry.codes.iter().map(|code| u32::from(code.as_u16())).collect(),
            attempts: retry.attempts.get(),
            backoff_ms: millis(Some(retry.backoff)),
        }),
        session: rule.session.as_ref().map(session),
    }
}

/// 0 where there is none.
fn millis(timeout: Option<Duration>) -> u64 {
    timeout.map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
}

/// Sessions of a rule, or of a Service.
pub fn session(of: &SessionPersistence) -> pb::SessionPersistence {
    pb::SessionPersistence {
        carrier: Some(carrier(&of.carrier)),
        absolute_timeout_ms: millis(of.absolute_timeout),
    }
}

fn carrier(of: &Carrier) -> pb::session_persistence::Carrier {
    use pb::session_persistence::Carrier as By;
    match of {
        Carrier::Cookie { name, lifetime, path } => By::Cookie(pb::SessionCookie {
            name: name.as_str().to_owned(),
            lifetime: match lifetime {
                Lifetime::Session => pb::CookieLifetime::Session,
                Lifetime::Permanent => pb::CookieLifetime::Permanent,
            }
            .into(),
            without_path: *path == CookiePath::Unset,
        }),
        Carrier::Header(name) => By::Header(name.to_string()),
    }
}

fn text(text: Option<&Arc<str>>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

fn one_match(of: &Match) -> pb::RouteMatch {
    use pb::route_match::Path;
    let path = match &of.path {
        PathMatch::Exact(path) => Path::Exact(path.to_string()),
        PathMatch::Prefix(path) => Path::Prefix(path.to_string()),
        PathMatch::Regex(pattern) => Path::Regex(pattern.to_string()),
        PathMatch::Grpc { service, method } => Path::Grpc(pb::GrpcMethodMatch {
            service: service.as_ref().map(value),
            method: method.as_ref().map(value),
        }),
    };
    let named =
        |name: &str, of: &ValueMatch| pb::NamedMatch { name: name.to_owned(), value: Some(value(of)) };
    pb::RouteMatch {
        path: Some(path),
        method: of.method.as_ref().map(ToString::to_string).unwrap_or_default(),
        headers: of.headers.iter().map(|header| named(header.name.as_str(), &header.value)).collect(),
        query: of.query.iter().map(|parameter| named(&parameter.name, &parameter.value)).collect(),
    }
}

fn value(of: &ValueMatch) -> pb::ValueMatch {
    use pb::value_match::Kind;
    let kind = match of {
        ValueMatch::Exact(value) => Kind::Exact(value.to_string()),
        ValueMatch::Regex(pattern) => Kind::Regex(pattern.to_string()),
    };
    pb::ValueMatch { kind: Some(kind) }
}

fn filter(filter: &Filter) -> pb::RouteFilter {
    use pb::route_filter::Kind;
    let kind = match filter {
        Filter::RequestHeaders(edit) => Kind::RequestHeaders(header_edit(edit)),
        Filter::ResponseHeaders(edit) => Kind::ResponseHeaders(header_edit(edit)),
        Filter::Redirect(to) => Kind::Redirect(redirect(to)),
        Filter::Rewrite(to) => Kind::Rewrite(rewrite(to)),
        Filter::Mirror(of) => Kind::Mirror(mirror(of)),
        Filter::Cors(of) => Kind::Cors(cors(of)),
    };
    pb::RouteFilter { kind: Some(kind) }
}

fn mirror(of: &Mirror) -> pb::Mirror {
    use pb::mirror::Target as To;
    let target = match &of.target {
        Target::Service { namespace, name, port } => {
            To::Service(pb::ServiceTarget { service: format!("{namespace}/{name}"), port: u32::from(*port) })
        }
        Target::Invalid(why) => To::Invalid(why.to_string()),
    };
    pb::Mirror { target: Some(target), numerator: of.share.numerator(), denominator: of.share.denominator() }
}

fn cors(of: &Cors) -> pb::Cors {
    pb::Cors {
        origins: of.origins.texts(),
        methods: of.methods.texts(),
        headers: of.headers.texts(),
        exposed: of.exposed.texts(),
        credentials: of.credentials == Credentials::Allowed,
        max_age_seconds: of.max_age,
    }
}

fn header_edit(edit: &HeaderEdit) -> pb::HeaderEdit {
    let lines = |lines: &[(HeaderName, HeaderValue)]| lines.iter().map(header).collect();
    pb::HeaderEdit {
        set: lines(&edit.set),
        add: lines(&edit.add),
        remove: edit.remove.iter().map(ToString::to_string).collect(),
    }
}

fn header((name, value): &(HeaderName, HeaderValue)) -> pb::Header {
    // Values come from text, so they are text.
    pb::Header { name: name.to_string(), value: String::from_utf8_lossy(value.as_bytes()).into_owned() }
}

fn redirect(to: &Redirect) -> pb::Redirect {
    let scheme = match to.scheme {
        None => "",
        Some(Scheme::Http) => "http",
        Some(Scheme::Https) => "https",
    };
    let status = match to.status {
        RedirectStatus::MovedPermanently => 301,
        RedirectStatus::Found => 302,
        RedirectStatus::SeeOther => 303,
        RedirectStatus::TemporaryRedirect => 307,
        RedirectStatus::PermanentRedirect => 308,
    };
    pb::Redirect {
        scheme: scheme.to_owned(),
        hostname: text(to.hostname.as_ref()),
        path: to.path.as_ref().map(path_edit),
        port: to.port.map(u32::from).unwrap_or_default(),
        status,
    }
}

fn rewrite(to: &Rewrite) -> pb::Rewrite {
    pb::Rewrite { hostname: text(to.hostname.as_ref()), path: to.path.as_ref().map(path_edit) }
}

fn path_edit(edit: &PathEdit) -> pb::PathEdit {
    use pb::path_edit::Kind;
    let kind = match edit {
        PathEdit::ReplaceFull(path) => Kind::ReplaceFull(path.to_string()),
        PathEdit::ReplacePrefix(path) => Kind::ReplacePrefix(path.to_string()),
    };
    pb::PathEdit { kind: Some(kind) }
}

fn backend(backend: &Backend) -> pb::RouteBackend {
    use pb::route_backend::Target as To;
    let target = match &backend.target {
        Target::Service { namespace, name, port } => {
            To::Service(pb::ServiceTarget { service: format!("{namespace}/{name}"), port: u32::from(*port) })
        }
        Target::Invalid(why) => To::Invalid(why.to_string()),
    };
    pb::RouteBackend {
        weight: backend.weight,
        filters: backend.filters.iter().map(filter).collect(),
        target: Some(target),
    }
}
