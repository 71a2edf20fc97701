//! What is right by the API and not done by this version of Culvert, as the controller's own pass says: it follows by itself
//! what Culvert learns.

use culvert_controller::CONTROLLER_NAME;
use culvert_controller::status::DesiredParent;
use culvert_controller::translate::outcomes::{Fault, Outcome};
use culvert_objects::types::ConditionStatus;
use culvert_objects::{Kind, ObjectKey};

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
    let what = format!("{}; the rule's requests are answered 500 until then", fault.error.message);
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
    }
    findings
}

fn of_condition(context: &Context, key: &ObjectKey, field: String, message: &str) -> Option<Finding> {
    match message.contains("this version of Culvert") {
        true => context.finding(Code::NotDone, key, field, message, "leave it out until Culvert does it"),
        false => context.finding(Code::NoParent, key, field, message, "correct the reference"),
    }
}
