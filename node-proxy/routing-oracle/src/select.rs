//! Which rule wins: `HTTPRouteRule.matches`, `GRPCRouteRule.matches`, `HTTPRouteSpec.hostnames`.

use crate::matching::{counted, matches};
use crate::{Kind, Match, Path, Request, Route, Value, WholeMatch, hostname};

/// Places in the list given, the route's rules and the rule's matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Winner {
    pub route: usize,
    pub rule: usize,
    pub matched: usize,
}

struct Candidate<'a> {
    place: Winner,
    route: &'a Route,
    item: &'a Match,
    /// Characters of the longest hostname that matches without a wildcard, and of the longest that matches at all.
    precise_hostname: usize,
    hostname: usize,
}

/// The rule that a request takes, the routes being all of one parent and group.
pub fn select(routes: &[Route], request: &Request, regex: WholeMatch<'_>) -> Option<Winner> {
    let mut left = candidates(routes, request, regex);
    // "Precedence MUST be given to rules from the route with the largest number of characters in a matching non-wildcard
    // hostname", then "in a matching hostname".
    keep_largest(&mut left, |candidate| candidate.precise_hostname);
    keep_largest(&mut left, |candidate| candidate.hostname);
    // GEP-1686: the more specific kind first.
    keep_largest(&mut left, |candidate| usize::from(candidate.route.kind == Kind::Grpc));
    // GRPCRoute: "Characters in a matching service", "in a matching method". Ours: exact before regular expressions,
    // whose characters do not count.
    keep_largest(&mut left, |candidate| characters(grpc_parts(candidate.item).0));
    keep_largest(&mut left, |candidate| characters(grpc_parts(candidate.item).1));
    // HTTPRoute: "Exact path match", [ours: regular expression], "Prefix path match with largest number of characters".
    keep_largest(&mut left, |candidate| usize::from(matches!(candidate.item.path, Path::Exact(_))));
    keep_largest(&mut left, |candidate| usize::from(matches!(candidate.item.path, Path::Regex(_))));
    keep_largest(&mut left, |candidate| prefix_characters(&candidate.item.path));
    // "Method match", "largest number of header matches", "largest number of query param matches".
    keep_largest(&mut left, |candidate| usize::from(candidate.item.method.is_some()));
    keep_largest(&mut left, |candidate| {
        let names = candidate.item.headers.iter().map(|(name, _)| name.to_ascii_lowercase());
        counted(&names.collect::<Vec<_>>())
    });
    keep_largest(&mut left, |candidate| {
        let names = candidate.item.query.iter().map(|(name, _)| name.clone());
        counted(&names.collect::<Vec<_>>())
    });
    // "The oldest Route based on creation timestamp", "the Route appearing first in alphabetical order by
    // {namespace}/{name}", the first matching rule and match in list order.
    keep_smallest(&mut left, |candidate| candidate.route.created);
    keep_smallest(&mut left, |candidate| format!("{}/{}", candidate.route.namespace, candidate.route.name));
    keep_smallest(&mut left, |candidate| candidate.place.rule);
    keep_smallest(&mut left, |candidate| candidate.place.matched);
    left.first().map(|candidate| candidate.place)
}

fn candidates<'a>(routes: &'a [Route], request: &Request, regex: WholeMatch<'_>) -> Vec<Candidate<'a>> {
    let mut found = Vec::new();
    for (route_index, route) in routes.iter().enumerate() {
        let fitting: Vec<&String> =
            route.hostnames.iter().filter(|name| hostname::matches(name, &request.host)).collect();
        if fitting.is_empty() && !route.hostnames.is_empty() {
            continue;
        }
        let precise = fitting.iter().filter(|name| !name.starts_with('*'));
        let precise_hostname = precise.map(|name| name.chars().count()).max().unwrap_or(0);
        let hostname = fitting.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        for (rule, items) in route.rules.iter().enumerate() {
            for (matched, item) in items.iter().enumerate() {
                if matches(route.kind, item, request, regex) {
                    let place = Winner { route: route_index, rule, matched };
                    found.push(Candidate { place, route, item, precise_hostname, hostname });
                }
            }
        }
    }
    found
}

fn keep_largest<K: Ord>(left: &mut Vec<Candidate<'_>>, key: impl Fn(&Candidate<'_>) -> K) {
    if let Some(largest) = left.iter().map(&key).max() {
        left.retain(|candidate| key(candidate) == largest);
    }
}

fn keep_smallest<K: Ord>(left: &mut Vec<Candidate<'_>>, key: impl Fn(&Candidate<'_>) -> K) {
    if let Some(smallest) = left.iter().map(&key).min() {
        left.retain(|candidate| key(candidate) == smallest);
    }
}

fn grpc_parts(item: &Match) -> (Option<&Value>, Option<&Value>) {
    match &item.path {
        Path::Grpc { service, method } => (service.as_ref(), method.as_ref()),
        _ => (None, None),
    }
}

/// Two or more for an exact value, one for a regular expression, none without either.
fn characters(value: Option<&Value>) -> usize {
    match value {
        Some(Value::Exact(text)) => 1 + text.chars().count(),
        Some(Value::Regex(_)) => 1,
        None => 0,
    }
}

/// "When specified, a trailing / is ignored": here too.
fn prefix_characters(path: &Path) -> usize {
    match path {
        Path::Prefix(prefix) => prefix.trim_end_matches('/').chars().count(),
        _ => 0,
    }
}
