//! From a normalized route and its backends to the route that proxies get, compiled as they compile it.
//!
//! What does not compile makes its rule refuse, as an unsupported value does; what could not be compiled of its matches is
//! left out of them, so that it covers at least what it was meant for.

use std::sync::Arc;

use culvert_objects::FieldError;
use culvert_routing::model::{Action, Match, Route, Rule};
use culvert_routing::{CompileError, CompiledRoute};

use super::normalize::reader::{Fault, FaultReason};
use super::normalize::{Draft, DraftRule};
use super::resolve::ResolvedRule;

/// A route as it is in force.
#[derive(Debug)]
pub struct Compiled {
    pub route: Arc<CompiledRoute>,
    /// Why rules refuse, in the order of the rules.
    pub refused: Vec<Refused>,
}

/// A rule that answers 500.
#[derive(Debug)]
pub struct Refused {
    pub rule: usize,
    pub faults: Vec<Fault>,
}

impl Refused {
    /// Every fault in one line.
    pub fn why(&self) -> String {
        self.faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}

/// Compiles a route with its rules' references followed. `fault` is what stops all of them.
pub fn compile(draft: &Draft, resolved: Vec<ResolvedRule>, fault: &[Fault]) -> Compiled {
    let of_rule = |(rule, resolved): (&DraftRule, &ResolvedRule)| -> Vec<Fault> {
        fault.iter().chain(&rule.faults).chain(&resolved.faults).cloned().collect()
    };
    let mut faults: Vec<Vec<Fault>> = draft.rules.iter().zip(&resolved).map(of_rule).collect();
    let rules = draft.rules.iter().zip(resolved).zip(&faults).map(|((rule, resolved), faults)| Rule {
        name: rule.name.clone(),
        matches: rule.matches.clone(),
        filters: if faults.is_empty() { resolved.filters } else { Vec::new() },
        action: if faults.is_empty() { Action::Forward(resolved.backends) } else { refuse(faults) },
        timeouts: if faults.is_empty() { rule.timeouts } else { Default::default() },
        retry: if faults.is_empty() { rule.retry.clone() } else { None },
        session: if faults.is_empty() { resolved.session } else { None },
    });
    let mut route = Route {
        key: draft.key.clone(),
        created: draft.created,
        hostnames: draft.hostnames.clone(),
        rules: rules.collect(),
    };
    let route = settle(&mut route, &mut faults);
    let refused = faults.into_iter().enumerate().filter(|(_, faults)| !faults.is_empty());
    let refused = refused.map(|(rule, faults)| Refused { rule, faults }).collect();
    Compiled { route: Arc::new(route), refused }
}

/// Compiles what is left of a route after every fault has been taken out.
fn settle(route: &mut Route, faults: &mut [Vec<Fault>]) -> CompiledRoute {
    let parts = |of: &Match| 2 + of.headers.len() + of.query.len();
    let parts = |rule: &Rule| 3 + rule.matches.iter().map(parts).sum::<usize>();
    for _ in 0..=route.rules.iter().map(parts).sum() {
        let error = match CompiledRoute::compile(route.clone()) {
            Ok(compiled) => return compiled,
            Err(error) => error,
        };
        let Some(index) = rule_of(&error).filter(|index| *index < route.rules.len()) else {
            break_down(route, faults, &error);
            continue;
        };
        faults[index].push(fault_of(&error));
        make_refuse(route, index, &faults[index], &error);
    }
    let error = CompiledRoute::compile(route.clone());
    if let Err(error) = &error {
        break_down(route, faults, error);
    }
    CompiledRoute::compile(route.clone())
        .expect("rules of one match of everything, without name and filters, compile")
}

/// Leaves nothing of a route but rules that refuse every request.
fn break_down(route: &mut Route, faults: &mut [Vec<Fault>], error: &CompileError) {
    route.hostnames.clear();
    for (rule, faults) in route.rules.iter_mut().zip(faults) {
        faults.push(fault_of(error));
        *rule = Rule {
            name: None,
            matches: vec![Match::everything(route.key.kind)],
            filters: Vec::new(),
            action: refuse(faults),
            timeouts: Default::default(),
            retry: None,
            session: None,
        };
    }
}

fn refuse(faults: &[Fault]) -> Action {
    let why: Vec<String> = faults.iter().map(ToString::to_string).collect();
    Action::Refuse(why.join("; ").into())
}

/// Takes what does not compile out of a rule. Each call leaves less of it, and a rule of one match of everything, without name
/// and filters, has nothing left that could fail.
fn make_refuse(route: &mut Route, index: usize, faults: &[Fault], error: &CompileError) {
    let kind = route.key.kind;
    let rule = &mut route.rules[index];
    let fresh = !matches!(rule.action, Action::Refuse(_));
    rule.action = refuse(faults);
    rule.filters.clear();
    rule.timeouts = Default::default();
    rule.retry = None;
    rule.session = None;
    if matches!(error, CompileError::RuleName { .. }) {
        rule.name = None;
    } else if let Some((index, place)) = match_of(error.at()) {
        match rule.matches.get_mut(index) {
            Some(of) => leave_out(of, place, Match::everything(kind)),
            None => rule.matches = vec![Match::everything(kind)],
        }
    } else if !fresh {
        rule.name = None;
        rule.matches = vec![Match::everything(kind)];
    }
}

/// The part of a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Header(usize),
    Query(usize),
    Path,
}

