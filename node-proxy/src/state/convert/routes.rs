//! Routes and listeners: from the contract to the model that crate `routing` compiles.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::mesh as wire;
use culvert_routing::CompiledRoute;
use culvert_routing::cors::{Allowed, Credentials, OriginPattern};
use culvert_routing::model::{
    Action, Backend, Carries, Cors, Filter, HeaderEdit, HeaderMatch, Hostname, Match, Mirror, PathEdit,
    PathMatch, QueryMatch, Redirect, RedirectStatus, Retry, Rewrite, Route, RouteKey, RouteKind, Rule,
    Scheme, SessionPersistence, Share, Target, Timeouts, ValueMatch,
};
use culvert_routing::session::{Carrier, CookieName, CookiePath, Lifetime, session_header};
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::{ConversionError, Result, port, same_name};
use crate::state::model::{Listener, ServiceKey};
use crate::state::routes::{Attached, Parent, Unusable};

/// A route as attached to one parent, compiled.
///
/// # Errors
/// Which field is wrong, and what is expected; also when crate `routing` refuses it.
pub fn route(name: &str, wire: wire::Route) -> Result<Attached> {
    let kind = match wire::RouteKind::try_from(wire.kind) {
        Ok(wire::RouteKind::Http) => RouteKind::Http,
        Ok(wire::RouteKind::Grpc) => RouteKind::Grpc,
        Ok(wire::RouteKind::Tls) => RouteKind::Tls,
        Ok(wire::RouteKind::Tcp) => RouteKind::Tcp,
        Ok(wire::RouteKind::Unspecified) | Err(_) => return Err(super::unknown("kind", wire.kind)),
    };
    let parent = parent(wire.parent)?;
    same_name(name, &format!("{kind}/{}/{}@{}", wire.namespace, wire.name, parent.name()))?;
    let route = Route {
        key: RouteKey { kind, namespace: wire.namespace.into(), name: wire.name.into() },
        created: wire.created,
        hostnames: wire.hostnames.iter().map(|text| hostname(text)).collect(),
        rules: wire.rules.into_iter().map(rule).collect::<Result<_>>()?,
    };
    let compiled =
        CompiledRoute::compile(route).map_err(|error| ConversionError::Compile(error.to_string()))?;
    Ok(Attached { parent, route: Arc::new(compiled) })
}

/// What of a refused route's parent can be read, so that its requests are answered rather than passed on unrouted.
pub fn unusable(name: &str, wire: Option<&wire::Route>, why: &str) -> Option<Unusable> {
    let named = name.split_once('@').map(|(_, parent)| parent);
    let parent = match wire.and_then(|wire| wire.parent.as_ref()) {
        Some(wire::route::Parent::Listener(listener)) => Parent::Listener(listener.as_str().into()),
        Some(wire::route::Parent::Service(service)) => Parent::Service {
            service: ServiceKey(service.service.as_str().into()),
            ports: service.ports.iter().filter_map(|port| u16::try_from(*port).ok()).collect(),
            consumers: Some(service.consumer_namespace.as_str())
                .filter(|text| !text.is_empty())
                .map(Arc::from),
        },
        None if named?.matches('/').count() == 2 => Parent::Listener(named?.into()),
        None => Parent::Service { service: ServiceKey(named?.into()), ports: Vec::new(), consumers: None },
    };
    // One that cannot be told is taken for what the most specific routes are.
    let kind = name.split_once('/').and_then(|(kind, _)| RouteKind::named(kind));
    let carries = kind.map_or(Carries::Requests, RouteKind::carries);
    Some(Unusable { parent, carries, why: why.into() })
}

/// # Errors
/// Which field is wrong, and what is expected.
pub fn listener(name: &str, wire: wire::Listener) -> Result<Listener> {
    same_name(name, &format!("{}/{}", wire.gateway, wire.name))?;
    match wire::ListenerProtocol::try_from(wire.protocol) {
        Ok(wire::ListenerProtocol::Http) => {}
        Ok(wire::ListenerProtocol::Unspecified) | Err(_) => {
            return Err(super::unknown("protocol", wire.protocol));
        }
    }
    Ok(Listener {
        name: name.into(),
        gateway: wire.gateway.into(),
        port: port("port", wire.port)?,
        hostname: Some(wire.hostname.as_str()).filter(|text| !text.is_empty()).map(hostname),
    })
}

