//! What is wrong with a route: where, what, and what to write instead.

use std::fmt;
use std::time::Duration;

use http::HeaderName;

use crate::hostname::HostnameError;
use crate::model::RouteKind;
pub use crate::pattern::PatternError;

/// Why a route is not accepted. `at` is the place in the route's `spec`, such as `rules[3].matches[0].headers[1].value`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("{at}: {error}")]
    Hostname { at: String, error: HostnameError },
    #[error(
        "{at}: the list is empty and would match nothing: give a match, path prefix \"/\" matches everything"
    )]
    NoMatch { at: String },
    #[error("{at}: rules[{first}] is called {name:?} too: rule names are unique within a route")]
    RuleName { at: String, name: String, first: usize },
    #[error("{at}: {}", other_kind(kind))]
    MatchOfOtherKind { at: String, kind: RouteKind },
    #[error("{at}: {value:?} {problem}")]
    Path { at: String, value: String, problem: PathProblem },
    #[error("{at}: {value:?}: {error}")]
    Regex { at: String, value: String, error: PatternError },
    #[error("{at}: the value has {length} bytes: {limit} at most")]
    TooLong { at: String, length: usize, limit: usize },
    #[error("{at}: the name of a query parameter is empty: name one")]
    QueryName { at: String },
    #[error(
        "{at}: {value:?} cannot be the name of a gRPC service or method: letters, digits and '_' (services also '.'), not starting with a digit"
    )]
    GrpcName { at: String, value: String },
    #[error("{at}: a {kind} has no filter {filter}: use an HTTPRoute{}", also_for(*kind))]
    FilterOfOtherKind { at: String, filter: FilterKind, kind: RouteKind },
    #[error("{at}: a {kind} does not have this, it decides about connections: use an HTTPRoute")]
    NotOfConnections { at: String, kind: RouteKind },
    #[error("{at}: a second filter {filter} after {first}: put both into one")]
    FilterRepeated { at: String, filter: FilterKind, first: String },
    #[error("{at}: header {header} is named at {first} too: set, add and remove name each header once")]
    HeaderNamedTwice { at: String, header: HeaderName, first: String },
    #[error("{at}: header {header} belongs to the connection and cannot be edited{}", instead(header))]
    ForbiddenHeader { at: String, header: HeaderName },
    #[error(
        "{at}: a redirect answers the request, so the rule's backendRefs would never be used: remove one of the two"
    )]
    RedirectWithBackends { at: String },
    #[error(
        "{at}: a redirect cannot be combined with the rewrite at {other}: the redirect has path and hostname itself"
    )]
    RedirectWithRewrite { at: String, other: String },
    #[error("{at}: the {part} is already rewritten at {other}: rewrite it in one place")]
    RewrittenTwice { at: String, part: RewrittenPart, other: String },
    #[error(
        "{at}: replacePrefixMatch needs a rule with exactly one match, of type PathPrefix: split the rule, or use replaceFullPath"
    )]
    NoPrefixToReplace { at: String },
    #[error("{at}: a port is a number from 1 to 65535")]
    Port { at: String },
    #[error(
        "{at}: {backend_request:?} is longer than the timeout of the whole request, {request:?}: shorten it"
    )]
    Timeouts { at: String, backend_request: Duration, request: Duration },
}

/// What is wrong with a path that a route names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    #[error("does not start with '/'")]
    NotAbsolute,
    #[error("is longer than 1024 characters")]
    TooLong,
    #[error("contains {0:?}, which is not allowed in a path: escape it as %XX")]
    Character(char),
    #[error("contains '#' or '?': a path has neither query nor fragment")]
    QueryOrFragment,
    #[error("contains '%' without two hexadecimal digits: write %25 for a percent sign")]
    BadEscape,
    #[error("contains %00, with which no request is let through")]
    Nul,
    #[error("contains %2F, an encoded slash: match it with a regular expression")]
    EncodedSlash,
    #[error("contains '//', which is one slash in requests: write '/'")]
    DoubleSlash,
    #[error("has a segment '.' or '..', which are resolved in requests: write the resolved path")]
    DotSegment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterKind {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestRedirect,
    UrlRewrite,
    RequestMirror,
    Cors,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RewrittenPart {
    Hostname,
    Path,
}

impl CompileError {
    /// The place in the route's `spec`.
    pub fn at(&self) -> &str {
        match self {
            Self::Hostname { at, .. }
            | Self::NoMatch { at }
            | Self::RuleName { at, .. }
            | Self::MatchOfOtherKind { at, .. }
            | Self::Path { at, .. }
            | Self::Regex { at, .. }
            | Self::TooLong { at, .. }
            | Self::QueryName { at }
            | Self::GrpcName { at, .. }
            | Self::FilterOfOtherKind { at, .. }
            | Self::NotOfConnections { at, .. }
            | Self::FilterRepeated { at, .. }
            | Self::HeaderNamedTwice { at, .. }
            | Self::ForbiddenHeader { at, .. }
            | Self::RedirectWithBackends { at }
            | Self::RedirectWithRewrite { at, .. }
            | Self::RewrittenTwice { at, .. }
            | Self::NoPrefixToReplace { at }
            | Self::Port { at }
            | Self::Timeouts { at, .. } => at,
        }
    }
}

impl fmt::Display for FilterKind {
    /// As `filters[].type` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FilterKind::RequestHeaderModifier => "RequestHeaderModifier",
            FilterKind::ResponseHeaderModifier => "ResponseHeaderModifier",
            FilterKind::RequestRedirect => "RequestRedirect",
            FilterKind::UrlRewrite => "URLRewrite",
            FilterKind::RequestMirror => "RequestMirror",
            FilterKind::Cors => "CORS",
        })
    }
}

impl fmt::Display for RewrittenPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RewrittenPart::Hostname => "hostname",
            RewrittenPart::Path => "path",
        })
    }
}

fn other_kind(kind: &RouteKind) -> &'static str {
    match kind {
        RouteKind::Grpc => {
            "a GRPCRoute matches service, method and headers: for path, HTTP method or query use an HTTPRoute"
        }
        RouteKind::Http => "an HTTPRoute does not match gRPC service and method: use a GRPCRoute",
        RouteKind::Tls | RouteKind::Tcp => "rules about connections match nothing in them: use an HTTPRoute",
    }
}

fn also_for(kind: RouteKind) -> &'static str {
    match kind {
        RouteKind::Grpc => ", which gRPC calls match too",
        RouteKind::Http | RouteKind::Tls | RouteKind::Tcp => ", where the port carries HTTP",
    }
}

fn instead(header: &HeaderName) -> &'static str {
    if *header == http::header::HOST {
        ": rewrite the hostname with a filter URLRewrite"
    } else {
        ": remove the entry"
    }
}

/// A place in a route, put together only when something is wrong there.
#[derive(Clone, Copy)]
pub(crate) enum At<'a> {
    Spec,
    Field(&'a At<'a>, &'static str),
    Item(&'a At<'a>, &'static str, usize),
}

impl<'a> At<'a> {
    pub(crate) fn field(&'a self, name: &'static str) -> At<'a> {
        At::Field(self, name)
    }

    pub(crate) fn item(&'a self, list: &'static str, index: usize) -> At<'a> {
        At::Item(self, list, index)
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = |parent: &At<'_>| if matches!(parent, At::Spec) { "" } else { "." };
        match self {
            At::Spec => Ok(()),
            At::Field(parent, name) => write!(f, "{parent}{}{name}", dot(parent)),
            At::Item(parent, list, index) => write!(f, "{parent}{}{list}[{index}]", dot(parent)),
        }
    }
}
