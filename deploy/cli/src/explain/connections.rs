//! One connection and the routes about connections that apply to it: as for requests, everything that may come of it.

use culvert_node_proxy::http::route::backend_service;
use culvert_node_proxy::outbound::routed;
use culvert_node_proxy::reason::Reason;
use culvert_node_proxy::state::RouteGroup;
use culvert_routing::RequestView;
use culvert_routing::model::{Action, Backend as Weighted};

use super::data::{Backend, End, Explanation, Outcome, Rule};
use super::describe;
use super::endpoints::{self, Chooser};
use super::explanation::whole;
use super::groups::{candidates, route_name};

/// Explains what the routes make of a connection that asks for a server name, or that is not looked into.
pub fn explain(
    explanation: &mut Explanation,
    chooser: Chooser<'_>,
    group: &RouteGroup,
    server_name: Option<&str>,
) {
    if let RouteGroup::Table(table) = group {
        explanation.candidates = candidates(table, &RequestView::connection(server_name));
    }
    let rule = match routed::select(group, server_name) {
        Ok(rule) => rule,
        Err(failure) => {
            explanation.outcomes = vec![whole(refused(failure.reason, failure.message))];
            return;
        }
    };
    explanation.rule = Some(Rule {
        route: route_name(rule.key()),
        rule: rule.label(),
        rule_index: rule.index(),
        filters: Vec::new(),
        request_timeout_ms: None,
        backend_request_timeout_ms: None,
        retry: None,
        session: None,
    });
    let backends = match rule.action() {
        Action::Forward(backends) => backends,
        Action::Refuse(why) => {
            explanation.outcomes = vec![whole(refused(Reason::RouteUnsupported, why.to_string()))];
            return;
        }
    };
    let sum: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    if sum == 0 {
        let message = "the rule has no backend of weight above 0".to_owned();
        explanation.outcomes = vec![whole(refused(Reason::NoBackend, message))];
    }
    for weighted in backends {
        let share = if sum == 0 { 0.0 } else { f64::from(weighted.weight) / sum as f64 };
        let (backend, end) = self::backend(chooser, weighted, share);
        explanation.backends.push(backend);
        if share > 0.0 {
            explanation.outcomes.push(Outcome { share, end });
        }
    }
}

fn backend(chooser: Chooser<'_>, weighted: &Weighted, share: f64) -> (Backend, End) {
    let name = describe::target(&weighted.target);
    let (endpoints, end) = match backend_service(chooser.snapshot, &weighted.target) {
        Err(failure) => (Vec::new(), refused(failure.reason, failure.message)),
        Ok((service, port)) => {
            let endpoints = endpoints::of_service(chooser, &service, port);
            let end = match endpoints.iter().any(|endpoint| endpoint.used) {
                true => End::Connected { backend: name.clone() },
                false => refused(Reason::NoEndpoint, format!("{name} has no endpoint that may be used")),
            };
            (endpoints, end)
        }
    };
    let backend = Backend {
        backend: name,
        weight: Some(weighted.weight),
        share,
        filters: Vec::new(),
        request: None,
        retry_budget: None,
        endpoints,
    };
    (backend, end)
}

fn refused(reason: Reason, message: String) -> End {
    End::Refused { reason: reason.to_string(), message }
}
