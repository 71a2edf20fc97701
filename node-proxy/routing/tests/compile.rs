//! What is refused, where it is, and what to do about it.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of integration tests for code outside tests")]

mod common;

use std::time::Duration;

use culvert_routing::CompileError;
use culvert_routing::CompiledRoute;
use culvert_routing::model::{
    Action, Backend, Filter, HeaderEdit, HeaderMatch, Hostname, Match, Mirror, PathEdit, PathMatch,
    QueryMatch, Redirect, RedirectStatus, Rewrite, Route, RouteKey, RouteKind, Rule, Share, Target, Timeouts,
    ValueMatch,
};
use http::{HeaderName, HeaderValue, Method};

fn anything(kind: RouteKind) -> Match {
    let path = match kind {
        RouteKind::Http => PathMatch::Prefix("/foo".into()),
        kind => return Match::everything(kind),
    };
    Match { path, method: None, headers: vec![], query: vec![] }
}

/// Two rules; the cases break the second.
fn route(kind: RouteKind) -> Route {
    let key = RouteKey { kind, namespace: "shop".into(), name: "cart".into() };
    let rules = vec![common::rule(vec![anything(kind)]), common::rule(vec![anything(kind)])];
    Route { key, created: 0, hostnames: vec![], rules }
}

fn backend(filters: Vec<Filter>) -> Backend {
    Backend { weight: 1, filters, target: Target::Invalid("for the test".into()) }
}

fn redirect(path: Option<PathEdit>) -> Filter {
    Filter::Redirect(Redirect {
        scheme: None,
        hostname: None,
        path,
        port: None,
        status: RedirectStatus::Found,
    })
}

fn rewrite(hostname: Option<&str>, path: Option<PathEdit>) -> Filter {
    Filter::Rewrite(Rewrite { hostname: hostname.map(Into::into), path })
}

fn full(path: &str) -> Option<PathEdit> {
    Some(PathEdit::ReplaceFull(path.into()))
}

fn prefix(path: &str) -> Option<PathEdit> {
    Some(PathEdit::ReplacePrefix(path.into()))
}

fn header(name: &'static str) -> (HeaderName, HeaderValue) {
    (HeaderName::from_static(name), HeaderValue::from_static("1"))
}

fn header_match(value: ValueMatch) -> HeaderMatch {
    HeaderMatch { name: HeaderName::from_static("x-a"), value }
}

/// Compiles a route with a second rule changed by `change`, and checks what is said about it.
#[track_caller]
fn refused(kind: RouteKind, at: &str, says: &str, change: impl FnOnce(&mut Rule)) {
    let mut route = route(kind);
    change(&mut route.rules[1]);
    let error = CompiledRoute::compile(route).unwrap_err();
    expect(&error, at, says);
}

#[track_caller]
fn expect(error: &CompileError, at: &str, says: &str) {
    assert_eq!(error.at(), at, "{error}");
    let message = error.to_string();
    assert!(message.starts_with(&format!("{at}: ")), "{message}");
    assert!(message.contains(says), "{message}");
}

#[track_caller]
fn path_refused(path: &str, says: &str) {
    for wrap in [PathMatch::Exact, PathMatch::Prefix] {
        refused(RouteKind::Http, "rules[1].matches[0].path.value", says, |rule| {
            rule.matches[0].path = wrap(path.into());
        });
    }
}

#[test]
fn paths() {
    path_refused("", "does not start with '/'");
    path_refused("foo", "does not start with '/'");
    path_refused(&format!("/{}", "a".repeat(1024)), "longer than 1024");
    path_refused("/a b", "' '");
    path_refused("/ü", "'ü'");
    path_refused("/a?b", "neither query nor fragment");
    path_refused("/a#b", "neither query nor fragment");
    path_refused("/a%2", "%25");
    path_refused("/a%zz", "%25");
    path_refused("/a%00", "%00");
    path_refused("/a%2fb", "regular expression");
    path_refused("/a%2Fb", "regular expression");
    path_refused("/a//b", "write '/'");
    path_refused("//", "write '/'");
    path_refused("/a/./b", "resolved");
    path_refused("/a/../b", "resolved");
    path_refused("/a/..", "resolved");
    path_refused("/a/%2e", "resolved");
}

