//! Which of several matching rules wins.

use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;

use crate::conditions::{Conditions, PathTest, ValueTest};
use crate::model::{Hostname, RouteKey, RouteKind};

/// The place of one match of one rule among all of a table: the smaller wins. Field order is the rule
/// (`HTTPRouteRule.matches`, `GRPCRouteRule.matches`, GEP-1686 for the kinds; see [`Criterion`]).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Precedence {
    host: HostRank,
    kind: RouteKind,
    path: PathRank,
    method: MethodRank,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    created: i64,
    /// `namespace/name`, compared as one text: `a-b/c` comes before `a/z`.
    route: Arc<str>,
    rule: usize,
    matched: usize,
}

/// By characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum HostRank {
    Exact(Reverse<usize>),
    Wildcard(Reverse<usize>),
    Any,
}

/// Prefixes by characters, without a trailing slash, which "is ignored". The place of regular expressions is ours to
/// choose: after a prefix, a catch-all prefix would hide every one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    Grpc { service: ValueRank, method: ValueRank },
    Exact,
    Regex,
    Prefix(Reverse<usize>),
}

/// Exact by characters. Regular expressions, whose place is ours to choose, do not count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ValueRank {
    Exact(Reverse<usize>),
    Regex,
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum MethodRank {
    Given,
    Any,
}

/// What decided between two rules that both match a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Criterion {
    Hostname,
    Kind,
    Path,
    GrpcService,
    GrpcMethod,
    Method,
    Headers,
    Query,
    Age,
    Name,
    Rule,
    Match,
}

impl Precedence {
    pub(crate) fn new(
        hostname: Option<&Hostname>,
        route: &RouteKey,
        full_name: &Arc<str>,
        created: i64,
        (rule, matched): (usize, usize),
        conditions: &Conditions,
    ) -> Precedence {
        Precedence {
            host: match hostname {
                Some(Hostname::Exact(name)) => HostRank::Exact(Reverse(name.len())),
                Some(Hostname::Wildcard(suffix)) => HostRank::Wildcard(Reverse(suffix.len())),
                None => HostRank::Any,
            },
            kind: route.kind,
            path: match &conditions.path {
                PathTest::Exact(_) => PathRank::Exact,
                PathTest::Regex(_) => PathRank::Regex,
                PathTest::Prefix(prefix) => PathRank::Prefix(Reverse(prefix.len())),
                PathTest::Grpc { service, method } => {
                    PathRank::Grpc { service: value_rank(service), method: value_rank(method) }
                }
            },
            method: if conditions.method.is_some() { MethodRank::Given } else { MethodRank::Any },
            headers: Reverse(conditions.headers.len()),
            query: Reverse(conditions.query.len()),
            created,
            route: Arc::clone(full_name),
            rule,
            matched,
        }
    }

    /// The first criterion in which the two differ; `None` if they are equal.
    pub fn decided_by(&self, other: &Precedence) -> Option<Criterion> {
        let path = match (self.path, other.path) {
            (PathRank::Grpc { service: a, .. }, PathRank::Grpc { service: b, .. }) if a != b => {
                Criterion::GrpcService
            }
            (PathRank::Grpc { .. }, PathRank::Grpc { .. }) => Criterion::GrpcMethod,
            _ => Criterion::Path,
        };
        let differences = [
            (self.host != other.host, Criterion::Hostname),
            (self.kind != other.kind, Criterion::Kind),
            (self.path != other.path, path),
            (self.method != other.method, Criterion::Method),
            (self.headers != other.headers, Criterion::Headers),
            (self.query != other.query, Criterion::Query),
            (self.created != other.created, Criterion::Age),
            (self.route != other.route, Criterion::Name),
            (self.rule != other.rule, Criterion::Rule),
            (self.matched != other.matched, Criterion::Match),
        ];
        differences.into_iter().find_map(|(differs, criterion)| differs.then_some(criterion))
    }
}

fn value_rank(value: &Option<ValueTest>) -> ValueRank {
    match value {
        Some(ValueTest::Exact(text)) => ValueRank::Exact(Reverse(text.len())),
        Some(ValueTest::Regex(_)) => ValueRank::Regex,
        None => ValueRank::Any,
    }
}

impl fmt::Display for Criterion {
    /// Completes "the other rule wins: it ...".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Criterion::Hostname => "has the more specific hostname",
            Criterion::Kind => "is of a GRPCRoute, which comes before HTTPRoutes for gRPC calls",
            Criterion::Path => {
                "has the more specific path (exact, then regular expression, then the longer prefix)"
            }
            Criterion::GrpcService => "has the more specific gRPC service (exact, then regular expression)",
            Criterion::GrpcMethod => "has the more specific gRPC method (exact, then regular expression)",
            Criterion::Method => "matches the method",
            Criterion::Headers => "matches more headers",
            Criterion::Query => "matches more query parameters",
            Criterion::Age => "is of the older route",
            Criterion::Name => "is of the route whose namespace/name comes first",
            Criterion::Rule => "comes first in the route",
            Criterion::Match => "has the match that comes first in the rule",
        })
    }
}
