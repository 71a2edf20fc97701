//! Cross-origin requests (Fetch standard, 3.2; GEP-1767): which pages of other origins may read what is answered. Browsers
//! enforce it; what is said to them here is all that is decided.

use std::fmt;
use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::model::Scheme;

/// What pages of other origins may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    pub origins: Allowed<OriginPattern>,
    /// Beside GET, HEAD and POST, which browsers send without asking.
    pub methods: Allowed<Method>,
    pub headers: Allowed<HeaderName>,
    /// Of responses.
    pub exposed: Allowed<HeaderName>,
    pub credentials: Credentials,
    /// Seconds for which a browser may remember the answer to a preflight.
    pub max_age: u32,
}

/// A list, or `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed<T> {
    Any,
    These(Vec<T>),
}

/// Whether requests may carry cookies and the like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    #[default]
    Omitted,
    Allowed,
}

/// `SCHEME://HOST[:PORT]`; the host may be `*`, or begin with `*.`, which stands for one or more labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginPattern {
    scheme: Scheme,
    host: HostPattern,
    port: u16,
}

/// In lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
enum HostPattern {
    Any,
    Exact(Arc<str>),
    /// With the dot in front: `.example.com`.
    Below(Arc<str>),
}

/// An origin as a browser sends it.
struct Origin<'a> {
    scheme: Scheme,
    host: &'a str,
    port: u16,
}

impl<'a> Origin<'a> {
    /// None for `null`, other schemes, and what is no origin.
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme =
            [Scheme::Http, Scheme::Https].into_iter().find(|of| of.as_str().eq_ignore_ascii_case(scheme))?;
        // Of an IPv6 address the colons are inside of brackets.
        let after_host = rest.rfind(']').map_or(0, |end| end + 1);
        let (host, port) = match rest[after_host..].find(':') {
            Some(colon) => {
                let (host, port) = rest.split_at(after_host + colon);
                let digits = port[1..].bytes().all(|byte| byte.is_ascii_digit());
                (host, Some(&port[1..]).filter(|_| digits)?.parse().ok()?)
            }
            None => (rest, scheme.well_known_port()),
        };
        (!host.is_empty() && port != 0).then_some(Self { scheme, host, port })
    }
}

impl OriginPattern {
    /// None when it is not of the form that the API asks for (`CORSOrigin`).
    pub fn parse(text: &str) -> Option<Self> {
        let Origin { scheme, host, port } = Origin::parse(text)?;
        let is_name = |name: &str| {
            let is_label = |label: &str| {
                !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            };
            name.split('.').all(is_label)
        };
        let lower = host.to_ascii_lowercase();
        let host = match (lower.as_str(), lower.strip_prefix("*.")) {
            ("*", _) => HostPattern::Any,
            (_, Some(suffix)) if is_name(suffix) => HostPattern::Below(format!(".{suffix}").into()),
            (name, None) if is_name(name) => HostPattern::Exact(name.into()),
            _ => return None,
        };
        Some(Self { scheme, host, port })
    }

    fn takes(&self, origin: &Origin<'_>) -> bool {
        let host = match &self.host {
            HostPattern::Any => true,
            HostPattern::Exact(name) => origin.host.eq_ignore_ascii_case(name),
            HostPattern::Below(suffix) => origin
                .host
                .len()
                .checked_sub(suffix.len())
                .filter(|start| *start > 0)
                .and_then(|start| origin.host.get(start..))
                .is_some_and(|end| end.eq_ignore_ascii_case(suffix)),
        };
        host && self.scheme == origin.scheme && self.port == origin.port
    }
}

impl fmt::Display for OriginPattern {
    /// As [`OriginPattern::parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme.as_str())?;
        match &self.host {
            HostPattern::Any => f.write_str("*")?,
            HostPattern::Exact(name) => f.write_str(name)?,
            HostPattern::Below(suffix) => write!(f, "*{suffix}")?,
        }
        if self.port == self.scheme.well_known_port() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

impl<T: fmt::Display> Allowed<T> {
    /// As it is written: `*`, or each by itself.
    pub fn texts(&self) -> Vec<String> {
        match self {
            Allowed::Any => vec!["*".to_owned()],
            Allowed::These(all) => all.iter().map(ToString::to_string).collect(),
        }
    }
}

/// The answer to a preflight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preflight {
    /// The headers of a response without body, status 204.
    Granted(HeaderMap),
    /// The origin is not among those allowed, or what is asked is no question of a browser: there is nothing that would be said.
    Refused,
}

