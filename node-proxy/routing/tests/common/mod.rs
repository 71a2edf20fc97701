//! From the oracle's plain data to the crate's, and generators that collide a lot.
#![allow(dead_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use culvert_routing::model::{
    Action, HeaderMatch, Hostname, Match, PathMatch, QueryMatch, Route, RouteKey, RouteKind, Rule, Timeouts,
    ValueMatch,
};
use culvert_routing::request::{RequestView, is_grpc};
use culvert_routing::{CompiledRoute, RouteTable};
use culvert_routing_oracle as oracle;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

pub fn value(value: &oracle::Value) -> ValueMatch {
    match value {
        oracle::Value::Exact(text) => ValueMatch::Exact(text.as_str().into()),
        oracle::Value::Regex(text) => ValueMatch::Regex(text.as_str().into()),
    }
}

fn matched(item: &oracle::Match) -> Match {
    let header = |(name, wanted): &(String, oracle::Value)| HeaderMatch {
        name: HeaderName::from_bytes(name.as_bytes()).unwrap(),
        value: value(wanted),
    };
    let parameter = |(name, wanted): &(String, oracle::Value)| QueryMatch {
        name: name.as_str().into(),
        value: value(wanted),
    };
    Match {
        path: match &item.path {
            oracle::Path::Exact(path) => PathMatch::Exact(path.as_str().into()),
            oracle::Path::Prefix(path) => PathMatch::Prefix(path.as_str().into()),
            oracle::Path::Regex(path) => PathMatch::Regex(path.as_str().into()),
            oracle::Path::Grpc { service, method } => {
                PathMatch::Grpc { service: service.as_ref().map(value), method: method.as_ref().map(value) }
            }
        },
        method: item.method.as_ref().map(|method| method.parse().unwrap()),
        headers: item.headers.iter().map(header).collect(),
        query: item.query.iter().map(parameter).collect(),
    }
}

pub fn rule(matches: Vec<Match>) -> Rule {
    Rule {
        name: None,
        matches,
        filters: vec![],
        action: Action::Forward(vec![]),
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    }
}

pub fn route(route: &oracle::Route) -> Route {
    Route {
        key: RouteKey {
            kind: match route.kind {
                oracle::Kind::Http => RouteKind::Http,
                oracle::Kind::Grpc => RouteKind::Grpc,
            },
            namespace: route.namespace.as_str().into(),
            name: route.name.as_str().into(),
        },
        created: route.created,
        hostnames: route.hostnames.iter().map(|hostname| Hostname::parse(hostname).unwrap()).collect(),
        rules: route.rules.iter().map(|matches| rule(matches.iter().map(matched).collect())).collect(),
    }
}

/// A table and the routes it was made of, in the order given.
pub struct Table {
    pub routes: Vec<Arc<CompiledRoute>>,
    pub table: RouteTable,
}

impl Table {
    pub fn new(routes: &[oracle::Route]) -> Table {
        let compile = |source| Arc::new(CompiledRoute::compile(route(source)).unwrap());
        let routes: Vec<Arc<CompiledRoute>> = routes.iter().map(compile).collect();
        Table { table: RouteTable::new(routes.clone()), routes }
    }

    pub fn select(&self, request: &RequestView<'_>) -> Option<oracle::select::Winner> {
        let selected = self.table.select(request)?;
        Some(self.place(selected.rule, selected.matched))
    }

    /// As `culvert explain` finds it: the first candidate that says that it matches.
    pub fn explain(&self, request: &RequestView<'_>) -> Option<oracle::select::Winner> {
        let candidate = self.table.candidates().find(|candidate| candidate.check(request).is_ok())?;
        Some(self.place(candidate.rule(), candidate.matched()))
    }

    fn place(&self, rule: &culvert_routing::CompiledRule, matched: &Match) -> oracle::select::Winner {
        let of_route = |route: &Arc<CompiledRoute>| std::ptr::eq(route.route(), rule.route());
        oracle::select::Winner {
            route: self.routes.iter().position(of_route).unwrap(),
            rule: rule.index(),
            matched: rule.matches().iter().position(|item| std::ptr::eq(item, matched)).unwrap(),
        }
    }
}

/// What a [`RequestView`] borrows from.
#[derive(Debug)]
pub struct Incoming {
    method: Method,
    headers: HeaderMap,
    grpc: bool,
}