#[test]
fn paths_that_requests_can_have_are_accepted_in_their_normal_form() {
    let mut route = route(RouteKind::Http);
    let longest = format!("/{}", "a".repeat(1023));
    let paths = [
        ("/%61/%c3%bc", "/a/%C3%BC"),
        ("/a/", "/a/"),
        ("/...", "/..."),
        (longest.as_str(), longest.as_str()),
    ];
    route.rules[1].matches = paths
        .iter()
        .flat_map(|(path, _)| [PathMatch::Exact((*path).into()), PathMatch::Prefix((*path).into())])
        .map(|path| Match { path, ..anything(RouteKind::Http) })
        .collect();
    let compiled = CompiledRoute::compile(route).unwrap();
    for (matches, (_, normal)) in compiled.rules()[1].matches().chunks(2).zip(paths) {
        assert_eq!(matches[0].path, PathMatch::Exact(normal.into()));
        assert_eq!(matches[1].path, PathMatch::Prefix(normal.into()));
    }
}

#[test]
fn regular_expressions() {
    let bad = |text: &str| ValueMatch::Regex(text.into());
    let at = "rules[1].matches[0].path.value";
    for expression in ["(", "a)(b", ")|(", "[z-a]", "(?=a)", r"\1", "*"] {
        refused(RouteKind::Http, at, "not a regular expression", |rule| {
            rule.matches[0].path = PathMatch::Regex(expression.into());
        });
    }
    for expression in ["((a{99}){99}){99}", r"(\pL{500}){100}"] {
        refused(RouteKind::Http, at, "larger than 1 MiB", |rule| {
            rule.matches[0].path = PathMatch::Regex(expression.into());
        });
    }
    refused(RouteKind::Http, at, "not a regular expression", |rule| {
        rule.matches[0].path = PathMatch::Regex(format!("{}a{}", "(".repeat(2000), ")".repeat(2000)).into());
    });
    refused(RouteKind::Http, at, "4096 at most", |rule| {
        rule.matches[0].path = PathMatch::Regex("a".repeat(4097).into());
    });
    refused(RouteKind::Http, "rules[1].matches[0].headers[1].value", "not a regular expression", |rule| {
        rule.matches[0].headers = vec![header_match(bad("a")), header_match(bad("("))];
    });
    refused(
        RouteKind::Http,
        "rules[1].matches[0].queryParams[0].value",
        "not a regular expression",
        |rule| {
            rule.matches[0].query = vec![QueryMatch { name: "q".into(), value: bad("(") }];
        },
    );
    refused(RouteKind::Grpc, "rules[1].matches[0].method.service", "not a regular expression", |rule| {
        rule.matches[0].path = PathMatch::Grpc { service: Some(bad("(")), method: None };
    });
    refused(RouteKind::Grpc, "rules[1].matches[0].method.method", "not a regular expression", |rule| {
        rule.matches[0].path = PathMatch::Grpc { service: None, method: Some(bad("(")) };
    });
}

#[test]
fn matches() {
    let exact = |text: String| ValueMatch::Exact(text.into());
    refused(RouteKind::Http, "rules[1].matches", "path prefix \"/\"", |rule| rule.matches.clear());
    refused(RouteKind::Http, "rules[1].matches[1]", "GRPCRoute", |rule| {
        rule.matches.push(anything(RouteKind::Grpc));
    });
    refused(RouteKind::Grpc, "rules[1].matches[0]", "HTTPRoute", |rule| {
        rule.matches = vec![anything(RouteKind::Http)]
    });
    refused(RouteKind::Grpc, "rules[1].matches[0]", "HTTPRoute", |rule| {
        rule.matches[0].method = Some(Method::GET)
    });
    let q = QueryMatch { name: "q".into(), value: exact("1".into()) };
    refused(RouteKind::Grpc, "rules[1].matches[0]", "HTTPRoute", |rule| {
        rule.matches[0].query = vec![q.clone()]
    });
    refused(RouteKind::Http, "rules[1].matches[0].queryParams[1].name", "empty", |rule| {
        rule.matches[0].query = vec![q.clone(), QueryMatch { name: "".into(), ..q.clone() }];
    });
    refused(RouteKind::Http, "rules[1].matches[0].headers[0].value", "4097 bytes: 4096 at most", |rule| {
        rule.matches[0].headers = vec![header_match(exact("a".repeat(4097)))];
    });
    let mut longest = route(RouteKind::Http);
    longest.rules[1].matches[0].headers = vec![header_match(exact("a".repeat(4096)))];
    CompiledRoute::compile(longest).unwrap();
    for (name, service) in
        [("", true), ("a.b", false), ("1a", true), ("a..b", true), ("a/b", true), ("ä", false), ("a.1", true)]
    {
        let value = Some(exact(name.into()));
        let at =
            if service { "rules[1].matches[0].method.service" } else { "rules[1].matches[0].method.method" };
        refused(RouteKind::Grpc, at, "gRPC service or method", |rule| {
            let (service, method) = if service { (value, None) } else { (None, value) };
            rule.matches[0].path = PathMatch::Grpc { service, method };
        });
    }
    for (service, method) in [("a.b_1.C", "_a1"), (".a", "A"), ("_", "m")] {
        let mut route = route(RouteKind::Grpc);
        let (service, method) = (Some(exact(service.into())), Some(exact(method.into())));
        route.rules[1].matches[0].path = PathMatch::Grpc { service, method };
        CompiledRoute::compile(route).unwrap();
    }
}

