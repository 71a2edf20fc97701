//! What is said to be hidden never wins, and what is not said to be does: against the naive matcher of the specification.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside test functions are tests too")]

#[path = "../../../node-proxy/routing/tests/common/mod.rs"]
mod common;

use culvert_check::hidden::{Verdict, Witness, judge};
use culvert_routing::table::Candidate;
use culvert_routing_oracle as oracle;
use proptest::collection::vec;
use proptest::prelude::*;

use common::{Table, any_request, any_route, whole_match};

type Place = oracle::select::Winner;

fn place(table: &Table, candidate: &Candidate<'_>) -> Place {
    let rule = candidate.rule();
    oracle::select::Winner {
        route: table.routes.iter().position(|route| std::ptr::eq(route.route(), rule.route())).unwrap(),
        rule: rule.index(),
        matched: rule.matches().iter().position(|of| std::ptr::eq(of, candidate.matched())).unwrap(),
    }
}

fn request(witness: &Witness) -> oracle::Request {
    let headers = witness.headers.iter();
    oracle::Request {
        http2: witness.grpc,
        method: witness.method.to_string(),
        host: witness.host.clone(),
        path: witness.path.clone(),
        query: witness.query.clone(),
        headers: headers
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect(),
    }
}

fn has_expression(route: &oracle::Route) -> bool {
    let is = |value: &oracle::Value| matches!(value, oracle::Value::Regex(_));
    route.rules.iter().flatten().any(|of| {
        let in_path = match &of.path {
            oracle::Path::Regex(_) => true,
            oracle::Path::Grpc { service, method } => service.iter().chain(method).any(is),
            _ => false,
        };
        in_path || of.headers.iter().chain(&of.query).any(|(_, value)| is(value))
    })
}

fn holds(routes: &[oracle::Route], requests: &[oracle::Request]) -> Result<(), TestCaseError> {
    let table = Table::new(routes);
    let regex = whole_match();
    let plain = !routes.iter().any(has_expression);
    let won: Vec<Option<Place>> =
        requests.iter().map(|request| oracle::select::select(routes, request, &regex)).collect();
    // A match under several hostnames is hidden at each of its own.
    let single = routes.iter().all(|route| route.hostnames.len() < 2);
    for (candidate, verdict) in judge(&table.table) {
        let place = place(&table, &candidate);
        match verdict {
            Verdict::Wins(witness) => {
                let winner = oracle::select::select(routes, &request(&witness), &regex);
                prop_assert_eq!(winner, Some(place), "{:?}", witness);
            }
            Verdict::HiddenBy(_) | Verdict::Impossible(_) => {
                prop_assert!(!single || !won.contains(&Some(place)), "{:?} wins", place);
            }
            Verdict::Undecided => prop_assert!(!plain, "{:?} is left undecided", place),
        }
    }
    Ok(())
}

/// Without expressions, where everything is to be decided.
fn plain(mut route: oracle::Route) -> oracle::Route {
    let exact = |value: &mut oracle::Value| {
        if let oracle::Value::Regex(_) = value {
            *value = oracle::Value::Exact("1".to_owned());
        }
    };
    for of in route.rules.iter_mut().flatten() {
        match &mut of.path {
            path @ oracle::Path::Regex(_) => *path = oracle::Path::Prefix("/a".to_owned()),
            oracle::Path::Grpc { service, method } => {
                let names = service.iter_mut().chain(method);
                let names = names.filter(|name| matches!(name, oracle::Value::Regex(_)));
                names.for_each(|name| *name = oracle::Value::Exact("S".to_owned()));
            }
            _ => {}
        }
        of.headers.iter_mut().chain(&mut of.query).for_each(|(_, value)| exact(value));
    }
    route
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn at_a_service(routes in vec(any_route(0..1), 1..6), requests in vec(any_request(), 40)) {
        holds(&routes, &requests)?;
    }

    #[test]
    fn at_a_listener(routes in vec(any_route(0..3), 1..6), requests in vec(any_request(), 40)) {
        holds(&routes, &requests)?;
    }

    #[test]
    fn without_expressions_everything_is_decided(
        routes in vec(any_route(0..3).prop_map(plain), 1..8),
        requests in vec(any_request(), 40),
    ) {
        holds(&routes, &requests)?;
    }
}
