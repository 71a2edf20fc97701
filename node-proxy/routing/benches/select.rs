//! Selecting a rule among 5,000 routes of 10 rules, and among 10, 1,000 and 10,000; every selection asserts which rule it found.
//! `cargo bench -p culvert-routing`. A sample is 1,000 selections, the budget 1 us for each, so 1 ms for a sample.
#![allow(clippy::unwrap_used, reason = "what the benchmark is made of is valid")]

use std::sync::Arc;

use culvert_routing::model::{
    Action, HeaderMatch, Hostname, Match, PathMatch, Route, RouteKey, RouteKind, Rule, Timeouts, ValueMatch,
};
use culvert_routing::{CompiledRoute, RequestView, RouteTable};
use divan::Bencher;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

const ROUTES: usize = 5_000;
const RULES: usize = 10;

fn main() {
    divan::main();
}

fn anything(path: PathMatch) -> Match {
    Match { path, method: None, headers: vec![], query: vec![] }
}

fn with_header(path: &str, name: &'static str, value: ValueMatch) -> Match {
    let header = HeaderMatch { name: HeaderName::from_static(name), value };
    Match { headers: vec![header], ..anything(PathMatch::Prefix(path.into())) }
}

/// So many routes whose rules have the match that `matched` makes of route and rule.
fn routes(
    count: usize,
    kind: RouteKind,
    hostname: Option<&str>,
    matched: impl Fn(usize, usize) -> Match,
) -> Vec<Arc<CompiledRoute>> {
    let rule = |route, rule| Rule {
        name: None,
        matches: vec![matched(route, rule)],
        filters: vec![],
        action: Action::Forward(vec![]),
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    };
    let route = |index: usize| Route {
        key: RouteKey { kind, namespace: "shop".into(), name: format!("route-{index:04}").into() },
        created: 0,
        hostnames: hostname
            .iter()
            .map(|name| Hostname::parse(&name.replace('#', &index.to_string())).unwrap())
            .collect(),
        rules: (0..RULES).map(|number| rule(index, number)).collect(),
    };
    (0..count).map(|index| Arc::new(CompiledRoute::compile(route(index)).unwrap())).collect()
}

