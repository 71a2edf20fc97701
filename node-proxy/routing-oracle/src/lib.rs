//! What the Gateway API says about routes, transcribed sentence by sentence into loops over plain text: slow, obvious, and
//! without a line in common with `culvert-routing`, whose property tests are held against it. Where the specification
//! leaves a choice, it is marked *ours*.

pub mod connections;
pub mod cors;
pub mod filters;
pub mod hostname;
pub mod matching;
pub mod path;
pub mod retry;
pub mod select;

/// What a route asks for. The order of routes in a list means nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
    /// Seconds since the epoch.
    pub created: i64,
    /// `a.example`, `*.example`; none: any host.
    pub hostnames: Vec<String>,
    /// The matches of each rule.
    pub rules: Vec<Vec<Match>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Http,
    Grpc,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    pub path: Path,
    pub method: Option<String>,
    pub headers: Vec<(String, Value)>,
    pub query: Vec<(String, Value)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    Exact(String),
    Prefix(String),
    Regex(String),
    Grpc { service: Option<Value>, method: Option<Value> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Exact(String),
    Regex(String),
}

/// A request after normalization of its path and host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub http2: bool,
    pub method: String,
    pub host: String,
    pub path: String,
    pub query: Option<String>,
    pub headers: Vec<(String, String)>,
}

/// Whether an expression matches the whole of a text; given by the caller.
pub type WholeMatch<'a> = &'a dyn Fn(&str, &str) -> bool;
