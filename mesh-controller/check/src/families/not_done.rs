//! What is right by the API and not done by this version of Culvert, as the controller's own pass says: it follows by itself
//! what Culvert learns.

use culvert_controller::CONTROLLER_NAME;
use culvert_controller::status::{DesiredCondition, DesiredParent};
use culvert_controller::translate::outcomes::{Fault, Outcome};
use culvert_objects::types::ConditionStatus;
use culvert_objects::{Kind, ObjectKey};
use culvert_routing::model::Carries;

use super::object_of;
use crate::code::Code;
use crate::context::Context;
use crate::finding::Finding;

pub fn find(context: &Context) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        context.translation.outcomes.iter().flat_map(|outcome| of_route(context, outcome)).collect();
    findings.extend(of_statuses(context));
    findings
}

fn of_route(context: &Context, outcome: &Outcome) -> Vec<Finding> {
    let in_force = &outcome.in_force;
    let of_rules = in_force.compiled.refused.iter().flat_map(|refused| &refused.faults);
    let faults = in_force.fault.iter().chain(of_rules);
    faults.filter_map(|fault| of_fault(context, outcome, fault)).collect()
}

fn of_fault(context: &Context, outcome: &Outcome, fault: &Fault) -> Option<Finding> {
    let (code, remedy) = match fault.is_not_done() {
        true => (Code::NotDone, "leave it out until Culvert does it"),
        false => (
            Code::Schema,
            "do as it says; where the rule is the API's own, the API server refuses the object as it is",
        ),
    };
    let comes_of_it = match outcome.draft.key.kind.carries() {
        Carries::Requests => "the rule's requests are answered 500",
        Carries::Tls | Carries::Bytes => "the rule's connections are reset",
    };
    let what = format!("{}; {comes_of_it} until then", fault.error.message);
    context.finding(code, &object_of(&outcome.draft.key), fault.error.field.clone(), what, remedy)
}

/// Of kinds that the pass only writes statuses for.
fn of_statuses(context: &Context) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, status) in &context.translation.statuses {
        if matches!(key.kind, Kind::HttpRoute | Kind::GrpcRoute | Kind::Gateway | Kind::GatewayClass) {
            continue;
        }
        // At Services they are told as the kinds above are; at Gateways there is only the status.
        let is_told = |parent: &DesiredParent| {
            matches!(key.kind, Kind::TlsRoute | Kind::TcpRoute) && parent.controller_name == CONTROLLER_NAME
        };
        let of_object = status.conditions.iter().map(|condition| (String::new(), condition));
        let parents = status.parents.iter().enumerate().filter(|(_, parent)| !is_told(parent));
        let of_parents = parents.flat_map(|(index, parent)| {
            parent.conditions.iter().map(move |condition| (format!("spec.parentRefs[{index}]"), condition))
        });
        for (field, condition) in of_object.chain(of_parents) {
            if condition.kind == "Accepted" && condition.status == ConditionStatus::False {
                findings.extend(of_condition(context, key, field, &condition.message));
            }
        }
        for (index, ancestor) in status.ancestors.iter().enumerate() {
            let refused = ancestor
                .conditions
                .iter()
                .filter(|of| of.kind == "Accepted" && of.status == ConditionStatus::False);
            findings.extend(refused.filter_map(|of| of_target(context, key, index, of)));
        }
    }
    findings
}

fn of_condition(context: &Context, key: &ObjectKey, field: String, message: &str) -> Option<Finding> {
    match message.contains("this version of Culvert") {
        true => context.finding(Code::NotDone, key, field, message, "leave it out until Culvert does it"),
        false => context.finding(Code::NoParent, key, field, message, "correct the reference"),
    }
}

/// What a policy is told of one of its targets.
fn of_target(context: &Context, key: &ObjectKey, index: usize, of: &DesiredCondition) -> Option<Finding> {
    let (field, what) = match of.message.split_once(": ") {
        Some((field, what)) if field.starts_with("spec.") => (field.to_owned(), what),
        _ => (format!("spec.targetRefs[{index}]"), of.message.as_str()),
    };
    let (code, remedy) = match of.reason.as_str() {
        _ if of.message.contains("this version of Culvert") => (
            Code::NotDone,
            "leave it out until Culvert does it; the Service is as without the policy until then",
        ),
        "Conflicted" => {
            (Code::PolicyRefused, "say all of it in one policy for the Service, and take the other away")
        }
        // One that is written and cannot be read is told where it is written.
        "TargetNotFound" if is_service(context, key, index) => return None,
        "TargetNotFound" => (Code::PolicyRefused, "write group: \"\", kind: Service and the name of one"),
        _ => (Code::PolicyRefused, "write what is expected; the Service is as without the policy until then"),
    };
    context.finding(code, key, field, what, remedy)
}

fn is_service(context: &Context, policy: &ObjectKey, index: usize) -> bool {
    let target = context.document(policy).map(|of| &of.value["spec"]["targetRefs"][index]);
    target.is_some_and(|of| of["group"].as_str().unwrap_or_default().is_empty() && of["kind"] == "Service")
}