#[test]
fn rules_and_hostnames() {
    let mut named = route(RouteKind::Http);
    named.rules.push(named.rules[0].clone());
    named.rules[0].name = Some("main".into());
    named.rules[2].name = Some("main".into());
    expect(
        &CompiledRoute::compile(named.clone()).unwrap_err(),
        "rules[2].name",
        "rules[0] is called \"main\" too",
    );
    named.rules[2].name = Some("other".into());
    let compiled = CompiledRoute::compile(named).unwrap();
    let labels: Vec<String> = compiled.rules().iter().map(|rule| rule.label()).collect();
    assert_eq!(labels, ["main", "1", "other"]);
    assert_eq!(&**compiled.rules()[0].full_name(), "shop/cart");

    for hostname in
        [Hostname::Exact("A.example".into()), Hostname::Wildcard("*.a".into()), Hostname::Exact("".into())]
    {
        let mut route = route(RouteKind::Http);
        route.hostnames = vec![Hostname::Exact("a.example".into()), hostname];
        expect(&CompiledRoute::compile(route).unwrap_err(), "hostnames[1]", "is not a DNS name");
    }

    let seconds = |request, backend_request| Timeouts {
        request: Some(Duration::from_secs(request)),
        backend_request: Some(Duration::from_secs(backend_request)),
    };
    refused(RouteKind::Http, "rules[1].timeouts.backendRequest", "2s is longer", |rule| {
        rule.timeouts = seconds(1, 2)
    });
    let mut equal = route(RouteKind::Http);
    equal.rules[1].timeouts = seconds(1, 1);
    CompiledRoute::compile(equal).unwrap();
}

#[test]
fn filters() {
    let at = "rules[1].filters[1]";
    refused(RouteKind::Http, at, "a second filter URLRewrite after rules[1].filters[0]", |rule| {
        rule.filters = vec![rewrite(None, full("/a")), rewrite(Some("a.example"), None)];
    });
    for filter in
        [Filter::RequestHeaders(HeaderEdit::default()), Filter::ResponseHeaders(HeaderEdit::default())]
    {
        refused(RouteKind::Grpc, at, "HeaderModifier after rules[1].filters[0]", |rule| {
            rule.filters = vec![filter.clone(), filter];
        });
    }
    for kind in [RouteKind::Http, RouteKind::Grpc] {
        let mirror = || Filter::Mirror(Mirror { target: Target::Invalid("none".into()), share: Share::ALL });
        let mut route = route(kind);
        route.rules[1].filters = vec![mirror(), Filter::RequestHeaders(HeaderEdit::default()), mirror()];
        CompiledRoute::compile(route).unwrap();
    }
    refused(RouteKind::Http, at, "a second filter RequestRedirect", |rule| {
        rule.filters = vec![redirect(None), redirect(None)];
    });
    refused(RouteKind::Grpc, "rules[1].filters[0]", "has no filter RequestRedirect", |rule| {
        rule.filters = vec![redirect(None)];
    });
    refused(RouteKind::Grpc, "rules[1].backendRefs[0].filters[0]", "has no filter URLRewrite", |rule| {
        rule.action = Action::Forward(vec![backend(vec![rewrite(None, None)])]);
    });
    refused(RouteKind::Http, "rules[1].filters[0]", "remove one of the two", |rule| {
        rule.filters = vec![redirect(None)];
        rule.action = Action::Forward(vec![backend(vec![])]);
    });
    refused(RouteKind::Http, "rules[1].filters[0]", "rewrite at rules[1].filters[1]", |rule| {
        rule.filters = vec![redirect(None), rewrite(None, None)];
    });
    refused(
        RouteKind::Http,
        "rules[1].backendRefs[1].filters[0]",
        "rewrite at rules[1].filters[0]",
        |rule| {
            rule.filters = vec![rewrite(None, None)];
            rule.action = Action::Forward(vec![backend(vec![]), backend(vec![redirect(None)])]);
        },
    );
    for (part, filter) in
        [("path", rewrite(None, full("/a"))), ("hostname", rewrite(Some("a.example"), None))]
    {
        let says = format!("the {part} is already rewritten at rules[1].filters[0]");
        refused(RouteKind::Http, "rules[1].backendRefs[0].filters[0]", &says, |rule| {
            rule.filters = vec![filter.clone()];
            rule.action = Action::Forward(vec![backend(vec![filter])]);
        });
    }
}

