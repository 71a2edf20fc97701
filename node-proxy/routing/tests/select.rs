//! The table against the oracle.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of integration tests for code outside tests")]

mod common;

use culvert_routing_oracle as oracle;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use common::{Incoming, Table, any_request, any_route, whole_match};

fn agree(routes: &[oracle::Route], requests: &[oracle::Request]) -> Result<usize, TestCaseError> {
    let table = Table::new(routes);
    let regex = whole_match();
    let mut found = 0;
    for request in requests {
        let incoming = Incoming::new(request);
        let view = incoming.view(request);
        let wanted = oracle::select::select(routes, request, &regex);
        prop_assert_eq!(table.select(&view), wanted, "{:?}", request);
        prop_assert_eq!(table.explain(&view), wanted, "explain: {:?}", request);
        found += usize::from(wanted.is_some());
    }
    Ok(found)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_service_s_table_selects_what_the_specification_says(
        routes in vec(any_route(0..1), 0..6),
        requests in vec(any_request(), 8),
    ) {
        agree(&routes, &requests)?;
    }

    #[test]
    fn a_listener_s_table_selects_what_the_specification_says(
        routes in vec(any_route(0..3), 0..10),
        requests in vec(any_request(), 8),
    ) {
        agree(&routes, &requests)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Enough of them under each path that they are found by what else they ask for.
    #[test]
    fn crowded_paths_select_what_the_specification_says(
        routes in vec(any_route(0..1), 40..80),
        requests in vec(any_request(), 4),
    ) {
        agree(&routes, &requests)?;
    }
}

#[test]
fn thousands_of_routes_select_what_the_specification_says() {
    let mut runner = TestRunner::deterministic();
    for hostnames in [0..1, 0..3] {
        let routes = vec(any_route(hostnames), 2500).new_tree(&mut runner).unwrap().current();
        let requests = vec(any_request(), 150).new_tree(&mut runner).unwrap().current();
        let found = agree(&routes, &requests).unwrap();
        assert!(found > 100, "only {found} requests matched: the generators no longer collide");
    }
}