fn parent(wire: Option<wire::route::Parent>) -> Result<Parent> {
    match wire.ok_or(ConversionError::Missing("parent"))? {
        wire::route::Parent::Listener(listener) => Ok(Parent::Listener(listener.into())),
        wire::route::Parent::Service(service) => {
            if service.ports.is_empty() {
                return Err(ConversionError::Missing("service.ports"));
            }
            Ok(Parent::Service {
                service: ServiceKey(service.service.into()),
                ports: service.ports.iter().map(|one| port("service.ports", *one)).collect::<Result<_>>()?,
                consumers: Some(service.consumer_namespace).filter(|text| !text.is_empty()).map(Arc::from),
            })
        }
    }
}

fn hostname(text: &str) -> Hostname {
    match text.strip_prefix("*.") {
        Some(suffix) => Hostname::Wildcard(suffix.into()),
        None => Hostname::Exact(text.into()),
    }
}

fn rule(wire: wire::RouteRule) -> Result<Rule> {
    let action = if wire.refuse.is_empty() {
        Action::Forward(wire.backends.into_iter().map(backend).collect::<Result<_>>()?)
    } else {
        Action::Refuse(wire.refuse.into())
    };
    if wire.matches.is_empty() {
        return Err(ConversionError::Missing("rules.matches"));
    }
    let limit = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
    Ok(Rule {
        name: Some(wire.name).filter(|name| !name.is_empty()).map(Arc::from),
        matches: wire.matches.into_iter().map(one_match).collect::<Result<_>>()?,
        filters: wire.filters.into_iter().map(filter).collect::<Result<_>>()?,
        action,
        timeouts: Timeouts {
            request: limit(wire.request_timeout_ms),
            backend_request: limit(wire.backend_request_timeout_ms),
        },
        retry: wire.retry.map(retry).transpose()?,
        session: wire.session.map(session).transpose()?,
    })
}

pub(super) fn session(wire: wire::SessionPersistence) -> Result<SessionPersistence> {
    use wire::session_persistence::Carrier as By;
    let absolute_timeout =
        (wire.absolute_timeout_ms > 0).then(|| Duration::from_millis(wire.absolute_timeout_ms));
    let carrier = match wire.carrier.ok_or(ConversionError::Missing("session.carrier"))? {
        By::Header(name) => Carrier::Header(
            session_header(&name).ok_or_else(|| text("session.header", name, "a header of its own"))?,
        ),
        By::Cookie(cookie) => Carrier::Cookie {
            name: CookieName::parse(&cookie.name)
                .ok_or_else(|| text("session.cookie.name", cookie.name, "the name of a cookie"))?,
            lifetime: match wire::CookieLifetime::try_from(cookie.lifetime) {
                Ok(wire::CookieLifetime::Session) => Lifetime::Session,
                Ok(wire::CookieLifetime::Permanent) if absolute_timeout.is_some() => Lifetime::Permanent,
                Ok(wire::CookieLifetime::Permanent) => {
                    return Err(ConversionError::Missing("session.absolute_timeout_ms"));
                }
                Err(_) => return Err(super::unknown("session.cookie.lifetime", cookie.lifetime)),
            },
            path: if cookie.without_path { CookiePath::Unset } else { CookiePath::Matched },
        },
    };
    Ok(SessionPersistence { carrier, absolute_timeout })
}

fn retry(wire: wire::Retry) -> Result<Retry> {
    let code = |code: u32| {
        let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
        status.ok_or_else(|| text("rules.retry.codes", code.to_string(), "a status"))
    };
    let Some(attempts) = NonZeroU32::new(wire.attempts) else {
        return Err(text("rules.retry.attempts", "0".to_owned(), "at least 1"));
    };
    let codes = wire.codes.into_iter().map(code).collect::<Result<_>>()?;
    Ok(Retry { codes, attempts, backoff: Duration::from_millis(wire.backoff_ms) })
}

