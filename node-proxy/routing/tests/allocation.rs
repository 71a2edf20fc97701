//! Selecting allocates nothing.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of integration tests for code outside tests")]

mod common;

use culvert_routing_oracle as oracle;
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

/// Lines of one header are put together on the stack, up to the longest value that a match can have.
#[test]
fn up_to_4096_bytes_in_several_lines_are_put_together_without_allocation() {
    let header = ("x-a".to_owned(), oracle::Value::Regex("[ab]*,[ab]*".to_owned()));
    let path = oracle::Path::Prefix("/".to_owned());
    let matched = oracle::Match { path, method: None, headers: vec![header], query: vec![] };
    let table = Table::new(&[oracle::Route {
        kind: oracle::Kind::Http,
        namespace: "a".to_owned(),
        name: "b".to_owned(),
        created: 0,
        hostnames: vec![],
        rules: vec![vec![matched]],
    }]);
    for (length, allocates) in [(4096, false), (4097, true)] {
        let lines = ["a".repeat(2000), "b".repeat(length - 2001)];
        let request = oracle::Request {
            http2: false,
            method: "GET".to_owned(),
            host: String::new(),
            path: "/".to_owned(),
            query: None,
            headers: lines.map(|line| ("x-a".to_owned(), line)).to_vec(),
        };
        let incoming = Incoming::new(&request);
        let view = incoming.view(&request);
        let measured = allocation_counter::measure(|| assert!(table.table.select(&view).is_some()));
        assert_eq!(measured.count_total > 0, allocates, "{length} bytes");
    }
}

#[test]
fn the_counter_counts() {
    let measured = allocation_counter::measure(|| drop(std::hint::black_box(vec![1, 2, 3])));
    assert_eq!(measured.count_total, 1);
}
