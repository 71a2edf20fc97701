//! Which routes decide: the group for a client's namespace, the routes and rules in it.

use culvert_node_proxy::state::{RouteGroup, ServiceRoutes};
use culvert_routing::model::{Carries, RouteKey};
use culvert_routing::{RequestView, RouteTable};

use super::data::{Candidate, Group, GroupKind, Verdict};
use super::describe;

/// Which group decides for clients of the namespace.
pub fn group(routes: &ServiceRoutes, namespace: &str) -> Option<Group> {
    let of = |group: &RouteGroup| names_in(group);
    let producers = routes.producers.as_ref().map(of).unwrap_or_default();
    match routes.consumers.iter().find(|(consumer, _)| **consumer == *namespace) {
        Some((_, group)) => Some(Group {
            kind: GroupKind::Consumer,
            namespace: Some(namespace.to_owned()),
            routes: of(group),
            replaced: producers,
        }),
        None if routes.producers.is_some() => Some(Group {
            kind: GroupKind::Producer,
            namespace: None,
            routes: producers,
            replaced: Vec::new(),
        }),
        None => None,
    }
}

/// Of the group that decides for clients of the namespace.
pub fn names_of(routes: &ServiceRoutes, namespace: &str) -> Vec<String> {
    routes.for_clients_in(namespace).map(names_in).unwrap_or_default()
}

/// The routes of a group, each once, in order of precedence.
pub fn names_in(group: &RouteGroup) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    if let RouteGroup::Table(table) = group {
        for candidate in table.candidates() {
            let name = route_name(candidate.rule().key());
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

/// Every rule of the table in order of precedence: the first that matches wins, and why the others do not.
pub fn candidates(table: &RouteTable, view: &RequestView<'_>) -> Vec<Candidate> {
    let mut winner = None;
    let mut all = Vec::new();
    for candidate in table.candidates() {
        let (verdict, why) = match (candidate.check(view), &winner) {
            (Err(mismatch), _) => (Verdict::Mismatch, Some(mismatch.to_string())),
            (Ok(()), None) => {
                winner = Some(candidate);
                (Verdict::Wins, None)
            }
            (Ok(()), Some(winner)) => {
                let criterion = candidate.outranked_by(winner);
                (Verdict::Outranked, criterion.map(|criterion| format!("the winner {criterion}")))
            }
        };
        let rule = candidate.rule();
        all.push(Candidate {
            route: route_name(rule.key()),
            rule: rule.label(),
            rule_index: rule.index(),
            matches: match rule.key().kind.carries() {
                Carries::Requests => describe::matching(candidate.hostname(), candidate.matched()),
                Carries::Tls => describe::server_name(candidate.hostname()),
                Carries::Bytes => "any connection".to_owned(),
            },
            verdict,
            why,
        });
    }
    all
}

/// `HTTPRoute namespace/name`
pub fn route_name(key: &RouteKey) -> String {
    format!("{} {}/{}", key.kind, key.namespace, key.name)
}
