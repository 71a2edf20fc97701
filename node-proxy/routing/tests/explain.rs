//! What is said about rules that lost.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of integration tests for code outside tests")]

mod common;

use std::sync::Arc;

use culvert_routing::model::{Match, PathMatch, Route, RouteKey, RouteKind};
use culvert_routing::precedence::Criterion;
use culvert_routing::{CompiledRoute, Mismatch, RouteTable};
use culvert_routing_oracle as oracle;
use culvert_routing_oracle::{Kind, Path, Value};
use http::{HeaderMap, HeaderValue, Method};

use common::{Incoming, Table};

fn exact(text: &str) -> Value {
    Value::Exact(text.into())
}

fn regex(text: &str) -> Value {
    Value::Regex(text.into())
}

fn path(path: Path) -> oracle::Match {
    oracle::Match { path, method: None, headers: vec![], query: vec![] }
}

fn root() -> oracle::Match {
    path(Path::Prefix("/".into()))
}

fn grpc(service: Option<Value>, method: Option<Value>) -> oracle::Match {
    path(Path::Grpc { service, method })
}

fn route(item: oracle::Match) -> oracle::Route {
    let kind = if matches!(item.path, Path::Grpc { .. }) { Kind::Grpc } else { Kind::Http };
    let (namespace, name) = ("shop".to_owned(), "cart".to_owned());
    oracle::Route { kind, namespace, name, created: 1, hostnames: vec![], rules: vec![vec![item]] }
}

fn request() -> oracle::Request {
    let headers = [("x-a", "1"), ("x-a", "2"), ("content-type", "application/grpc+proto")];
    oracle::Request {
        http2: true,
        method: "POST".into(),
        host: "a.example".into(),
        path: "/S/M".into(),
        query: Some("q=a%20b".into()),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
    }
}

#[track_caller]
fn said(route: oracle::Route, request: &oracle::Request) -> String {
    let table = Table::new(&[route]);
    let incoming = Incoming::new(request);
    assert!(table.select(&incoming.view(request)).is_none());
    let mismatch = table.table.candidates().next().unwrap().check(&incoming.view(request)).unwrap_err();
    mismatch.to_string()
}

