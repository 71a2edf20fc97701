//! Filters CORS of rules that no preflight reaches: it is an `OPTIONS` without the headers of the request that it is about, so
//! a match on a method or on headers leaves it out (Fetch, CORS-preflight fetch).

use culvert_controller::translate::outcomes::{DraftFilter, DraftRule, Outcome};
use culvert_routing::model::{Filter, Match, PathMatch};
use http::Method;

use super::object_of;
use crate::code::Code;
use crate::context::Context;
use crate::finding::Finding;

/// Headers that a preflight has itself.
const OWN: [&str; 8] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "access-control-request-headers",
    "access-control-request-method",
    "host",
    "origin",
    "user-agent",
];

pub fn find(context: &Context) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        context.translation.outcomes.iter().flat_map(|outcome| of_route(context, outcome)).collect();
    // A route with several parents is told of once.
    findings.dedup();
    findings
}

fn of_route(context: &Context, outcome: &Outcome) -> Vec<Finding> {
    let rules = &outcome.draft.rules;
    let answering: Vec<&Match> = rules
        .iter()
        .filter(|rule| has_cors(rule))
        .flat_map(|rule| &rule.matches)
        .filter(|of| takes(of))
        .collect();
    let mut findings = Vec::new();
    for (index, rule) in rules.iter().enumerate().filter(|(_, rule)| has_cors(rule)) {
        for (number, of) in rule.matches.iter().enumerate() {
            if takes(of) || answering.iter().any(|other| covers(&other.path, &of.path)) {
                continue;
            }
            let field = format!("spec.rules[{index}].matches[{number}]");
            let by = match &of.method {
                Some(method) if *method != Method::OPTIONS => format!("method {method}"),
                _ => "headers".to_owned(),
            };
            let what = format!(
                "the rule has a filter CORS, and the match asks for {by}: a browser's preflight is an OPTIONS without the \
                 request's headers, matches another rule or none, and the page is refused"
            );
            let remedy =
                "match by path alone, or add a rule with the same path and filter, and method: OPTIONS";
            let object = object_of(&outcome.draft.key);
            findings.extend(context.finding(Code::PreflightMissed, &object, field, what, remedy));
        }
    }
    findings
}

fn has_cors(rule: &DraftRule) -> bool {
    let of_backends = rule.backends.iter().flat_map(|backend| &backend.filters);
    let mut filters = rule.filters.iter().chain(of_backends);
    filters.any(|filter| matches!(filter, DraftFilter::Ready(Filter::Cors(_))))
}

/// Whether a preflight can match.
fn takes(of: &Match) -> bool {
    let is_own = |name: &str| OWN.contains(&name);
    of.method.as_ref().is_none_or(|method| *method == Method::OPTIONS)
        && of.headers.iter().all(|header| is_own(header.name.as_str()))
}

/// Whether every path of one match is one of the other's, as far as can be told.
fn covers(outer: &PathMatch, inner: &PathMatch) -> bool {
    let (PathMatch::Prefix(prefix), PathMatch::Prefix(path) | PathMatch::Exact(path)) = (outer, inner) else {
        return outer == inner || matches!(outer, PathMatch::Prefix(prefix) if &**prefix == "/");
    };
    let prefix = prefix.trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
