//! The rules of an HTTPRoute.

use std::num::NonZeroU32;

use culvert_objects::types::{
    HttpPathMatch, HttpRouteMatch, HttpRouteRetry, HttpRouteRule, HttpRouteTimeouts, NamedMatch,
};
use culvert_routing::model::{
    HeaderMatch, Match, PathMatch, QueryMatch, Retry, RouteKind, Timeouts, ValueMatch,
};
use culvert_routing::retry::{DEFAULT_ATTEMPTS, DEFAULT_BACKOFF};
use http::{Method, StatusCode};

use super::filters::{self, Allowed};
use super::reader::{At, Reader};
use super::{DraftRule, backends, duration, matches, session, text};

pub fn rule(rule: &HttpRouteRule, at: At<'_>, mut reader: Reader) -> DraftRule {
    reader.unknown(at, &rule.rest);
    let of_rule = filters::read(&rule.filters, Allowed::All, at.field("filters"), &mut reader);
    let backends = backends(&rule.backend_refs, Allowed::All, at.field("backendRefs"), &mut reader);
    let matches = matches(&rule.matches, one_match, RouteKind::Http, at.field("matches"), &mut reader);
    let timeouts = rule.timeouts.as_ref().map(|of| timeouts(of, at.field("timeouts"), &mut reader));
    let retry = rule.retry.as_ref().map(|of| retry(of, at.field("retry"), &mut reader));
    let session = rule
        .session_persistence
        .as_ref()
        .map(|of| session::read(of, at.field("sessionPersistence"), &mut reader));
    DraftRule {
        name: text(rule.name.as_deref()),
        matches,
        filters: of_rule,
        backends,
        timeouts: timeouts.unwrap_or_default(),
        retry,
        session,
        faults: reader.faults,
    }
}

fn one_match(of: &HttpRouteMatch, at: At<'_>, reader: &mut Reader) -> Match {
    reader.unknown(at, &of.rest);
    let path = of.path.as_ref().and_then(|path| path_match(path, at.field("path"), reader));
    let headers = headers(&of.headers, at.field("headers"), reader);
    let mut query = Vec::with_capacity(of.query_params.len());
    for (index, parameter) in of.query_params.iter().enumerate() {
        let at = at.field("queryParams");
        let at = at.item(index);
        if let Some(value) = value_match(parameter, at, reader) {
            query.push(QueryMatch { name: parameter.name.as_str().into(), value });
        }
    }
    let method = of.method.as_deref().and_then(|written| self::method(written, at.field("method"), reader));
    Match { path: path.unwrap_or_else(|| Match::everything(RouteKind::Http).path), method, headers, query }
}

fn path_match(path: &HttpPathMatch, at: At<'_>, reader: &mut Reader) -> Option<PathMatch> {
    reader.unknown(at, &path.rest);
    let value = path.value.as_deref().unwrap_or("/");
    match path.kind.as_deref() {
        None | Some("PathPrefix") => Some(PathMatch::Prefix(value.into())),
        Some("Exact") => Some(PathMatch::Exact(value.into())),
        Some("RegularExpression") => Some(PathMatch::Regex(value.into())),
        Some(other) => {
            reader
                .unsupported(at.field("type"), unknown_type(other, "Exact, PathPrefix or RegularExpression"));
            None
        }
    }
}

/// The matches of headers that could be read, in either kind of route.
pub fn headers(headers: &[NamedMatch], at: At<'_>, reader: &mut Reader) -> Vec<HeaderMatch> {
    let headers = headers.iter().enumerate();
    headers.filter_map(|(index, header)| header_match(header, at.item(index), reader)).collect()
}

fn header_match(header: &NamedMatch, at: At<'_>, reader: &mut Reader) -> Option<HeaderMatch> {
    let name = filters::header_name(&header.name, at.field("name"), reader);
    let value = value_match(header, at, reader);
    Some(HeaderMatch { name: name?, value: value? })
}

fn value_match(of: &NamedMatch, at: At<'_>, reader: &mut Reader) -> Option<ValueMatch> {
    reader.unknown(at, &of.rest);
    typed_value(of.kind.as_deref(), &of.value, at, reader)
}

/// An exact value or a regular expression, as `type` says.
pub fn typed_value(kind: Option<&str>, value: &str, at: At<'_>, reader: &mut Reader) -> Option<ValueMatch> {
    match kind {
        None | Some("Exact") => Some(ValueMatch::Exact(value.into())),
        Some("RegularExpression") => Some(ValueMatch::Regex(value.into())),
        Some(other) => {
            reader.unsupported(at.field("type"), unknown_type(other, "Exact or RegularExpression"));
            None
        }
    }
}

fn unknown_type(found: &str, expected: &str) -> String {
    format!("this version of Culvert does not do the match {found:?}, expected {expected}")
}

/// One of the methods that the API names (`HTTPMethod`).
pub fn method(method: &str, at: At<'_>, reader: &mut Reader) -> Option<Method> {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::CONNECT,
        Method::OPTIONS,
        Method::TRACE,
        Method::PATCH,
    ];
    let found = known.iter().find(|known| known.as_str() == method);
    if found.is_none() {
        let expected = "expected GET, HEAD, POST, PUT, DELETE, CONNECT, OPTIONS, TRACE or PATCH";
        reader.unsupported(at, format!("invalid value: {method:?}, {expected}"));
    }
    found.cloned()
}

fn retry(of: &HttpRouteRetry, at: At<'_>, reader: &mut Reader) -> Retry {
    reader.unknown(at, &of.rest);
    let mut codes = Vec::with_capacity(of.codes.len());
    for (index, code) in of.codes.iter().enumerate() {
        match StatusCode::from_u16(*code).ok().filter(|_| (400..600).contains(code)) {
            Some(code) => codes.push(code),
            None => {
                let at = at.field("codes");
                reader.unsupported(at.item(index), format!("invalid value: {code}, expected 400 to 599"));
            }
        }
    }
    let attempts = of.attempts.map_or(Some(DEFAULT_ATTEMPTS), NonZeroU32::new);
    if attempts.is_none() {
        reader.unsupported(at.field("attempts"), "invalid value: 0, expected at least 1");
    }
    let backoff = of.backoff.as_deref().map_or(Ok(DEFAULT_BACKOFF), duration::parse);
    let backoff = backoff.unwrap_or_else(|message| {
        reader.unsupported(at.field("backoff"), message);
        DEFAULT_BACKOFF
    });
    Retry { codes, attempts: attempts.unwrap_or(DEFAULT_ATTEMPTS), backoff }
}

/// `0s` is no limit (GEP-1742).
fn timeouts(of: &HttpRouteTimeouts, at: At<'_>, reader: &mut Reader) -> Timeouts {
    reader.unknown(at, &of.rest);
    let mut read = |text: Option<&String>, at: At<'_>| match duration::parse(text?) {
        Ok(duration) => Some(duration).filter(|duration| !duration.is_zero()),
        Err(message) => {
            reader.unsupported(at, message);
            None
        }
    };
    let request = read(of.request.as_ref(), at.field("request"));
    let backend_request = read(of.backend_request.as_ref(), at.field("backendRequest"));
    Timeouts { request, backend_request }
}