#[test]
fn the_first_reason_is_named_with_what_was_wanted_and_what_came() {
    let header = |name: &str, value| oracle::Match { headers: vec![(name.into(), value)], ..root() };
    let query = |name: &str, value| oracle::Match { query: vec![(name.into(), value)], ..root() };
    let table = [
        (path(Path::Exact("/S".into())), r#"path "/S/M" is not "/S""#),
        (path(Path::Prefix("/S/Mm".into())), r#"path "/S/M" does not start with the elements of "/S/Mm""#),
        (
            path(Path::Regex("/S".into())),
            r#"path "/S/M" does not match the regular expression "/S" as a whole"#,
        ),
        (oracle::Match { method: Some("GET".into()), ..root() }, "method POST is not GET"),
        (header("x-b", exact("1")), "no header x-b"),
        (header("X-A", exact("1")), r#"header x-a "1,2" is not "1""#),
        (
            header("x-a", regex("1|2")),
            r#"header x-a "1,2" does not match the regular expression "1|2" as a whole"#,
        ),
        (query("Q", exact("1")), r#"no query parameter "Q""#),
        (query("q", exact("a+b")), r#"query parameter "q" "a b" is not "a+b""#),
        (grpc(Some(exact("T")), Some(exact("N"))), r#"gRPC service "S" is not "T""#),
        (
            grpc(Some(exact("S")), Some(regex("N.*"))),
            r#"gRPC method "M" does not match the regular expression "N.*" as a whole"#,
        ),
    ];
    for (item, wanted) in table {
        assert_eq!(said(route(item), &request()), wanted);
    }
    let elsewhere = oracle::Route { hostnames: vec!["*.b.example".into()], ..route(root()) };
    assert_eq!(said(elsewhere, &request()), r#"host "a.example" does not match *.b.example"#);
    let http1 = oracle::Request { http2: false, ..request() };
    assert!(said(route(grpc(None, None)), &http1).starts_with("not a gRPC call"));
    let odd = oracle::Request { path: "/S/M/x".into(), ..request() };
    assert_eq!(
        said(route(grpc(Some(exact("S")), None)), &odd),
        r#"path "/S/M/x" is not /service/method of a gRPC call"#
    );
    // In the order in which they are looked at.
    let all = oracle::Match {
        path: Path::Exact("/x".into()),
        method: Some("GET".into()),
        headers: vec![("x-b".into(), exact("1"))],
        query: vec![("Q".into(), exact("1"))],
    };
    let after = [
        (oracle::Match { path: root().path, ..all.clone() }, "method"),
        (oracle::Match { path: root().path, method: None, ..all.clone() }, "no header"),
        (all, "path"),
    ];
    for (item, starts) in after {
        assert!(said(route(item), &request()).starts_with(starts));
    }
}

#[test]
fn an_ignored_entry_does_not_shift_the_one_that_is_named() {
    let headers = [("x-a", regex(".*")), ("X-A", exact("ignored")), ("x-b", exact("1"))];
    let headers = headers.map(|(name, value)| (name.to_owned(), value)).to_vec();
    assert_eq!(said(route(oracle::Match { headers, ..root() }), &request()), "no header x-b");
    let query = [("q", regex(".*")), ("q", exact("ignored")), ("p", exact("1"))];
    let query = query.map(|(name, value)| (name.to_owned(), value)).to_vec();
    assert_eq!(said(route(oracle::Match { query, ..root() }), &request()), r#"no query parameter "p""#);
}

#[test]
fn what_decided_between_two_that_match_is_named() {
    let headers = |names: &[&str]| oracle::Match {
        headers: names.iter().map(|name| ((*name).to_owned(), regex(".*"))).collect(),
        ..root()
    };
    let query = oracle::Match { query: vec![("q".into(), regex(".*"))], ..root() };
    let method = oracle::Match { method: Some("POST".into()), ..root() };
    let any = route(root());
    let two_rules = oracle::Route { rules: vec![vec![root()], vec![root()]], ..any.clone() };
    let two_matches = oracle::Route { rules: vec![vec![root(), root()]], ..any.clone() };
    let at = |hostname: &str| oracle::Route { hostnames: vec![hostname.into()], ..any.clone() };
    let table = [
        (vec![at("a.example"), at("*.example")], Criterion::Hostname, "hostname"),
        (vec![at("*.example"), any.clone()], Criterion::Hostname, "hostname"),
        (vec![route(grpc(None, None)), any.clone()], Criterion::Kind, "GRPCRoute"),
        (vec![route(path(Path::Exact("/S/M".into()))), any.clone()], Criterion::Path, "path"),
        (vec![route(path(Path::Prefix("/S".into()))), any.clone()], Criterion::Path, "path"),
        (
            vec![route(grpc(Some(exact("S")), None)), route(grpc(None, Some(exact("M"))))],
            Criterion::GrpcService,
            "service",
        ),
        (
            vec![route(grpc(None, Some(exact("M")))), route(grpc(None, Some(regex("M"))))],
            Criterion::GrpcMethod,
            "gRPC method",
        ),
        (vec![route(method), any.clone()], Criterion::Method, "method"),
        (
            vec![route(headers(&["x-a", "content-type"])), route(headers(&["x-a"]))],
            Criterion::Headers,
            "headers",
        ),
        (vec![route(query), any.clone()], Criterion::Query, "query"),
        (vec![any.clone(), oracle::Route { created: 2, ..any.clone() }], Criterion::Age, "older"),
        (
            vec![any.clone(), oracle::Route { name: "d".into(), ..any.clone() }],
            Criterion::Name,
            "namespace/name",
        ),
        (vec![two_rules], Criterion::Rule, "in the route"),
        (vec![two_matches], Criterion::Match, "in the rule"),
    ];
    let request = request();
    let incoming = Incoming::new(&request);
    for (mut routes, wanted, says) in table {
        routes.reverse();
        let table = Table::new(&routes);
        let candidates: Vec<_> = table.table.candidates().collect();
        assert_eq!(candidates.len(), 2);
        assert!(candidates.iter().all(|candidate| candidate.check(&incoming.view(&request)).is_ok()));
        assert_eq!(candidates[1].outranked_by(&candidates[0]), Some(wanted));
        assert_eq!(candidates[0].outranked_by(&candidates[0]), None);
        assert!(wanted.to_string().contains(says), "{wanted}");
    }
}

/// Bytes that are no text, which the oracle's strings cannot hold.
#[test]
fn values_that_are_not_utf_8_are_compared_as_bytes() {
    let item = |value: culvert_routing::model::ValueMatch| Match {
        path: PathMatch::Prefix("/".into()),
        method: None,
        headers: vec![culvert_routing::model::HeaderMatch {
            name: http::HeaderName::from_static("x-a"),
            value,
        }],
        query: vec![],
    };
    let table = |value| {
        let key = RouteKey { kind: RouteKind::Http, namespace: "a".into(), name: "b".into() };
        let route =
            Route { key, created: 0, hostnames: vec![], rules: vec![common::rule(vec![item(value)])] };
        RouteTable::new(vec![Arc::new(CompiledRoute::compile(route).unwrap())])
    };
    let mut headers = HeaderMap::new();
    headers.insert("x-a", HeaderValue::from_bytes(b"a\xff").unwrap());
    let view = culvert_routing::RequestView {
        method: &Method::GET,
        host: "",
        path: "/",
        query: None,
        headers: &headers,
        grpc: false,
    };
    let by_bytes = table(culvert_routing::model::ValueMatch::Regex(r"a(?-u:\xff)".into()));
    assert!(by_bytes.select(&view).is_some());
    let by_characters = table(culvert_routing::model::ValueMatch::Regex("a.".into()));
    assert!(by_characters.select(&view).is_none());
    let table = table(culvert_routing::model::ValueMatch::Exact("a\u{fffd}".into()));
    let mismatch = table.candidates().next().unwrap().check(&view).unwrap_err();
    assert!(matches!(mismatch, Mismatch::HeaderValue { actual, .. } if actual == "a\u{fffd}"));
}

/// Longer than what is put together on the stack.
#[test]
fn long_values_match_too() {
    let header = ("x-a".to_owned(), regex("a+,b+"));
    let parameter = ("q".to_owned(), regex("a+ "));
    let item = oracle::Match { headers: vec![header], query: vec![parameter], ..root() };
    let routes = [route(item)];
    for length in [1, 2000, 2047, 2048, 2049, 4094, 4095, 4096, 9000] {
        let request = oracle::Request {
            headers: vec![("x-a".into(), "a".repeat(length)), ("x-a".into(), "b".repeat(length))],
            query: Some(format!("q={}%20", "a".repeat(length))),
            ..request()
        };
        let incoming = Incoming::new(&request);
        assert!(Table::new(&routes).select(&incoming.view(&request)).is_some(), "{length}");
    }
}
