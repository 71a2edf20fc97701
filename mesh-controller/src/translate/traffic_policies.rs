//! XBackendTrafficPolicies: the retry budgets and the sessions of Services, and what their authors are told (GEP-3388, GEP-1619,
//! GEP-713).
//!
//! Of several for one Service the oldest holds, then the first by name; the others are `Conflicted`. What a policy asks for that
//! this version does not do makes all of it be refused, and the Services keep what they have without it.

use std::collections::BTreeMap;
use std::time::Duration;

use culvert_api::mesh as pb;
use culvert_objects::types::{
    BackendTrafficPolicySpec, RetryConstraint, ServicePort, ServiceSpec, SessionAffinity,
};
use culvert_objects::{Kind, Object, Objects};
use serde_json::json;

use super::routes::reader::{At, Reader};
use super::routes::session::{self, DraftSession};
use super::routes::{Sessions, duration};
use super::{Statuses, services};
use crate::CONTROLLER_NAME;
use crate::status::{DesiredAncestor, DesiredCondition, DesiredStatus};

/// The defaults of the schema.
const PERCENT: u32 = 20;
const INTERVAL: Duration = Duration::from_secs(10);
const MIN_RETRIES: u32 = 10;
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3600);

/// By namespace and name of the Service.
pub type Budgets = BTreeMap<(String, String), pb::RetryBudget>;

/// What the policies say of Services.
#[derive(Debug, Default)]
pub struct TrafficPolicies {
    pub budgets: Budgets,
    pub sessions: Sessions,
}

/// What one policy says.
struct Said {
    budget: pb::RetryBudget,
    session: Option<DraftSession>,
}

/// Everything in force.
pub fn of(objects: &Objects, statuses: &mut Statuses) -> TrafficPolicies {
    let mut in_force = TrafficPolicies::default();
    let mut holders: BTreeMap<(String, String), String> = BTreeMap::new();
    let mut policies: Vec<&Object> =
        objects.of_kind(Kind::XBackendTrafficPolicy).map(|policy| &**policy).collect();
    policies.sort_by_key(|policy| (policy.metadata.creation_timestamp, policy.key()));
    for policy in policies {
        let Ok(spec) = policy.spec::<BackendTrafficPolicySpec>() else { continue };
        let said = read(&spec);
        let mut ancestors = Vec::new();
        for target in &spec.target_refs {
            let key = (policy.namespace().to_owned(), target.name.clone());
            let is_service = target.group.is_empty() && target.kind == "Service";
            let found = objects.find(Kind::Service, &key.0, &key.1).filter(|_| is_service);
            let condition = match (&said, holders.get(&key)) {
                _ if !is_service => {
                    refused("TargetNotFound", "a target is a Service of the core group".to_owned())
                }
                _ if found.is_none() => refused("TargetNotFound", format!("there is no Service {}/{}", key.0, key.1)),
                (Err(why), _) => refused("Invalid", why.clone()),
                (Ok(_), Some(by)) => {
                    refused("Conflicted", format!("the older policy {by} holds for this Service"))
                }
                (Ok(said), None) if said.session.is_some() && found.is_some_and(|of| has_affinity(of)) => refused(
                    "Invalid",
                    "spec.sessionPersistence: the Service has sessionAffinity ClientIP, which does not go together with it: \
                     remove one of the two"
                        .to_owned(),
                ),
                (Ok(said), None) => {
                    in_force.budgets.insert(key.clone(), said.budget);
                    if let Some(session) = &said.session {
                        in_force.sessions.0.insert(key.clone(), session.clone());
                    }
                    holders.insert(key, policy.name().to_owned());
                    DesiredCondition::yes("Accepted", "Accepted", told(said, found.and_then(|of| of.spec().ok())))
                }
            };
            ancestors.push(DesiredAncestor {
                ancestor_ref: json!({"group": target.group, "kind": target.kind, "name": target.name,
                    "namespace": policy.namespace()}),
                controller_name: CONTROLLER_NAME.to_owned(),
                conditions: vec![condition],
            });
        }
        statuses.insert(policy.key(), DesiredStatus::of(policy).with_ancestors(ancestors).into());
    }
    in_force
}

fn has_affinity(service: &Object) -> bool {
    service.spec::<ServiceSpec>().is_ok_and(|spec| spec.session_affinity == SessionAffinity::ClientIp)
}

fn refused(reason: &str, message: String) -> DesiredCondition {
    DesiredCondition::no("Accepted", reason, message)
}