fn backend(wire: wire::RouteBackend) -> Result<Backend> {
    let target = match wire.target.ok_or(ConversionError::Missing("rules.backends.target"))? {
        wire::route_backend::Target::Invalid(why) => Target::Invalid(why.into()),
        wire::route_backend::Target::Service(service) => self::service(service)?,
    };
    let filters = wire.filters.into_iter().map(filter).collect::<Result<_>>()?;
    Ok(Backend { weight: wire.weight, filters, target })
}

fn service(wire: wire::ServiceTarget) -> Result<Target> {
    let Some((namespace, name)) = wire.service.split_once('/') else {
        return Err(text("rules.backends.service", wire.service, "NAMESPACE/NAME"));
    };
    let port = port("rules.backends.port", wire.port)?;
    Ok(Target::Service { namespace: namespace.into(), name: name.into(), port })
}

fn one_match(wire: wire::RouteMatch) -> Result<Match> {
    use wire::route_match::Path;
    let path = match wire.path.ok_or(ConversionError::Missing("rules.matches.path"))? {
        Path::Exact(path) => PathMatch::Exact(path.into()),
        Path::Prefix(path) => PathMatch::Prefix(path.into()),
        Path::Regex(path) => PathMatch::Regex(path.into()),
        Path::Grpc(grpc) => PathMatch::Grpc {
            service: grpc.service.map(value_match).transpose()?,
            method: grpc.method.map(value_match).transpose()?,
        },
    };
    let method = match wire.method.as_str() {
        "" => None,
        method => Some(
            Method::from_bytes(method.as_bytes())
                .map_err(|_| text("rules.matches.method", wire.method.clone(), "a method"))?,
        ),
    };
    let headers = wire.headers.into_iter().map(|header| {
        let value = header.value.ok_or(ConversionError::Missing("rules.matches.headers.value"))?;
        Ok(HeaderMatch { name: header_name(header.name)?, value: value_match(value)? })
    });
    let query = wire.query.into_iter().map(|parameter| {
        let value = parameter.value.ok_or(ConversionError::Missing("rules.matches.query.value"))?;
        Ok(QueryMatch { name: parameter.name.into(), value: value_match(value)? })
    });
    Ok(Match { path, method, headers: headers.collect::<Result<_>>()?, query: query.collect::<Result<_>>()? })
}

fn value_match(wire: wire::ValueMatch) -> Result<ValueMatch> {
    match wire.kind.ok_or(ConversionError::Missing("rules.matches: kind of a value"))? {
        wire::value_match::Kind::Exact(value) => Ok(ValueMatch::Exact(value.into())),
        wire::value_match::Kind::Regex(value) => Ok(ValueMatch::Regex(value.into())),
    }
}

fn filter(wire: wire::RouteFilter) -> Result<Filter> {
    use wire::route_filter::Kind;
    Ok(match wire.kind.ok_or(ConversionError::Missing("filters.kind"))? {
        Kind::RequestHeaders(edit) => Filter::RequestHeaders(header_edit(edit)?),
        Kind::ResponseHeaders(edit) => Filter::ResponseHeaders(header_edit(edit)?),
        Kind::Redirect(redirect) => Filter::Redirect(self::redirect(redirect)?),
        Kind::Rewrite(rewrite) => Filter::Rewrite(Rewrite {
            hostname: some_text(rewrite.hostname),
            path: rewrite.path.map(path_edit).transpose()?,
        }),
        Kind::Mirror(mirror) => Filter::Mirror(self::mirror(mirror)?),
        Kind::Cors(cors) => Filter::Cors(self::cors(cors)?),
    })
}