/// Headers as a browser or a service client sends them.
fn headers(more: &[(&'static str, &str)]) -> HeaderMap {
    let usual = [
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"),
        ("accept", "application/json"),
        ("accept-encoding", "gzip, br"),
        ("accept-language", "en"),
        ("authorization", "Bearer 0123456789abcdef0123456789abcdef"),
        ("x-request-id", "f2a1b9a4-6f0f-4f04-8a21-6a7f3ad0d0d7"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("cookie", "session=0123456789"),
    ];
    let lines = usual.iter().chain(more);
    lines
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect()
}

/// A request and the route and rule that must be found for it.
struct Asked {
    host: String,
    path: String,
    headers: HeaderMap,
    wanted: Option<(String, usize)>,
}

/// Requests for rules all over the table, so that the processor's caches hold few of them.
fn asked(host: impl Fn(usize) -> String, path: impl Fn(usize, usize) -> String) -> Vec<Asked> {
    asked_among(ROUTES, host, path)
}

fn asked_among(
    routes: usize,
    host: impl Fn(usize) -> String,
    path: impl Fn(usize, usize) -> String,
) -> Vec<Asked> {
    let request = |number: usize| {
        let (route, rule) = (number * 7919 % routes, number % RULES);
        let wanted = Some((format!("route-{route:04}"), rule));
        Asked { host: host(route), path: path(route, rule), headers: headers(&[]), wanted }
    };
    (0..1000).map(request).collect()
}

fn at_shop(path: impl Fn(usize, usize) -> String) -> Vec<Asked> {
    asked(|_| "shop".to_owned(), path)
}

/// A sample is a thousand selections, one for each request.
fn run(bencher: Bencher<'_, '_>, table: &RouteTable, asked: &[Asked]) {
    let views: Vec<RequestView<'_>> = asked.iter().map(view).collect();
    bencher.counter(divan::counter::ItemsCount::new(asked.len())).bench_local(|| {
        for (view, asked) in views.iter().zip(asked) {
            let selected = table.select(divan::black_box(view));
            let found = selected.map(|selected| (&*selected.rule.key().name, selected.rule.index()));
            assert_eq!(found, asked.wanted.as_ref().map(|(route, rule)| (route.as_str(), *rule)));
        }
    });
}

fn view(asked: &Asked) -> RequestView<'_> {
    RequestView {
        method: &Method::GET,
        host: &asked.host,
        path: &asked.path,
        query: Some("page=2&sort=name"),
        headers: &asked.headers,
        grpc: asked.headers.get("content-type").is_some_and(|value| value == "application/grpc"),
    }
}

fn http(matched: impl Fn(usize, usize) -> Match) -> RouteTable {
    RouteTable::new(routes(ROUTES, RouteKind::Http, None, matched))
}

fn item(route: usize, rule: usize) -> String {
    format!("/api/v1/service-{route}/item-{rule}")
}

/// The prefixes of so many routes.
#[divan::bench(args = [10, 1_000, 10_000])]
fn select_among(bencher: Bencher<'_, '_>, count: usize) {
    let matched = |route, rule| anything(PathMatch::Prefix(item(route, rule).into()));
    let table = RouteTable::new(routes(count, RouteKind::Http, None, matched));
    let path = |route, rule| item(route, rule) + "/with/more/below/it";
    run(bencher, &table, &asked_among(count, |_| "shop".to_owned(), path));
}

#[divan::bench]
fn exact_path(bencher: Bencher<'_, '_>) {
    let table = http(|route, rule| anything(PathMatch::Exact(item(route, rule).into())));
    run(bencher, &table, &at_shop(item));
}

#[divan::bench]
fn prefix(bencher: Bencher<'_, '_>) {
    let table = http(|route, rule| anything(PathMatch::Prefix(item(route, rule).into())));
    run(bencher, &table, &at_shop(|route, rule| item(route, rule) + "/with/more/below/it"));
}

#[divan::bench]
fn no_rule(bencher: Bencher<'_, '_>) {
    let table = http(|route, rule| anything(PathMatch::Prefix(item(route, rule).into())));
    let mut asked = at_shop(|route, rule| item(route, rule) + "0/with/more/below/it");
    asked.iter_mut().for_each(|asked| asked.wanted = None);
    run(bencher, &table, &asked);
}

#[divan::bench]
fn regex_with_its_own_beginning(bencher: Bencher<'_, '_>) {
    let expression = |route, rule| item(route, rule) + "/[0-9]+/(detail|summary)";
    let table = http(|route, rule| anything(PathMatch::Regex(expression(route, rule).into())));
    run(bencher, &table, &at_shop(|route, rule| item(route, rule) + "/123/summary"));
}

#[divan::bench]
fn regex_with_its_own_end(bencher: Bencher<'_, '_>) {
    let table = http(|route, rule| {
        anything(PathMatch::Regex(format!("/users/[0-9]+/service-{route}-{rule}").into()))
    });
    run(bencher, &table, &at_shop(|route, rule| format!("/users/123/service-{route}-{rule}")));
}

fn by_tenant() -> RouteTable {
    http(|route, rule| {
        with_header("/", "x-tenant", ValueMatch::Exact(format!("tenant-{route}-{rule}").into()))
    })
}

#[divan::bench]
fn one_path_by_header(bencher: Bencher<'_, '_>) {
    let mut asked = at_shop(|_, _| "/any/path".to_owned());
    for asked in &mut asked {
        let (route, rule) = asked.wanted.as_ref().unwrap();
        let route: usize = route.trim_start_matches("route-").parse().unwrap();
        asked.headers = headers(&[("x-tenant", &format!("tenant-{route}-{rule}"))]);
    }
    run(bencher, &by_tenant(), &asked);
}

#[divan::bench]
fn one_path_by_header_no_rule(bencher: Bencher<'_, '_>) {
    let mut asked = at_shop(|_, _| "/any/path".to_owned());
    for asked in &mut asked {
        asked.headers = headers(&[("x-tenant", "tenant-of-nobody")]);
        asked.wanted = None;
    }
    run(bencher, &by_tenant(), &asked);
}

/// Neither header alone says much: 224 values of each, every pair once.
#[divan::bench]
fn one_path_by_two_headers(bencher: Bencher<'_, '_>) {
    let row_and_column = |number: usize| (format!("{}", number / 224), format!("{}", number % 224));
    let table = http(|route, rule| {
        let (row, column) = row_and_column(route * RULES + rule);
        let mut matched = with_header("/", "x-row", ValueMatch::Exact(row.into()));
        let column = ValueMatch::Exact(column.into());
        matched.headers.push(HeaderMatch { name: HeaderName::from_static("x-column"), value: column });
        matched
    });
    let mut asked = at_shop(|_, _| "/any/path".to_owned());
    for asked in &mut asked {
        let (route, rule) = asked.wanted.as_ref().unwrap();
        let route: usize = route.trim_start_matches("route-").parse().unwrap();
        let (row, column) = row_and_column(route * RULES + rule);
        asked.headers = headers(&[("x-row", &row), ("x-column", &column)]);
    }
    run(bencher, &table, &asked);
}

#[divan::bench]
fn hostname(bencher: Bencher<'_, '_>) {
    let matched = |_, rule| anything(PathMatch::Prefix(format!("/item-{rule}").into()));
    let table = RouteTable::new(routes(ROUTES, RouteKind::Http, Some("shop-#.example.com"), matched));
    let host = |route| format!("shop-{route}.example.com");
    run(bencher, &table, &asked(host, |_, rule| format!("/item-{rule}/a")));
}

#[divan::bench]
fn wildcard_hostname(bencher: Bencher<'_, '_>) {
    let matched = |_, rule| anything(PathMatch::Prefix(format!("/item-{rule}").into()));
    let table = RouteTable::new(routes(ROUTES, RouteKind::Http, Some("*.shop-#.example.com"), matched));
    let host = |route| format!("a.b.shop-{route}.example.com");
    run(bencher, &table, &asked(host, |_, rule| format!("/item-{rule}/a")));
}

#[divan::bench]
fn grpc(bencher: Bencher<'_, '_>) {
    let value = |text: String| Some(ValueMatch::Exact(text.into()));
    let matched = |route, rule| {
        let service = value(format!("shop.v1.Service{route}"));
        anything(PathMatch::Grpc { service, method: value(format!("Method{rule}")) })
    };
    let table = RouteTable::new(routes(ROUTES, RouteKind::Grpc, None, matched));
    let mut asked = at_shop(|route, rule| format!("/shop.v1.Service{route}/Method{rule}"));
    asked.iter_mut().for_each(|asked| asked.headers = headers(&[("content-type", "application/grpc")]));
    run(bencher, &table, &asked);
}

/// What an edit of one route costs: the table is made anew of compiled routes.
#[divan::bench(sample_count = 10)]
fn new_table(bencher: Bencher<'_, '_>) {
    let routes = routes(ROUTES, RouteKind::Http, None, |route, rule| {
        anything(PathMatch::Prefix(item(route, rule).into()))
    });
    bencher.with_inputs(|| routes.clone()).bench_local_values(RouteTable::new);
}
