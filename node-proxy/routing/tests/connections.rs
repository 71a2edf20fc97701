//! Routes about connections: which one takes a connection, against the oracle; and what they may not say.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of integration tests for code outside tests")]

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use culvert_routing::model::{
    Action, Backend, Carries, Filter, HeaderEdit, Hostname, Match, PathMatch, Retry, Route, RouteKey,
    RouteKind, Rule, Target, Timeouts,
};
use culvert_routing::{CompileError, CompiledRoute, RequestView, RouteTable};
use culvert_routing_oracle::connections as oracle;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

fn rule(kind: RouteKind, backends: &[(&str, u32)]) -> Rule {
    let backend = |(name, weight): &(&str, u32)| Backend {
        weight: *weight,
        filters: vec![],
        target: Target::Service { namespace: "n".into(), name: (*name).into(), port: 80 },
    };
    Rule {
        name: None,
        matches: vec![Match::everything(kind)],
        filters: vec![],
        action: Action::Forward(backends.iter().map(backend).collect()),
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    }
}

fn route(kind: RouteKind, source: &oracle::Route) -> Route {
    Route {
        key: RouteKey {
            kind,
            namespace: source.namespace.as_str().into(),
            name: source.name.as_str().into(),
        },
        created: source.created,
        hostnames: source.hostnames.iter().map(|name| Hostname::parse(name).unwrap()).collect(),
        rules: vec![rule(kind, &[("a", 1)])],
    }
}

fn compiled(route: Route) -> Arc<CompiledRoute> {
    Arc::new(CompiledRoute::compile(route).unwrap())
}

fn name(labels: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    vec(select(vec!["a", "b", "ab", "c"]), labels).prop_map(|labels| labels.join("."))
}

fn any_route() -> impl Strategy<Value = oracle::Route> {
    let hostname = prop_oneof![name(1..4), name(1..4).prop_map(|name| format!("*.{name}"))];
    let of = (select(vec!["m", "n"]), select(vec!["r", "s", "t"]), 0_i64..3, vec(hostname, 0..4));
    of.prop_map(|(namespace, name, created, hostnames)| oracle::Route {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        created,
        hostnames,
    })
}

/// No two objects of a kind have one name.
fn any_routes() -> impl Strategy<Value = Vec<oracle::Route>> {
    vec(any_route(), 0..7).prop_map(|mut routes| {
        let mut seen = std::collections::HashSet::new();
        routes.retain(|route| seen.insert((route.namespace.clone(), route.name.clone())));
        routes
    })
}

