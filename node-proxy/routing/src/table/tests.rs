//! How little of a crowded table is looked at. That it is the right part is tested against the oracle.

use http::{HeaderMap, HeaderName, Method};

use super::*;
use crate::model::{
    Action, HeaderMatch, PathMatch, QueryMatch, Route, RouteKey, RouteKind, Rule, Timeouts, ValueMatch,
};

const RULES: usize = 3_000;

fn anything(path: PathMatch) -> Match {
    Match { path, method: None, headers: vec![], query: vec![] }
}

fn root() -> Match {
    anything(PathMatch::Prefix("/".into()))
}

fn header(name: &'static str, value: String) -> HeaderMatch {
    HeaderMatch { name: HeaderName::from_static(name), value: ValueMatch::Exact(value.into()) }
}

fn parameter(name: &str, value: String) -> QueryMatch {
    QueryMatch { name: name.into(), value: ValueMatch::Exact(value.into()) }
}

fn table(kind: RouteKind, matched: impl Fn(usize) -> Match) -> RouteTable {
    let rule = |number| Rule {
        name: None,
        matches: vec![matched(number)],
        filters: vec![],
        action: Action::Forward(vec![]),
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    };
    let key = RouteKey { kind, namespace: "a".into(), name: "b".into() };
    let route = Route { key, created: 0, hostnames: vec![], rules: (0..RULES).map(rule).collect() };
    RouteTable::new(vec![Arc::new(CompiledRoute::compile(route).unwrap())])
}

/// The rule found, and the work for it: entries tried and header names looked up.
fn search(table: &RouteTable, request: &RequestView<'_>) -> (Option<usize>, usize) {
    let mut search = Search::new(&table.entries, request);
    table.index.search(&mut search);
    let rule = search.found().map(|entry| table.entries[entry].rule.index());
    assert_eq!(table.select(request).map(|selected| selected.rule.index()), rule);
    (rule, search.work)
}

struct Case {
    name: &'static str,
    table: RouteTable,
    path: fn(usize) -> String,
    query: fn(usize) -> String,
    headers: fn(usize) -> Vec<(&'static str, String)>,
    grpc: bool,
}

impl Case {
    fn http(name: &'static str, matched: impl Fn(usize) -> Match) -> Case {
        let table = table(RouteKind::Http, matched);
        Case { name, table, path: |_| "/a".into(), query: |_| "p=q".into(), headers: |_| vec![], grpc: false }
    }

    fn run(&self) {
        for number in [0, 1, 700, RULES - 1] {
            let headers = (self.headers)(number);
            let headers: HeaderMap = headers
                .into_iter()
                .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
                .collect();
            let (path, query) = ((self.path)(number), (self.query)(number));
            let request = RequestView {
                method: &Method::GET,
                host: "",
                path: &path,
                query: Some(&query),
                headers: &headers,
                grpc: self.grpc,
            };
            let (rule, work) = search(&self.table, &request);
            assert_eq!(rule, Some(number), "{}", self.name);
            assert!(work <= 12, "{}: {work} steps", self.name);
        }
    }
}

#[test]
fn a_rule_among_thousands_is_found_by_trying_a_few() {
    let regex = |text: String| anything(PathMatch::Regex(text.into()));
    let cases = [
        Case {
            path: |number| format!("/a/{number}"),
            ..Case::http("exact", |number| anything(PathMatch::Exact(format!("/a/{number}").into())))
        },
        Case {
            path: |number| format!("/a/{number}/b"),
            ..Case::http("prefix", |number| anything(PathMatch::Prefix(format!("/a/{number}").into())))
        },
        Case {
            path: |number| format!("/a/{number}/b"),
            ..Case::http("regex with its own beginning", |number| regex(format!("/a/{number}/.*")))
        },
        Case {
            path: |number| format!("/a/b/{number}"),
            ..Case::http("regex with its own end", |number| regex(format!("/a/.*/{number}")))
        },
        Case {
            headers: |number| vec![("x-a", format!("{number}"))],
            ..Case::http("header", |number| Match {
                headers: vec![header("x-a", format!("{number}"))],
                ..root()
            })
        },
        Case {
            query: |number| format!("other&q={number}"),
            ..Case::http("query", |number| Match {
                query: vec![parameter("q", format!("{number}"))],
                ..root()
            })
        },
        Case {
            headers: |number| vec![("x-a", format!("{}", number / 55)), ("x-b", format!("{}", number % 55))],
            ..Case::http("two headers", |number| {
                let headers = [("x-a", number / 55), ("x-b", number % 55)];
                Match {
                    headers: headers.map(|(name, value)| header(name, value.to_string())).to_vec(),
                    ..root()
                }
            })
        },
        Case {
            headers: |_| vec![("x-a", "1".into())],
            query: |number| format!("p={}&q={}", number / 55, number % 55),
            ..Case::http("all together", |number| Match {
                method: Some(Method::GET),
                headers: vec![header("x-a", "1".into())],
                query: vec![
                    parameter("p", (number / 55).to_string()),
                    parameter("q", (number % 55).to_string()),
                ],
                ..root()
            })
        },
    ];
    cases.iter().for_each(Case::run);
}

/// Every rule asks for a header of its own name: as many names as rules.
#[test]
fn names_are_looked_up_by_those_of_the_request() {
    let name = |number: usize| HeaderName::from_bytes(format!("x-{number}").as_bytes()).unwrap();
    let table = table(RouteKind::Http, |number| {
        let value = ValueMatch::Exact("1".into());
        Match { headers: vec![HeaderMatch { name: name(number), value }], ..root() }
    });
    let headers: HeaderMap =
        [name(5), name(2_000)].map(|name| (name, "1".parse().unwrap())).into_iter().collect();
    let request = RequestView {
        method: &Method::GET,
        host: "",
        path: "/",
        query: None,
        headers: &headers,
        grpc: false,
    };
    assert_eq!(search(&table, &request), (Some(5), 2));
}

#[test]
fn grpc_calls_are_found_by_service_and_method() {
    let value = |text: String| Some(ValueMatch::Exact(text.into()));
    let matched = |number| {
        let service = value(format!("s{}", number / 10));
        anything(PathMatch::Grpc { service, method: value(format!("m{}", number % 10)) })
    };
    Case {
        name: "grpc",
        table: table(RouteKind::Grpc, matched),
        path: |number| format!("/s{}/m{}", number / 10, number % 10),
        query: |_| String::new(),
        headers: |_| vec![],
        grpc: true,
    }
    .run();
}

/// Of many that ask for the same only the first is kept, and it need not be tried, except for a query parameter, which
/// may be the second of its name.
#[test]
fn what_is_hidden_by_another_rule_is_not_kept() {
    let with_header = Match { headers: vec![header("x-a", "1".into())], ..root() };
    let with_query = Match { query: vec![parameter("q", "1".into())], ..root() };
    for (matched, query, wanted, work) in [
        (root(), "", Some(0), 0),
        (with_header, "", Some(0), 1),
        (with_query.clone(), "q=1&q=2", Some(0), 1),
        (with_query, "q=2&q=1", None, 1),
    ] {
        let table = table(RouteKind::Http, |_| matched.clone());
        let mut headers = HeaderMap::new();
        headers.insert("x-a", "1".parse().unwrap());
        let query = Some(query);
        let request =
            RequestView { method: &Method::GET, host: "", path: "/", query, headers: &headers, grpc: false };
        assert_eq!(search(&table, &request), (wanted, work), "{query:?}");
        assert_eq!(table.candidates().count(), RULES);
    }
}