#[test]
fn filters_that_go_together_are_accepted() {
    let mut route = route(RouteKind::Http);
    let headers = Filter::RequestHeaders(HeaderEdit {
        set: vec![header("x-a")],
        add: vec![header("x-b")],
        remove: vec![HeaderName::from_static("x-c")],
    });
    route.rules[0].filters = vec![headers.clone(), redirect(prefix("/a"))];
    route.rules[1].filters = vec![headers.clone(), rewrite(Some("a.example"), None)];
    let filters = vec![headers, rewrite(None, full("/a")), Filter::ResponseHeaders(HeaderEdit::default())];
    route.rules[1].action = Action::Forward(vec![backend(filters), backend(vec![])]);
    CompiledRoute::compile(route).unwrap();
}

#[test]
fn header_edits() {
    let edit = |set, add, remove| HeaderEdit { set, add, remove };
    let twice = [
        ("set[1]", "set[0]", edit(vec![header("x-a"), header("x-a")], vec![], vec![])),
        ("add[0]", "set[0]", edit(vec![header("x-a")], vec![header("x-a")], vec![])),
        ("remove[0]", "add[0]", edit(vec![], vec![header("x-a")], vec![HeaderName::from_static("x-a")])),
    ];
    for (at, first, edit) in twice {
        let at = format!("rules[1].filters[0].responseHeaderModifier.{at}");
        let says = format!("x-a is named at rules[1].filters[0].responseHeaderModifier.{first} too");
        refused(RouteKind::Http, &at, &says, |rule| rule.filters = vec![Filter::ResponseHeaders(edit)]);
    }
    let of_connection = [
        "connection",
        "content-length",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    for name in of_connection {
        let at = "rules[1].filters[0].requestHeaderModifier.add[0]";
        refused(RouteKind::Http, at, &format!("header {name} belongs to the connection"), |rule| {
            rule.filters = vec![Filter::RequestHeaders(edit(vec![], vec![header(name)], vec![]))];
        });
    }
    refused(RouteKind::Http, "rules[1].filters[0].requestHeaderModifier.set[0]", "URLRewrite", |rule| {
        rule.filters = vec![Filter::RequestHeaders(edit(vec![header("host")], vec![], vec![]))];
    });
}

#[test]
fn rewrites_and_redirects() {
    let at = "rules[1].filters[0].urlRewrite.path";
    for (path, says) in
        [("a", "does not start"), ("/a?b", "query"), ("/a//b", "write '/'"), ("/a/../b", "resolved")]
    {
        for (edit, field) in [(full(path), "replaceFullPath"), (prefix(path), "replacePrefixMatch")] {
            refused(RouteKind::Http, &format!("{at}.{field}"), says, |rule| {
                rule.filters = vec![rewrite(None, edit)]
            });
        }
    }
    for (path, normal) in [("", ""), ("/", "/"), ("/a%2Fb%61/", "/a%2Fba/")] {
        let mut route = route(RouteKind::Http);
        route.rules[1].filters = vec![rewrite(None, prefix(path))];
        let compiled = CompiledRoute::compile(route).unwrap();
        assert_eq!(compiled.rules()[1].filters(), [rewrite(None, prefix(normal))]);
    }
    let exact = Match { path: PathMatch::Exact("/a".into()), ..anything(RouteKind::Http) };
    for matches in [vec![exact], vec![anything(RouteKind::Http), anything(RouteKind::Http)]] {
        refused(RouteKind::Http, at, "exactly one match, of type PathPrefix", |rule| {
            rule.matches = matches.clone();
            rule.filters = vec![rewrite(None, prefix("/b"))];
        });
        refused(RouteKind::Http, "rules[1].filters[0].requestRedirect.path", "exactly one match", |rule| {
            rule.matches = matches;
            rule.filters = vec![redirect(prefix("/b"))];
        });
    }
    for hostname in ["*.example", "A.example", "a:80", ""] {
        refused(RouteKind::Http, "rules[1].filters[0].urlRewrite.hostname", "is not a DNS name", |rule| {
            rule.filters = vec![rewrite(Some(hostname), None)];
        });
    }
    let odd = |hostname: Option<&str>, port| {
        let hostname = hostname.map(Into::into);
        Filter::Redirect(Redirect { scheme: None, hostname, path: None, port, status: RedirectStatus::Found })
    };
    refused(RouteKind::Http, "rules[1].filters[0].requestRedirect.hostname", "is not a DNS name", |rule| {
        rule.filters = vec![odd(Some("*.a"), None)];
    });
    refused(RouteKind::Http, "rules[1].filters[0].requestRedirect.port", "1 to 65535", |rule| {
        rule.filters = vec![odd(None, Some(0))];
    });
}
