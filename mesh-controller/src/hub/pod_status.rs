//! The condition `culvert.dev/Enrolled` of a pod, and the label that shows it, from what is wanted and what its node reports.

use chrono::{DateTime, SecondsFormat};
use culvert_api::mesh::{Enrolment, EnrolmentPhase as Phase, WorkloadEnrolment};
use culvert_api::names::{ENROLLED_CONDITION, ENROLLED_LABEL};
use culvert_objects::enrolment::Wanted;
use culvert_objects::types::ConditionStatus;
use serde_json::{Value, json};

use super::enrolment::Entry;
use crate::status::{DesiredCondition, DesiredStatus};

/// Reason of the condition while peers are told, and while captured connections end.
pub const LEAVING: &str = "Leaving";

/// Adds what is known of a pod's enrolment to its status.
pub fn add_enrolment(status: &mut DesiredStatus, entry: &Entry) {
    let condition = condition(entry);
    if let Some(shown) = shown(&condition) {
        status.labels.insert(ENROLLED_LABEL.to_owned(), shown);
    }
    status.conditions.insert(0, condition);
    if let Some(report) = entry.report.as_ref().filter(|report| report.phase() != Phase::NotEnrolled) {
        status.fields.insert("culvert".to_owned(), details(report));
    }
}

/// What a column of `kubectl get pods` has room for.
fn shown(condition: &DesiredCondition) -> Option<String> {
    match (condition.status, condition.reason.as_str()) {
        (ConditionStatus::True, _) => Some("true".to_owned()),
        (_, "NotEnrolled") => None,
        (_, reason) => Some(reason.to_lowercase()),
    }
}

pub fn condition(entry: &Entry) -> DesiredCondition {
    let phase = entry.report.as_ref().map(WorkloadEnrolment::phase);
    let said = entry.report.as_ref().map(|report| report.message.as_str()).filter(|said| !said.is_empty());
    let no = |reason: &str, message: String| DesiredCondition::no(ENROLLED_CONDITION, reason, message);
    let waiting = || match said {
        Some(said) => said.to_owned(),
        None => format!("the node proxy of {} has not reported it enrolled yet", entry.node),
    };
    match (&entry.wanted, phase) {
        (Wanted::NotEnrolled(_), Some(Phase::Leaving | Phase::Enrolled)) => {
            no(LEAVING, said.unwrap_or("captured connections are being drained").to_owned())
        }
        (Wanted::NotEnrolled(_), _) if entry.decision().enrolment == Enrolment::Leaving => {
            no(LEAVING, "peers are being told".to_owned())
        }
        (Wanted::NotEnrolled(why), _) => no("NotEnrolled", why.to_string()),
        (Wanted::Enrolled, Some(Phase::Enrolled)) => {
            let message = said.unwrap_or("rules, listeners and certificate are in force");
            DesiredCondition::yes(ENROLLED_CONDITION, "Enrolled", message)
        }
        (Wanted::Enrolled, Some(Phase::Failed)) => no("Failed", waiting()),
        (Wanted::Enrolled, _) => match &entry.refused {
            Some(reason) => {
                no("Failed", format!("the node proxy of {} refused the workload: {reason}", entry.node))
            }
            None => no("Waiting", waiting()),
        },
    }
}

fn details(report: &WorkloadEnrolment) -> Value {
    let mut details = json!({
        "phase": match report.phase() {
            Phase::Unspecified => "Unknown",
            Phase::NotEnrolled => "NotEnrolled",
            Phase::Waiting => "Waiting",
            Phase::Enrolled => "Enrolled",
            Phase::Leaving => "Leaving",
            Phase::Failed => "Failed",
        },
        "uncapturedConnections": report.uncaptured_connections,
    });
    if !report.identity.is_empty() {
        details["identity"] = report.identity.as_str().into();
    }
    if let Some(expiry) =
        DateTime::from_timestamp(report.certificate_not_after, 0).filter(|at| at.timestamp() > 0)
    {
        details["certificateNotAfter"] = expiry.to_rfc3339_opts(SecondsFormat::Secs, true).into();
    }
    details
}
