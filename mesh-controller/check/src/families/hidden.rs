//! Rules and matches that never win, at every parent of their route.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_controller::translate::outcomes::{Group, Outcome, Place};
use culvert_objects::ObjectKey;
use culvert_routing::model::{Carries, Hostname, Route, RouteKey};
use culvert_routing::table::Candidate;
use culvert_routing::{CompiledRoute, RouteTable};

use super::object_of;
use crate::code::Code;
use crate::context::Context;
use crate::finding::Finding;
use crate::hidden::{Verdict, judge};

/// Where requests meet one set of rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Parent {
    name: String,
    port: u16,
    /// Of consumer routes.
    namespace: Option<Arc<str>>,
}

/// A match of a route.
type Which = (RouteKey, usize, usize);

/// What was found of a match.
enum Found {
    /// At least one parent, or one hostname, where it may win.
    MayWin,
    Never {
        code: Code,
        why: String,
    },
}

pub fn find(context: &Context) -> Vec<Finding> {
    let mut found: BTreeMap<Which, Found> = BTreeMap::new();
    for (parent, routes) in tables(context) {
        let table = RouteTable::new(routes);
        for (candidate, verdict) in judge(&table) {
            let which = (candidate.rule().key().clone(), candidate.rule().index(), place(&candidate));
            let now = match verdict {
                Verdict::Wins(_) | Verdict::Undecided => Found::MayWin,
                Verdict::Impossible(why) => Found::Never { code: Code::Impossible, why },
                Verdict::HiddenBy(by) => {
                    Found::Never { code: Code::Hidden, why: hides(&by, &candidate, &parent) }
                }
            };
            let known = found.entry(which);
            known
                .and_modify(|known| {
                    if matches!(now, Found::MayWin) {
                        *known = Found::MayWin
                    }
                })
                .or_insert(now);
        }
    }
    let mut rules: BTreeMap<(RouteKey, usize), Vec<(usize, Found)>> = BTreeMap::new();
    for ((route, rule, matched), found) in found {
        rules.entry((route, rule)).or_default().push((matched, found));
    }
    rules.into_iter().flat_map(|((route, rule), matches)| of_rule(context, &route, rule, matches)).collect()
}

/// The tables that proxies would have, with the routes of each.
fn tables(context: &Context) -> BTreeMap<Parent, Vec<Arc<CompiledRoute>>> {
    let mut tables: BTreeMap<Parent, BTreeMap<RouteKey, Arc<CompiledRoute>>> = BTreeMap::new();
    for outcome in &context.translation.outcomes {
        for (parent, hostnames) in parents(outcome) {
            if let Some(route) = with_hostnames(outcome.in_force.compiled.route.route(), hostnames) {
                tables.entry(parent).or_default().insert(outcome.draft.key.clone(), route);
            }
        }
    }
    tables.into_iter().map(|(parent, routes)| (parent, routes.into_values().collect())).collect()
}

fn parents(outcome: &Outcome) -> Vec<(Parent, Vec<Hostname>)> {
    match &outcome.attached {
        Err(_) => Vec::new(),
        Ok(Place::Listeners(listeners)) => {
            let parent =
                |name: &String| Parent { name: format!("listener {name}"), port: 0, namespace: None };
            listeners.iter().map(|(name, hostnames)| (parent(name), hostnames.clone())).collect()
        }
        Ok(Place::Service { service, ports, .. }) => {
            let namespace = match Group::of(&outcome.draft.key, service) {
                Group::Producers => None,
                Group::Consumers(namespace) => Some(namespace),
            };
            let name = format!("Service {service}");
            let parent =
                |port: &u16| Parent { name: name.clone(), port: *port, namespace: namespace.clone() };
            let hostnames = outcome.in_force.compiled.route.route().hostnames_at_service();
            ports.iter().map(|port| (parent(port), hostnames.to_vec())).collect()
        }
    }
}

fn with_hostnames(route: &Route, hostnames: Vec<Hostname>) -> Option<Arc<CompiledRoute>> {
    let route = Route { hostnames, ..route.clone() };
    CompiledRoute::compile(route).ok().map(Arc::new)
}

/// Its place among the matches of its rule.
fn place(candidate: &Candidate<'_>) -> usize {
    let mut matches = candidate.rule().matches().iter();
    matches.position(|of| std::ptr::eq(of, candidate.matched())).unwrap_or_default()
}

fn hides(by: &Candidate<'_>, hidden: &Candidate<'_>, parent: &Parent) -> String {
    let (winner, loser) = (by.rule(), hidden.rule());
    let whose = match winner.key() == loser.key() {
        true => "the same route".to_owned(),
        false => object_of(winner.key()).to_string(),
    };
    let at = match parent.port {
        0 => parent.name.clone(),
        port => format!("port {port} of {}", parent.name),
    };
    let rule = match winner.name() {
        Some(name) => format!("rules[{}] ({name})", winner.index()),
        None => format!("rules[{}]", winner.index()),
    };
    if winner.key().kind.carries() != Carries::Requests {
        return format!("{whose} takes every connection that it would take at {at}");
    }
    format!("spec.{rule}.matches[{}] of {whose} takes every request that it would match at {at}", place(by))
}

fn of_rule(context: &Context, route: &RouteKey, rule: usize, matches: Vec<(usize, Found)>) -> Vec<Finding> {
    let key = object_of(route);
    let all = matches.iter().all(|(_, found)| matches!(found, Found::Never { .. }));
    let single = matches.len() == 1;
    let mut findings = Vec::new();
    for (index, found) in matches {
        let Found::Never { code, why } = found else { continue };
        let field = match is_written(context, &key, rule) {
            true => format!("spec.rules[{rule}].matches[{index}]"),
            false => format!("spec.rules[{rule}]"),
        };
        let so = match (single, all) {
            (true, _) => "; the rule is never used",
            (false, true) => "; no other match of the rule wins anything either, so the rule is never used",
            (false, false) => "",
        };
        let remedy = match code {
            Code::Hidden => {
                "make one of the two more specific, or take one away (the order of precedence: docs/routing.md)"
            }
            _ => "write what requests can have",
        };
        findings.extend(context.finding(code, &key, field, format!("it never wins: {why}{so}"), remedy));
    }
    findings
}

/// Whether the rule's matches are written, or one of everything stands for none.
fn is_written(context: &Context, key: &ObjectKey, rule: usize) -> bool {
    let document = context.document(key);
    let matches = document.and_then(|of| of.value.pointer(&format!("/spec/rules/{rule}/matches")));
    matches.and_then(serde_json::Value::as_array).is_some_and(|matches| !matches.is_empty())
}