impl Incoming {
    pub fn new(request: &oracle::Request) -> Incoming {
        let mut headers = HeaderMap::new();
        for (name, value) in &request.headers {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        let version = if request.http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        Incoming { method: request.method.parse().unwrap(), grpc: is_grpc(version, &headers), headers }
    }

    pub fn view<'a>(&'a self, request: &'a oracle::Request) -> RequestView<'a> {
        RequestView {
            method: &self.method,
            host: &request.host,
            path: &request.path,
            query: request.query.as_deref(),
            headers: &self.headers,
            grpc: self.grpc,
        }
    }
}

/// Whole matches by the `regex` crate, compiled once each.
pub fn whole_match() -> impl Fn(&str, &str) -> bool {
    let known: RefCell<HashMap<String, regex::Regex>> = RefCell::default();
    move |expression, text| {
        let mut known = known.borrow_mut();
        let regex = known
            .entry(expression.to_owned())
            .or_insert_with(|| regex::Regex::new(&format!(r"\A(?:{expression})\z")).unwrap());
        regex.is_match(text)
    }
}

pub const PATHS: &[&str] = &[
    "/", "/a", "/a/", "/a/b", "/a/b/", "/ab", "/b", "/a/b/c", "/A/b", "/S/M", "/S", "/p.S/M", "/S/M/", "/a/c",
];
const PATH_EXPRESSIONS: &[&str] = &[
    "/a.*",
    "/(a|b)",
    "/a/[a-z]",
    ".*",
    "/a/b|/ab",
    "/[a-z]+/b",
    "a",
    "(?i)/a/B",
    "/S/.*",
    "/a/?",
    "(/a|/b)*",
    "",
    "/a|/a/b",
    "/a/b/?c?",
    "/.*/b",
    "^/a/b$",
    "/a/(?:b)(?:/)",
    r"\b/a/b",
    r"/\w/\w\b",
];
const VALUE_EXPRESSIONS: &[&str] = &["[12]", "1.*", "", "2|1,2", ".+", "(?i)A"];
const SERVICE_EXPRESSIONS: &[&str] = &["S|s", r"p\..*", ".*", "S"];
const METHOD_EXPRESSIONS: &[&str] = &["M+", ".*", "M|N"];

fn text(choices: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    select(choices).prop_map(str::to_owned)
}

fn any_value(
    exact: &'static [&'static str],
    expressions: &'static [&'static str],
) -> impl Strategy<Value = oracle::Value> {
    prop_oneof![
        3 => text(exact).prop_map(oracle::Value::Exact),
        1 => text(expressions).prop_map(oracle::Value::Regex),
    ]
}

fn any_header() -> impl Strategy<Value = (String, oracle::Value)> {
    (text(&["x-a", "X-A", "x-b", "x-c"]), any_value(&["1", "2", "1,2", "", "a"], VALUE_EXPRESSIONS))
}

fn any_parameter() -> impl Strategy<Value = (String, oracle::Value)> {
    (text(&["q", "Q", "r%"]), any_value(&["1", "2", "1,2", "", "a b", "a+b"], VALUE_EXPRESSIONS))
}

fn any_http_match() -> impl Strategy<Value = oracle::Match> {
    let path = prop_oneof![
        2 => text(PATHS).prop_map(oracle::Path::Exact),
        3 => text(PATHS).prop_map(oracle::Path::Prefix),
        1 => text(PATH_EXPRESSIONS).prop_map(oracle::Path::Regex),
    ];
    let method = option::weighted(0.3, text(&["GET", "POST"]));
    (path, method, vec(any_header(), 0..3), vec(any_parameter(), 0..3))
        .prop_map(|(path, method, headers, query)| oracle::Match { path, method, headers, query })
}

fn any_grpc_match() -> impl Strategy<Value = oracle::Match> {
    let service = option::weighted(0.7, any_value(&["S", "s", "p.S", "longer"], SERVICE_EXPRESSIONS));
    let method = option::weighted(0.6, any_value(&["M", "m", "N"], METHOD_EXPRESSIONS));
    (service, method, vec(any_header(), 0..3)).prop_map(|(service, method, headers)| oracle::Match {
        path: oracle::Path::Grpc { service, method },
        method: None,
        headers,
        query: vec![],
    })
}

pub const HOSTNAMES: &[&str] =
    &["a.example", "*.example", "*.a.example", "b.a.example", "*.b.a.example", "x.example"];

/// With hostnames, as at a listener, or without, as at a Service.
pub fn any_route(hostnames: std::ops::Range<usize>) -> impl Strategy<Value = oracle::Route> {
    let rules = prop_oneof![
        3 => vec(vec(any_http_match(), 1..4), 1..4).prop_map(|rules| (oracle::Kind::Http, rules)),
        1 => vec(vec(any_grpc_match(), 1..4), 1..4).prop_map(|rules| (oracle::Kind::Grpc, rules)),
    ];
    (rules, text(&["a", "a-b", "b"]), text(&["z", "c", "c-d"]), 0..3i64, vec(text(HOSTNAMES), hostnames))
        .prop_map(|((kind, rules), namespace, name, created, hostnames)| oracle::Route {
            kind,
            namespace,
            name,
            created,
            hostnames,
            rules,
        })
}

pub fn any_request() -> impl Strategy<Value = oracle::Request> {
    let host = text(&[
        "a.example",
        "b.a.example",
        "example",
        "c.b.a.example",
        "",
        "other",
        "x.example",
        "y.example",
        ".example",
    ]);
    let part = text(&[
        "q=1", "q=2", "q", "Q=1", "%71=1", "q=%31", "r%25=1", "", "=1", "q=1,2", "q=a%20b", "q=a+b", "q=%",
    ]);
    let query = option::of(vec(part, 0..4).prop_map(|parts| parts.join("&")));
    let header = (text(&["x-a", "X-a", "x-b", "x-c"]), text(&["1", "2", "1,2", "", "A"]));
    let content_type = option::of(text(&[
        "application/grpc",
        "application/grpc+proto",
        "Application/GRPC;x",
        "application/grpc-web",
        "text/plain",
    ]));
    (any::<bool>(), text(&["GET", "POST", "PUT"]), host, text(PATHS), query, vec(header, 0..4), content_type)
        .prop_map(|(http2, method, host, path, query, mut headers, content_type)| {
            headers.extend(content_type.map(|value| ("content-type".to_owned(), value)));
            oracle::Request { http2, method, host, path, query, headers }
        })
}