fn told(said: &Said, service: Option<ServiceSpec>) -> String {
    let pb::RetryBudget { percent, interval_ms, min_retries, min_interval_ms } = said.budget;
    let sessions = match said.session {
        Some(_) => {
            let unrouted = service.map(|spec| without_a_route(&spec)).unwrap_or_default();
            format!("; rules that say nothing of sessions keep them{unrouted}")
        }
        None => String::new(),
    };
    format!(
        "per node, at most {percent} % of the requests of {interval_ms} ms are sent again, and {min_retries} in \
         {min_interval_ms} ms in any case{sessions}"
    )
}

/// At which ports calls that no route decides about keep their sessions, and what they need at the others.
fn without_a_route(service: &ServiceSpec) -> String {
    if service.is_headless() {
        return "; calls without a route do not, for those of a headless Service go to its pods' addresses"
            .to_owned();
    }
    use pb::AppProtocol::{Grpc, Http1, Http2, Tcp, Tls, Unspecified};
    let ports = |wanted: &[pb::AppProtocol]| -> String {
        let declared = |port: &ServicePort| services::declared(port.app_protocol.as_deref(), &port.name);
        let of = services::tcp_ports(service).filter(|port| wanted.contains(&declared(port)));
        let ports: Vec<String> = of.map(|port| port.port.to_string()).collect();
        ports.join(", ")
    };
    let said = [
        (
            ports(&[Http1, Http2, Grpc]),
            "so do calls without a route at ports that are declared to carry HTTP",
            "",
        ),
        (
            ports(&[Unspecified]),
            "calls without a route do so over HTTP/2 only at ports of which nothing is declared",
            ": declare appProtocol, or attach a route",
        ),
        (
            ports(&[Tcp, Tls]),
            "calls without a route do not at ports that are declared to carry something else",
            "",
        ),
    ];
    let lines = said.iter().filter(|(ports, ..)| !ports.is_empty());
    lines.map(|(ports, what, remedy)| format!("; {what} ({ports}){remedy}")).collect()
}

/// # Errors
/// What this version does not do, or what is no value.
fn read(spec: &BackendTrafficPolicySpec) -> Result<Said, String> {
    let unknown =
        |at: &str, field: &String| format!("{at}.{field}: this version of Culvert does not do this field");
    if let Some(field) = spec.rest.keys().next() {
        return Err(unknown("spec", field));
    }
    let constraint = spec.retry_constraint.clone().unwrap_or_default();
    let RetryConstraint { budget, min_retry_rate, rest } = constraint;
    let (budget, rate) = (budget.unwrap_or_default(), min_retry_rate.unwrap_or_default());
    for (at, rest) in [
        ("spec.retryConstraint", &rest),
        ("spec.retryConstraint.budget", &budget.rest),
        ("spec.retryConstraint.minRetryRate", &rate.rest),
    ] {
        if let Some(field) = rest.keys().next() {
            return Err(unknown(at, field));
        }
    }
    let percent = budget.percent.unwrap_or(PERCENT);
    if percent > 100 {
        return Err(format!("spec.retryConstraint.budget.percent: {percent}, expected at most 100"));
    }
    let min_retries = rate.count.unwrap_or(MIN_RETRIES);
    if !(1..=1_000_000).contains(&min_retries) {
        return Err(format!("spec.retryConstraint.minRetryRate.count: {min_retries}, expected 1 to 1000000"));
    }
    let interval = interval("budget", budget.interval.as_deref(), INTERVAL, Duration::from_secs(1))?;
    let least = Duration::from_millis(1);
    let min_interval = self::interval("minRetryRate", rate.interval.as_deref(), MIN_INTERVAL, least)?;
    let budget =
        pb::RetryBudget { percent, interval_ms: interval, min_retries, min_interval_ms: min_interval };
    let at = At::Root("spec");
    let mut reader = Reader::default();
    let session = spec
        .session_persistence
        .as_ref()
        .map(|of| session::read(of, at.field("sessionPersistence"), &mut reader));
    match reader.faults.first() {
        Some(fault) => Err(fault.to_string()),
        None => Ok(Said { budget, session }),
    }
}

/// In milliseconds.
fn interval(of: &str, text: Option<&str>, unset: Duration, least: Duration) -> Result<u64, String> {
    let at = format!("spec.retryConstraint.{of}.interval");
    let found = text.map_or(Ok(unset), duration::parse).map_err(|message| format!("{at}: {message}"))?;
    if found < least || found > LONGEST {
        return Err(format!("{at}: {found:?}, expected {least:?} to one hour"));
    }
    Ok(u64::try_from(found.as_millis()).unwrap_or(u64::MAX))
}