/// A request's origin. Several lines of it are one value, joined by commas (RFC 9110, 5.3), and no origin.
pub fn origin(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut lines = headers.get_all(ORIGIN).iter();
    lines.next().filter(|_| lines.next().is_none())
}

impl Cors {
    /// What is answered to a preflight: OPTIONS with the origin and the method that is asked for. Everything else goes on.
    pub fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<Preflight> {
        let asked = headers.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|_| *method == Method::OPTIONS)?;
        headers.get(ORIGIN)?;
        let is_method = Method::from_bytes(asked.as_bytes()).is_ok();
        let allowed = origin(headers).filter(|_| is_method).and_then(|origin| self.allowed_origin(origin));
        let Some(allowed) = allowed else { return Some(Preflight::Refused) };
        let mut answer = HeaderMap::new();
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if self.credentials == Credentials::Allowed {
            answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        let methods = list(&self.methods, Some(asked), self.credentials);
        let names = list(&self.headers, headers.get(ACCESS_CONTROL_REQUEST_HEADERS), self.credentials);
        let exposed = list(&self.exposed, None, self.credentials);
        answer.extend(methods.map(|methods| (ACCESS_CONTROL_ALLOW_METHODS, methods)));
        answer.extend(names.map(|names| (ACCESS_CONTROL_ALLOW_HEADERS, names)));
        answer.extend(exposed.map(|names| (ACCESS_CONTROL_EXPOSE_HEADERS, names)));
        answer.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age));
        answer.insert(
            VARY,
            HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers"),
        );
        Some(Preflight::Granted(answer))
    }

    /// Says in a response what a page of the request's origin may read. What the backend says of it itself does not count: two
    /// answers to one question are none.
    pub fn apply(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        for name in
            [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_EXPOSE_HEADERS]
        {
            headers.remove(name);
        }
        let allowed = origin.and_then(|origin| self.allowed_origin(origin));
        if let Some(allowed) = allowed {
            let exposed = match (&self.exposed, self.credentials) {
                // With credentials `*` is the name of a header.
                (Allowed::Any, Credentials::Allowed) => joined(headers.keys().map(HeaderName::as_str)),
                (exposed, credentials) => list(exposed, None, credentials),
            };
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
            if self.credentials == Credentials::Allowed {
                headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            }
            headers.extend(exposed.map(|exposed| (ACCESS_CONTROL_EXPOSE_HEADERS, exposed)));
        }
        if !self.is_for_anybody() {
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
    }

    /// Whether every origin is answered the same.
    fn is_for_anybody(&self) -> bool {
        self.origins == Allowed::Any && self.credentials == Credentials::Omitted
    }

    /// The value of `Access-Control-Allow-Origin`; None: the origin may not.
    fn allowed_origin(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        match &self.origins {
            Allowed::Any if self.is_for_anybody() => Some(HeaderValue::from_static("*")),
            Allowed::Any => Some(origin.clone()),
            Allowed::These(patterns) => {
                let sent = Origin::parse(origin.to_str().ok()?)?;
                patterns.iter().any(|pattern| pattern.takes(&sent)).then(|| origin.clone())
            }
        }
    }
}

/// The value of a list. `*` becomes what was asked for: with credentials it would be a name like others, and without them it
/// would not stand for `Authorization`.
fn list<T: fmt::Display>(
    allowed: &Allowed<T>,
    asked: Option<&HeaderValue>,
    credentials: Credentials,
) -> Option<HeaderValue> {
    match allowed {
        Allowed::These(all) => joined(all.iter()),
        Allowed::Any => {
            let any = (credentials == Credentials::Omitted).then(|| HeaderValue::from_static("*"));
            asked.cloned().or(any)
        }
    }
}

/// None for an empty list.
fn joined(parts: impl Iterator<Item = impl fmt::Display>) -> Option<HeaderValue> {
    let parts: Vec<String> = parts.map(|part| part.to_string()).collect();
    // Names and methods are text.
    HeaderValue::from_str(&parts.join(", ")).ok().filter(|_| !parts.is_empty())
}