fn leave_out(of: &mut Match, place: Place, everything: Match) {
    match place {
        Place::Header(index) if index < of.headers.len() => drop(of.headers.remove(index)),
        Place::Query(index) if index < of.query.len() => drop(of.query.remove(index)),
        Place::Path if of.path != everything.path => of.path = everything.path,
        _ => *of = everything,
    }
}

/// `3` of `rules[3].matches[0]`.
fn rule_of(error: &CompileError) -> Option<usize> {
    item(error.at(), "rules").map(|(index, _)| index)
}

/// The match and the part of it, of `rules[3].matches[0].headers[1].value`.
fn match_of(at: &str) -> Option<(usize, Place)> {
    let (_, rest) = item(at, "rules")?;
    let (index, rest) = item(rest.strip_prefix('.')?, "matches")?;
    let rest = rest.strip_prefix('.').unwrap_or_default();
    let place = match (item(rest, "headers"), item(rest, "queryParams")) {
        (Some((header, _)), _) => Place::Header(header),
        (None, Some((query, _))) => Place::Query(query),
        (None, None) => Place::Path,
    };
    Some((index, place))
}

/// The index of `LIST[INDEX]` at the start of a text, and what follows.
fn item<'a>(text: &'a str, list: &str) -> Option<(usize, &'a str)> {
    let (index, rest) = text.strip_prefix(list)?.strip_prefix('[')?.split_once(']')?;
    Some((index.parse().ok()?, rest))
}

fn fault_of(error: &CompileError) -> Fault {
    let reason = match error {
        CompileError::FilterRepeated { .. }
        | CompileError::RedirectWithBackends { .. }
        | CompileError::RedirectWithRewrite { .. }
        | CompileError::RewrittenTwice { .. } => FaultReason::IncompatibleFilters,
        _ => FaultReason::UnsupportedValue,
    };
    let text = error.to_string();
    let message = text.strip_prefix(error.at()).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&text);
    Fault { reason, error: FieldError::new(format!("spec.{}", error.at()), message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_an_error_is_found() {
        let cases = [
            ("rules[3].matches[0].headers[1].value", Some((0, Place::Header(1)))),
            ("rules[0].matches[12].queryParams[2].name", Some((12, Place::Query(2)))),
            ("rules[0].matches[1].path.value", Some((1, Place::Path))),
            ("rules[0].matches[1]", Some((1, Place::Path))),
            ("rules[0].filters[1]", None),
            ("rules[0].name", None),
            ("hostnames[0]", None),
        ];
        for (at, expected) in cases {
            assert_eq!(match_of(at), expected, "{at}");
        }
        assert_eq!(item("rules[17].name", "rules"), Some((17, ".name")));
    }
}