fn mirror(wire: wire::Mirror) -> Result<Mirror> {
    use wire::mirror::Target as From;
    let target = match wire.target.ok_or(ConversionError::Missing("filters.mirror.target"))? {
        From::Invalid(why) => Target::Invalid(why.into()),
        From::Service(service) => self::service(service)?,
    };
    let Some(share) = Share::new(wire.numerator, wire.denominator) else {
        let given = format!("{} of {}", wire.numerator, wire.denominator);
        return Err(text("filters.mirror.numerator", given, "at most the denominator"));
    };
    Ok(Mirror { target, share })
}

fn cors(wire: wire::Cors) -> Result<Cors> {
    let origin = |text: &str| OriginPattern::parse(text);
    let method = |text: &str| Method::from_bytes(text.as_bytes()).ok();
    let name = |text: &str| HeaderName::from_bytes(text.as_bytes()).ok();
    Ok(Cors {
        origins: allowed("filters.cors.origins", wire.origins, "an origin", origin)?,
        methods: allowed("filters.cors.methods", wire.methods, "a method", method)?,
        headers: allowed("filters.cors.headers", wire.headers, "a header name", name)?,
        exposed: allowed("filters.cors.exposed", wire.exposed, "a header name", name)?,
        credentials: if wire.credentials { Credentials::Allowed } else { Credentials::Omitted },
        max_age: wire.max_age_seconds,
    })
}

fn allowed<T>(
    field: &'static str,
    texts: Vec<String>,
    expected: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Allowed<T>> {
    if texts.len() == 1 && texts[0] == "*" {
        return Ok(Allowed::Any);
    }
    let read = |one: String| read(&one).ok_or_else(|| text(field, one, expected));
    Ok(Allowed::These(texts.into_iter().map(read).collect::<Result<_>>()?))
}

fn redirect(wire: wire::Redirect) -> Result<Redirect> {
    Ok(Redirect {
        scheme: match wire.scheme.as_str() {
            "" => None,
            "http" => Some(Scheme::Http),
            "https" => Some(Scheme::Https),
            _ => return Err(text("filters.redirect.scheme", wire.scheme, "http or https")),
        },
        hostname: some_text(wire.hostname),
        path: wire.path.map(path_edit).transpose()?,
        port: match wire.port {
            0 => None,
            given => Some(port("filters.redirect.port", given)?),
        },
        status: match wire.status {
            301 => RedirectStatus::MovedPermanently,
            302 => RedirectStatus::Found,
            303 => RedirectStatus::SeeOther,
            307 => RedirectStatus::TemporaryRedirect,
            308 => RedirectStatus::PermanentRedirect,
            other => {
                return Err(text("filters.redirect.status", other.to_string(), "301, 302, 303, 307 or 308"));
            }
        },
    })
}

fn path_edit(wire: wire::PathEdit) -> Result<PathEdit> {
    match wire.kind.ok_or(ConversionError::Missing("filters: kind of a path edit"))? {
        wire::path_edit::Kind::ReplaceFull(path) => Ok(PathEdit::ReplaceFull(path.into())),
        wire::path_edit::Kind::ReplacePrefix(path) => Ok(PathEdit::ReplacePrefix(path.into())),
    }
}

fn header_edit(wire: wire::HeaderEdit) -> Result<HeaderEdit> {
    let pairs = |headers: Vec<wire::Header>| -> Result<Vec<(HeaderName, HeaderValue)>> {
        headers
            .into_iter()
            .map(|header| {
                let value = HeaderValue::from_str(&header.value)
                    .map_err(|_| text("filters: header value", header.value, "a header value"))?;
                Ok((header_name(header.name)?, value))
            })
            .collect()
    };
    Ok(HeaderEdit {
        set: pairs(wire.set)?,
        add: pairs(wire.add)?,
        remove: wire.remove.into_iter().map(header_name).collect::<Result<_>>()?,
    })
}

fn header_name(name: String) -> Result<HeaderName> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| text("header name", name, "a header name"))
}

fn some_text(value: String) -> Option<Arc<str>> {
    Some(value).filter(|value| !value.is_empty()).map(Arc::from)
}

fn text(field: &'static str, value: String, expected: &'static str) -> ConversionError {
    ConversionError::Text { field, value, expected }
}

#[cfg(test)]
mod tests;