fn place(routes: &[Arc<CompiledRoute>], server_name: Option<&str>) -> Option<usize> {
    let table = RouteTable::new(routes.to_vec());
    let view = RequestView::connection(server_name);
    let selected = table.select(&view)?;
    let explained = table.candidates().find(|candidate| candidate.check(&view).is_ok()).unwrap();
    assert!(Arc::ptr_eq(explained.rule(), selected.rule));
    routes.iter().position(|route| std::ptr::eq(route.route(), selected.rule.route()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    #[test]
    fn a_server_name_is_taken_as_the_specification_says(
        sources in any_routes(),
        names in vec(proptest::option::weighted(0.9, name(1..5)), 6),
    ) {
        let routes: Vec<_> = sources.iter().map(|source| compiled(route(RouteKind::Tls, source))).collect();
        for name in &names {
            let name = name.as_deref();
            prop_assert_eq!(place(&routes, name), oracle::select(&sources, name), "{:?}", name);
        }
    }

    #[test]
    fn of_tcp_routes_the_oldest_takes_everything(sources in any_routes()) {
        let bare = |source: &oracle::Route| oracle::Route { hostnames: vec![], ..source.clone() };
        let sources: Vec<_> = sources.iter().map(bare).collect();
        let routes: Vec<_> = sources.iter().map(|source| compiled(route(RouteKind::Tcp, source))).collect();
        prop_assert_eq!(place(&routes, None), oracle::select(&sources, None));
    }
}

fn source(name: &str, hostnames: &[&str]) -> oracle::Route {
    oracle::Route {
        namespace: "n".to_owned(),
        name: name.to_owned(),
        created: 0,
        hostnames: hostnames.iter().map(|name| (*name).to_owned()).collect(),
    }
}

#[test]
fn exact_names_go_before_wildcards_and_long_wildcards_before_short_ones() {
    let sources = [
        source("wide", &["*.example"]),
        source("narrow", &["*.shop.example"]),
        source("exact", &["cart.shop.example", "other.example"]),
    ];
    let routes: Vec<_> = sources.iter().map(|source| compiled(route(RouteKind::Tls, source))).collect();
    for (name, expected) in [
        (Some("cart.shop.example"), Some(2)),
        (Some("other.example"), Some(2)),
        (Some("pay.shop.example"), Some(1)),
        (Some("a.b.shop.example"), Some(1)),
        (Some("shop.example"), Some(0)),
        (Some("a.b.example"), Some(0)),
        (Some("example"), None),
        (Some(""), None),
        (None, None),
    ] {
        assert_eq!(place(&routes, name), expected, "{name:?}");
    }
}

#[test]
fn of_several_sorts_the_most_specific_counts_alone() {
    let of = |kind: &RouteKind| compiled(route(*kind, &source("r", &[])));
    use RouteKind::{Grpc, Http, Tcp, Tls};
    for (kinds, carries) in [
        (&[Grpc, Http, Tls, Tcp][..], Carries::Requests),
        (&[Tcp, Http], Carries::Requests),
        (&[Tcp, Tls], Carries::Tls),
        (&[Tcp, Tcp], Carries::Bytes),
        (&[], Carries::Requests),
    ] {
        let table = RouteTable::new(kinds.iter().map(of).collect());
        assert_eq!(table.carries(), carries, "{kinds:?}");
        let left = table.candidates().all(|candidate| candidate.rule().key().kind.carries() == carries);
        assert!(left, "{kinds:?}");
    }
}

#[test]
fn connections_are_shared_by_weight() {
    let mut route = route(RouteKind::Tcp, &source("r", &[]));
    route.rules = vec![rule(RouteKind::Tcp, &[("a", 7), ("b", 3), ("c", 0)])];
    let route = compiled(route);
    let mut counts = [0; 3];
    for _ in 0..500 {
        counts[route.rules()[0].pick_backend().unwrap().0] += 1;
    }
    assert_eq!(counts, [350, 150, 0]);
}

#[test]
fn what_connections_do_not_have_is_refused() {
    let refused = |change: fn(&mut Route)| {
        let mut route = route(RouteKind::Tcp, &source("r", &[]));
        change(&mut route);
        CompiledRoute::compile(route).unwrap_err()
    };
    let at = |error: &CompileError| error.at().to_owned();
    let hostnames = refused(|route| route.hostnames = vec![Hostname::parse("a.example").unwrap()]);
    assert_eq!(
        (at(&hostnames), matches!(hostnames, CompileError::NotOfConnections { .. })),
        ("hostnames".to_owned(), true)
    );
    let timeouts = refused(|route| route.rules[0].timeouts.request = Some(Duration::from_secs(1)));
    assert_eq!(at(&timeouts), "rules[0].timeouts");
    let retry = refused(|route| {
        let attempts = NonZeroU32::new(1).unwrap();
        route.rules[0].retry = Some(Retry { codes: vec![], attempts, backoff: Duration::ZERO });
    });
    assert_eq!(at(&retry), "rules[0].retry");
    let matches = refused(|route| route.rules[0].matches[0].path = PathMatch::Prefix("/a".into()));
    assert!(matches!(matches, CompileError::MatchOfOtherKind { kind: RouteKind::Tcp, .. }), "{matches}");
    let filters =
        refused(|route| route.rules[0].filters = vec![Filter::RequestHeaders(HeaderEdit::default())]);
    assert!(matches!(filters, CompileError::FilterOfOtherKind { kind: RouteKind::Tcp, .. }), "{filters}");
}
