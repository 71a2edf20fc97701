//! A route in the one shape that all route kinds are brought to. Values are checked when a route is compiled.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

pub use crate::cors::Cors;
pub use crate::retry::Retry;
pub use crate::session::SessionPersistence;

/// The kind of a route object, the more specific first (GEP-1294). Of the requests that both match, a GRPCRoute takes
/// them before an HTTPRoute (GEP-1686).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    Grpc,
    Http,
    Tls,
    Tcp,
}

impl RouteKind {
    pub const ALL: [RouteKind; 4] = [RouteKind::Grpc, RouteKind::Http, RouteKind::Tls, RouteKind::Tcp];

    /// As the object's `kind` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            RouteKind::Grpc => "GRPCRoute",
            RouteKind::Http => "HTTPRoute",
            RouteKind::Tls => "TLSRoute",
            RouteKind::Tcp => "TCPRoute",
        }
    }

    /// The kind of that name.
    pub fn named(name: &str) -> Option<RouteKind> {
        RouteKind::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    pub fn carries(self) -> Carries {
        match self {
            RouteKind::Grpc | RouteKind::Http => Carries::Requests,
            RouteKind::Tls => Carries::Tls,
            RouteKind::Tcp => Carries::Bytes,
        }
    }
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a kind of route decides about, the more specific first. Of routes for one port the first of these that is there
/// counts alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Carries {
    /// Each request by itself.
    Requests,
    /// A connection, by the server name that its TLS asks for.
    Tls,
    /// A connection, whatever it carries.
    Bytes,
}

/// Names a route object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    pub kind: RouteKind,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// A route as attached to one parent.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub key: RouteKey,
    /// `metadata.creationTimestamp`, seconds since the epoch: the older route wins a tie.
    pub created: i64,
    /// The hostnames in effect at the parent: the intersection with the listener's. Empty: any host, as for every Service but
    /// in a TLSRoute.
    pub hostnames: Vec<Hostname>,
    pub rules: Vec<Rule>,
}

impl Route {
    /// Those in effect where the parent is a Service: the address that is called decides, never a host (GEP-1294), but in
    /// a TLSRoute, which tells connections of one address apart by server name.
    pub fn hostnames_at_service(&self) -> &[Hostname] {
        match self.key.kind.carries() {
            Carries::Tls => &self.hostnames,
            Carries::Requests | Carries::Bytes => &[],
        }
    }
}

/// A lower-case DNS name, or a wildcard for one or more labels in front of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hostname {
    Exact(Arc<str>),
    /// The suffix without `*.`: `*.example.com` is `example.com` here.
    Wildcard(Arc<str>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// `rules[].name`
    pub name: Option<Arc<str>>,
    /// Any of them suffices; the controller writes an omitted list as one match of everything, which is all that a rule about
    /// connections has.
    pub matches: Vec<Match>,
    /// In the order of the route.
    pub filters: Vec<Filter>,
    pub action: Action,
    pub timeouts: Timeouts,
    /// None: what fails is not sent again, but for connections that nothing was sent on.
    pub retry: Option<Retry>,
    /// None: every request is balanced for itself.
    pub session: Option<SessionPersistence>,
}

/// What a rule does with a request that its filters let pass.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// To one of these by weight. None, or all of weight 0: 500.
    Forward(Vec<Backend>),
    /// The rule asks for something that this version does not do: 500, and why.
    Refuse(Arc<str>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Its share of the rule's requests, which it keeps when it is invalid or has no endpoint.
    pub weight: u32,
    pub filters: Vec<Filter>,
    pub target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Service {
        namespace: Arc<str>,
        name: Arc<str>,
        port: u16,
    },
    /// A reference that cannot be followed: 500 for its share, and why.
    Invalid(Arc<str>),
}

impl Match {
    /// The match of everything in a route of this kind. Connections have neither path nor service: theirs is that of a request.
    pub fn everything(kind: RouteKind) -> Match {
        let path = match kind {
            RouteKind::Grpc => PathMatch::Grpc { service: None, method: None },
            RouteKind::Http | RouteKind::Tls | RouteKind::Tcp => PathMatch::Prefix("/".into()),
        };
        Match { path, method: None, headers: Vec::new(), query: Vec::new() }
    }
}

/// All parts must match.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    pub path: PathMatch,
    pub method: Option<Method>,
    /// Of several for one name only the first counts. A header of several lines has them as one value, separated by
    /// commas without a space (RFC 9110, 5.2).
    pub headers: Vec<HeaderMatch>,
    /// Of several for one name only the first counts.
    pub query: Vec<QueryMatch>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    Exact(Arc<str>),
    /// By path element: `/foo` and `/foo/` match `/foo`, `/foo/` and `/foo/bar`, not `/foobar`.
    Prefix(Arc<str>),
    /// The whole path.
    Regex(Arc<str>),
    /// `/service/method` of a gRPC call; what is omitted matches everything.
    Grpc {
        service: Option<ValueMatch>,
        method: Option<ValueMatch>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    Exact(Arc<str>),
    /// The whole value.
    Regex(Arc<str>),
}

impl ValueMatch {
    /// The value or the expression.
    pub fn text(&self) -> &str {
        match self {
            ValueMatch::Exact(text) | ValueMatch::Regex(text) => text,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    pub name: HeaderName,
    pub value: ValueMatch,
}

/// Names are case-sensitive; of a repeated parameter the first value counts. In the request's names and values `%XX`
/// stands for a byte, `+` for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    pub name: Arc<str>,
    pub value: ValueMatch,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    RequestHeaders(HeaderEdit),
    ResponseHeaders(HeaderEdit),
    Redirect(Redirect),
    Rewrite(Rewrite),
    Mirror(Mirror),
    Cors(Cors),
}

/// A copy of requests, as they stand at the place of this filter, for a backend whose answers nobody sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    pub target: Target,
    pub share: Share,
}

/// A part of all requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    numerator: u32,
    denominator: u32,
}

impl Share {
    pub const ALL: Share = Share { numerator: 1, denominator: 1 };

    /// None for more than all, or without a denominator.
    pub fn new(numerator: u32, denominator: u32) -> Option<Share> {
        (denominator > 0 && numerator <= denominator).then_some(Share { numerator, denominator })
    }

    pub fn numerator(self) -> u32 {
        self.numerator
    }

    pub fn denominator(self) -> u32 {
        self.denominator
    }

    /// From 0 to 1.
    pub fn as_fraction(self) -> f64 {
        f64::from(self.numerator) / f64::from(self.denominator)
    }
}

/// Set, then add, then remove; the names are disjoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdit {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

/// The answer is a redirect; what is `None` is taken from the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    pub scheme: Option<Scheme>,
    pub hostname: Option<Arc<str>>,
    pub path: Option<PathEdit>,
    pub port: Option<u16>,
    pub status: RedirectStatus,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedirectStatus {
    MovedPermanently,
    #[default]
    Found,
    SeeOther,
    TemporaryRedirect,
    PermanentRedirect,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    pub hostname: Option<Arc<str>>,
    pub path: Option<PathEdit>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEdit {
    ReplaceFull(Arc<str>),
    /// Of the rule's prefix match, as the table in `HTTPPathModifier` says.
    ReplacePrefix(Arc<str>),
}

/// `None`: no limit by this rule (`0s` says so too).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first byte of the request to the last of the response.
    pub request: Option<Duration>,
    /// Of one try, from the request to the last byte of the backend's response.
    pub backend_request: Option<Duration>,
}
