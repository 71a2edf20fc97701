//! What a rule says of sessions (`SessionPersistence`, GEP-1619): requests of one go to the endpoint that took the first. Pure:
//! what stands in a client's cookie is the node proxy's business.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::header::{CACHE_CONTROL, COOKIE, DATE, LOCATION, SET_COOKIE, VARY};

use crate::compile::belongs_to_connection;
use crate::model::{PathMatch, ValueMatch};

/// Longest `sessionName` (schema).
pub const LONGEST_NAME: usize = 128;

/// Session persistence of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPersistence {
    pub carrier: Carrier,
    /// From its first response; `None`: a session has no end of its own.
    pub absolute_timeout: Option<Duration>,
}

/// What tells one session from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    Cookie {
        name: CookieName,
        lifetime: Lifetime,
        path: CookiePath,
    },
    /// A header of responses, which the client sends back with its requests.
    Header(HeaderName),
}

/// When a client forgets a cookie (`CookieConfig.lifetimeType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// With its own session: no `Max-Age`.
    Session,
    /// After the absolute timeout: `Max-Age`.
    Permanent,
}

/// The attribute `Path` of a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CookiePath {
    /// As far as the path that matched goes.
    Matched,
    /// None: sessions of a policy, which many routes share.
    Unset,
}

/// The name of a cookie: a token (RFC 6265, 4.1.1) of at most [`LONGEST_NAME`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieName(Arc<str>);

impl CookieName {
    /// `None`: it is none, or one that browsers take over TLS only (RFC 6265bis, 4.1.3).
    pub fn parse(text: &str) -> Option<Self> {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let of_tls =
            |prefix: &str| text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        let is_name = (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(is_token);
        (is_name && !of_tls("__host-") && !of_tls("__secure-")).then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A header that may tell sessions apart: none that means something else in a response.
pub fn session_header(text: &str) -> Option<HeaderName> {
    let name =
        HeaderName::from_bytes(text.as_bytes()).ok().filter(|name| name.as_str().len() <= LONGEST_NAME)?;
    let is_taken = [CACHE_CONTROL, COOKIE, DATE, LOCATION, SET_COOKIE, VARY].contains(&name)
        || ["content-", "grpc-", "access-control-"].iter().any(|start| name.as_str().starts_with(start));
    (!is_taken && !belongs_to_connection(&name)).then_some(name)
}

/// The `Path` of a cookie for requests that matched so (GEP-1619, Path): as long as no request that the match takes is left
/// out, and without what the attribute cannot hold.
pub fn cookie_path(matched: &PathMatch) -> Cow<'_, str> {
    let path: Cow<'_, str> = match matched {
        PathMatch::Exact(path) => (&**path).into(),
        // A cookie's path ends before a slash (RFC 6265, 5.1.4), as a prefix match does.
        PathMatch::Prefix(path) => path.trim_end_matches('/').into(),
        PathMatch::Regex(pattern) => literal_prefix(pattern).into(),
        PathMatch::Grpc { service: Some(ValueMatch::Exact(service)), method } => match method {
            Some(ValueMatch::Exact(method)) => format!("/{service}/{method}").into(),
            _ => format!("/{service}").into(),
        },
        PathMatch::Grpc { .. } => "".into(),
    };
    let held = |path: &str| match path.find(';') {
        None => path.len(),
        Some(end) => path[..end].rfind('/').unwrap_or(0),
    };
    let end = held(&path);
    match path {
        _ if end == 0 => "/".into(),
        Cow::Borrowed(path) => path[..end].into(),
        Cow::Owned(mut path) => {
            path.truncate(end);
            path.into()
        }
    }
}

/// The whole path elements that every match of a regular expression starts with.
fn literal_prefix(pattern: &str) -> &str {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    // An alternative anywhere may be one to all of it.
    if pattern.contains('|') {
        return "";
    }
    let is_literal = |c: char| c.is_ascii_alphanumeric() || "/_~-%@!:,=&".contains(c);
    let literal = pattern.find(|c| !is_literal(c)).unwrap_or(pattern.len());
    let literal = &pattern[..literal];
    if literal.len() == pattern.len() {
        return literal;
    }
    // What follows may repeat, or leave out, the last character.
    literal.rfind('/').map_or("", |slash| &literal[..slash])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_cookie_is_that_of_the_match() {
        let prefix = |path: &str| PathMatch::Prefix(path.into());
        let exact = |path: &str| PathMatch::Exact(path.into());
        let regex = |path: &str| PathMatch::Regex(path.into());
        let value = |text: &str| Some(ValueMatch::Exact(text.into()));
        let cases = [
            (prefix("/"), "/"),
            (prefix("/cart"), "/cart"),
            (prefix("/cart/"), "/cart"),
            (exact("/cart/1"), "/cart/1"),
            (exact("/cart/"), "/cart/"),
            (exact("/a/b;v=1/c"), "/a"),
            (exact("/b;v=1"), "/"),
            (regex("/p1/p2/[^/]+/p3"), "/p1/p2"),
            (regex("^/p1/p2*"), "/p1"),
            (regex("/p1/p2"), "/p1/p2"),
            (regex("/p1/a?"), "/p1"),
            (regex("/p1|/p2"), "/"),
            (regex(".*"), "/"),
            (PathMatch::Grpc { service: None, method: None }, "/"),
            (PathMatch::Grpc { service: None, method: value("Get") }, "/"),
            (PathMatch::Grpc { service: value("shop.Cart"), method: None }, "/shop.Cart"),
            (PathMatch::Grpc { service: value("shop.Cart"), method: value("Get") }, "/shop.Cart/Get"),
        ];
        for (matched, expected) in cases {
            assert_eq!(cookie_path(&matched), expected, "{matched:?}");
        }
    }

    #[test]
    fn a_header_of_sessions_means_nothing_else() {
        assert_eq!(session_header("X-Session").unwrap(), "x-session");
        let long = "x".repeat(129);
        for name in ["", "a b", "Host", "Set-Cookie", "Cookie", "Content-Type", "grpc-status", "TE", &long] {
            assert_eq!(session_header(name), None, "{name:?}");
        }
    }

    #[test]
    fn names_of_cookies_are_tokens() {
        for name in ["JSESSIONID", "a", "!#$%&'*+-.^_`|~09AZaz", &"n".repeat(128)] {
            assert_eq!(CookieName::parse(name).as_ref().map(CookieName::as_str), Some(name));
        }
        let long = "n".repeat(129);
        for name in
            ["", "a b", "a=b", "a;b", "a,b", "\"a\"", "a/b", "é", "a\n", "__Host-a", "__secure-a", &long]
        {
            assert_eq!(CookieName::parse(name), None, "{name:?}");
        }
    }
}
