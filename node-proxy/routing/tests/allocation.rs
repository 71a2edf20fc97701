//! Selecting allocates nothing.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of integration tests for code outside tests")]

mod common;

use proptest::collection::vec;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use common::{Incoming, Table, any_request, any_route};

#[test]
fn select_allocates_nothing() {
    let mut runner = TestRunner::deterministic();
    for hostnames in [0..1, 0..3] {
        let routes = vec(any_route(hostnames), 400).new_tree(&mut runner).unwrap().current();
        let table = Table::new(&routes);
        let mut found = 0;
        for request in vec(any_request(), 500).new_tree(&mut runner).unwrap().current() {
            let incoming = Incoming::new(&request);
            let view = incoming.view(&request);
            // The few expressions that are too large for a table of states make their scratch space when first used.
            let first = table.table.select(&view).is_some();
            let mut again = false;
            let measured = allocation_counter::measure(|| again = table.table.select(&view).is_some());
            assert_eq!(measured.count_total, 0, "{request:?}");
            assert_eq!(again, first);
            found += usize::from(first);
        }
        assert!(found > 300, "only {found} requests matched");
    }
}

#[test]
fn the_counter_counts() {
    let measured = allocation_counter::measure(|| drop(std::hint::black_box(vec![1, 2, 3])));
    assert_eq!(measured.count_total, 1);
}
