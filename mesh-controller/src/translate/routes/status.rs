//! What a route is told, per parent (conformance of the Gateway API, "Route status").
//!
//! * `Accepted`: attached, or why not. A route of which no rule can be honoured is `Accepted=False`, `UnsupportedValue` or
//!   `IncompatibleFilters`; it is in force nevertheless, and its rules answer 500, so that nothing falls through to
//!   where it was not meant to go.
//! * `PartiallyInvalid=True`, beside `Accepted=True`: some rules cannot be honoured and answer 500. The message starts
//!   with "Dropped Rule", as the API asks.
//!   A proxy that refuses the route, as one of another version may, adds to this: it keeps the version before, which the
//!   API has the message "Fall Back" for.
//! * `ResolvedRefs`: whether every backend was found, also where the route is not accepted.

use std::collections::BTreeMap;

use culvert_objects::types::ConditionStatus;
use culvert_routing::model::Carries;

use crate::status::{DesiredCondition, DesiredStatus};

use super::attach::Refusal;
use super::compile::Refused;
use super::memory::InForce;
use super::normalize::Draft;
use super::normalize::reader::{Fault, FaultReason};
use super::resolve::Unresolved;

/// How many nodes are named.
const MOST_NODES: usize = 10;

/// Adds what node proxies refuse of a route: `refused` says which nodes do not take a resource, and why. Where the route is not
/// accepted anyway, there is nothing to add.
pub fn add_refusals(status: &mut DesiredStatus, refused: impl Fn(&str) -> BTreeMap<String, String>) {
    for parent in &mut status.parents {
        let is = |condition: &DesiredCondition, kind: &str| condition.kind == kind;
        let accepted = parent.conditions.iter().find(|condition| is(condition, "Accepted"));
        let nodes: BTreeMap<String, String> =
            parent.resources.iter().flat_map(|name| refused(name)).collect();
        if nodes.is_empty() || accepted.is_none_or(|condition| condition.status != ConditionStatus::True) {
            continue;
        }
        let message = refusals(&nodes);
        match parent.conditions.iter_mut().find(|condition| is(condition, PARTIALLY_INVALID)) {
            Some(before) => {
                let message = format!("{}; {message}", before.message);
                *before = DesiredCondition::yes(PARTIALLY_INVALID, &before.reason, message);
            }
            None => {
                let reason = FaultReason::UnsupportedValue.as_str();
                parent.conditions.push(DesiredCondition::yes(PARTIALLY_INVALID, reason, message));
            }
        }
    }
}

fn refusals(nodes: &BTreeMap<String, String>) -> String {
    let named: Vec<String> =
        nodes.iter().take(MOST_NODES).map(|(node, why)| format!("node {node} ({why})")).collect();
    let more = match nodes.len().checked_sub(MOST_NODES) {
        Some(more) if more > 0 => format!(" and {more} more"),
        _ => String::new(),
    };
    format!(
        "Fall Back: the node proxies of these nodes refuse the route as it is now; each keeps the version before, or answers \
         500 where it has none: {}{more}",
        named.join(", ")
    )
}

const PARTIALLY_INVALID: &str = "PartiallyInvalid";

/// What is known of a route at one parent.
pub struct Facts<'a> {
    /// Where it is attached, in words, or why it is not.
    attached: Result<String, Refusal>,
    carries: Carries,
    /// Rules that refuse.
    refused: &'a [Refused],
    /// How many rules there are.
    rules: usize,
    /// What stops the route as a whole at this parent.
    fault: &'a [Fault],
    unresolved: &'a [Unresolved],
}

impl<'a> Facts<'a> {
    /// Of a route that is attached somewhere, or not.
    pub fn new(attached: Result<String, Refusal>, draft: &Draft, in_force: &'a InForce) -> Self {
        Self {
            attached,
            carries: draft.key.kind.carries(),
            refused: &in_force.compiled.refused,
            rules: draft.rules.len(),
            fault: &in_force.fault,
            unresolved: &in_force.unresolved,
        }
    }

    /// Whether nothing of the route can be honoured.
    pub fn is_hopeless(&self) -> bool {
        !self.fault.is_empty() || (self.rules > 0 && self.refused.len() == self.rules)
    }

    /// The conditions, all of them.
    pub fn conditions(&self) -> Vec<DesiredCondition> {
        let mut conditions = vec![self.accepted(), self.resolved_refs()];
        if self.attached.is_ok() && !self.is_hopeless() && !self.refused.is_empty() {
            conditions.push(self.partially_invalid());
        }
        conditions
    }

    fn accepted(&self) -> DesiredCondition {
        match &self.attached {
            Err(refusal) => DesiredCondition::no("Accepted", refusal.reason, refusal.message.clone()),
            Ok(_) if self.is_hopeless() => {
                let reason =
                    reason(self.fault.iter().chain(self.refused.iter().flat_map(|rule| &rule.faults)));
                let effect = match self.carries {
                    Carries::Requests => "requests are answered with 500",
                    Carries::Tls | Carries::Bytes => "connections are reset (RouteUnsupported)",
                };
                let message = format!("no rule can be honoured, {effect}: {}", self.faults());
                DesiredCondition::no("Accepted", reason, message)
            }
            Ok(where_to) => DesiredCondition::yes("Accepted", "Accepted", where_to.clone()),
        }
    }

    fn faults(&self) -> String {
        let mut lines: Vec<String> = self.fault.iter().map(ToString::to_string).collect();
        for fault in self.refused.iter().flat_map(|rule| &rule.faults).map(ToString::to_string) {
            if !lines.contains(&fault) {
                lines.push(fault);
            }
        }
        lines.join("; ")
    }

    fn partially_invalid(&self) -> DesiredCondition {
        let rules: Vec<String> =
            self.refused.iter().map(|rule| format!("rules[{}] ({})", rule.rule, rule.why())).collect();
        let message = format!("Dropped Rule: these answer 500: {}", rules.join(", "));
        DesiredCondition::yes(PARTIALLY_INVALID, FaultReason::UnsupportedValue.as_str(), message)
    }

    fn resolved_refs(&self) -> DesiredCondition {
        let Some(first) = self.unresolved.first() else {
            return DesiredCondition::yes("ResolvedRefs", "ResolvedRefs", "every backend was found");
        };
        let line = |at: &Unresolved| format!("{}: {}", at.at, at.message);
        let lines: Vec<String> = self.unresolved.iter().map(line).collect();
        DesiredCondition::no("ResolvedRefs", first.reason.as_str(), lines.join("; "))
    }
}

fn reason<'a>(faults: impl Iterator<Item = &'a Fault>) -> &'static str {
    let reasons: Vec<FaultReason> = faults.map(|fault| fault.reason).collect();
    match reasons.iter().all(|reason| *reason == FaultReason::IncompatibleFilters) {
        true => FaultReason::IncompatibleFilters.as_str(),
        false => FaultReason::UnsupportedValue.as_str(),
    }
}
