//! Filters against the oracle, and the table of the specification.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of integration tests for code outside tests")]

mod common;

use std::borrow::Cow;

use culvert_routing::filters::{FilteredRequest, apply_to_request, apply_to_response, rewrite_path};
use culvert_routing::model::{
    Filter, HeaderEdit, PathEdit, PathMatch, Redirect, RedirectStatus, Rewrite, Scheme,
};
use culvert_routing_oracle::filters as oracle;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

const PREFIXES: &[&str] = &["/", "/foo", "/foo/", "/foo/bar", "/f", "/foo/bar/"];
const REPLACEMENTS: &[&str] = &["", "/", "/xyz", "/xyz/", "/x/y", "/foo", "/foo/bar/"];
const BELOW: &[&str] = &["", "/", "/bar", "/bar/", "/foo/foo", "/foo/"];

fn text(choices: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(choices).prop_map(str::to_owned)
}

/// A prefix and a path that matches it.
fn prefix_and_path() -> impl Strategy<Value = (String, String)> {
    (text(PREFIXES), text(BELOW)).prop_map(|(prefix, below)| {
        let path = format!("{}{below}", prefix.trim_end_matches('/'));
        let path = if path.is_empty() { "/".to_owned() } else { path };
        (prefix, path)
    })
}

fn replace(prefix: &str, replacement: &str) -> (PathMatch, PathEdit) {
    (PathMatch::Prefix(prefix.into()), PathEdit::ReplacePrefix(replacement.into()))
}

#[test]
fn prefixes_are_replaced_as_the_table_of_the_specification_says() {
    let table = [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        // Beyond the table.
        ("/foo", "/foo", "/xyz/", "/xyz"),
        ("/foo", "/foo/", "/xyz", "/xyz"),
        ("/foo/foo/bar", "/foo", "/xyz", "/xyz/foo/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/foobar", "/foo", "/xyz", "/foobar"),
        ("/other", "/foo", "/xyz", "/other"),
        ("*", "/", "/xyz", "*"),
    ];
    for (path, prefix, replacement, wanted) in table {
        let (matched, edit) = replace(prefix, replacement);
        assert_eq!(rewrite_path(&edit, &matched, path), wanted, "{path}: {prefix} -> {replacement:?}");
    }
    for matched in [PathMatch::Exact("/a".into()), PathMatch::Regex("/a".into())] {
        assert_eq!(rewrite_path(&PathEdit::ReplacePrefix("/x".into()), &matched, "/a"), "/a");
        assert_eq!(rewrite_path(&PathEdit::ReplaceFull("/x".into()), &matched, "/a"), "/x");
        assert_eq!(rewrite_path(&PathEdit::ReplaceFull("".into()), &matched, "/a"), "/");
    }
}

fn any_edit(prefix: String) -> impl Strategy<Value = (PathEdit, oracle::PathEdit)> {
    let prefix = move |replacement: String| {
        let edit = PathEdit::ReplacePrefix(replacement.as_str().into());
        (edit, oracle::PathEdit::Prefix { prefix: prefix.clone(), replacement })
    };
    prop_oneof![
        text(REPLACEMENTS)
            .prop_map(|full| (PathEdit::ReplaceFull(full.as_str().into()), oracle::PathEdit::Full(full))),
        text(REPLACEMENTS).prop_map(prefix),
    ]
}

fn any_filter_path() -> impl Strategy<Value = (String, String, Option<(PathEdit, oracle::PathEdit)>)> {
    prefix_and_path()
        .prop_flat_map(|(prefix, path)| (Just(prefix.clone()), Just(path), option::of(any_edit(prefix))))
}

fn any_scheme() -> impl Strategy<Value = Scheme> {
    select(&[Scheme::Http, Scheme::Https][..])
}

fn header_map(lines: &[(String, String)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        map.append(name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap());
    }
    map
}

fn pairs(lines: &[(String, String)]) -> Vec<(HeaderName, HeaderValue)> {
    lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

/// Disjoint names, in any case, for set, add and remove.
fn any_header_edit() -> impl Strategy<Value = oracle::HeaderEdit> {
    const NAMES: [&str; 6] = ["x-a", "X-B", "x-C", "x-d", "X-E", "x-f"];
    (subsequence(NAMES.to_vec(), 0..=6).prop_shuffle(), vec((0..3, text(&["1", "2", ""])), 6)).prop_map(
        |(names, choices)| {
            let mut edit = oracle::HeaderEdit::default();
            for (name, (list, value)) in names.into_iter().zip(choices) {
                match list {
                    0 => edit.set.push((name.to_owned(), value)),
                    1 => edit.add.push((name.to_owned(), value)),
                    _ => edit.remove.push(name.to_owned()),
                }
            }
            edit
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn rewrites_are_what_the_oracle_says((prefix, path) in prefix_and_path(), replacement in text(REPLACEMENTS)) {
        let (matched, edit) = replace(&prefix, &replacement);
        let rewritten = rewrite_path(&edit, &matched, &path);
        prop_assert_eq!(&rewritten, &oracle::rewrite(&path, &oracle::PathEdit::Prefix { prefix, replacement }));
        prop_assert!(rewritten.starts_with('/') && !rewritten.contains("//"));
    }

    #[test]
    fn locations_are_what_the_oracle_says(
        (prefix, path, edit) in any_filter_path(),
        (own, scheme) in (any_scheme(), option::of(any_scheme())),
        hostname in option::of(text(&["a.example", "b.example"])),
        port in option::of(select(&[80u16, 443, 8080][..])),
        listener_port in select(&[80u16, 443, 8080, 8443][..]),
        query in option::of(text(&["", "a=b", "a=b&c=%20"])),
        status in select(&[301u16, 302, 303, 307, 308][..]),
    ) {
        let redirect = Redirect {
            scheme,
            hostname: hostname.as_deref().map(Into::into),
            path: edit.as_ref().map(|(edit, _)| edit.clone()),
            port,
            status: match status {
                301 => RedirectStatus::MovedPermanently,
                302 => RedirectStatus::default(),
                303 => RedirectStatus::SeeOther,
                307 => RedirectStatus::TemporaryRedirect,
                _ => RedirectStatus::PermanentRedirect,
            },
        };
        let mut headers = HeaderMap::new();
        let mut request = FilteredRequest {
            scheme: own,
            port: listener_port,
            host: Cow::Borrowed("host.example"),
            path: Cow::Borrowed(&path),
            query: query.as_deref(),
            headers: &mut headers,
        };
        let after = Filter::RequestHeaders(HeaderEdit { set: pairs(&[("x-a".into(), "1".into())]), ..HeaderEdit::default() });
        let matched = PathMatch::Prefix(prefix.as_str().into());
        let redirection = apply_to_request(&[Filter::Redirect(redirect), after], &matched, &mut request).unwrap();
        let wanted = oracle::location(
            &oracle::Redirect {
                scheme: scheme.map(|scheme| scheme.as_str().to_owned()),
                hostname,
                port,
                path: edit.map(|(_, edit)| edit),
            },
            &oracle::Origin {
                scheme: own.as_str().to_owned(),
                host: "host.example".to_owned(),
                listener_port,
                path: path.clone(),
                query: query.clone(),
            },
        );
        prop_assert_eq!(redirection.location.to_str().unwrap(), wanted);
        prop_assert_eq!(redirection.status.as_u16(), status);
        prop_assert!(headers.is_empty(), "filters after a redirect do not count");
    }

    #[test]
    fn headers_are_edited_as_the_oracle_says(
        lines in vec((text(&["x-a", "x-b", "X-b", "x-c", "x-d", "other"]), text(&["1", "2", "3"])), 0..8),
        edit in any_header_edit(),
    ) {
        let mut request = header_map(&lines);
        let mut response = request.clone();
        let model = HeaderEdit {
            set: pairs(&edit.set),
            add: pairs(&edit.add),
            remove: edit.remove.iter().map(|name| name.parse().unwrap()).collect(),
        };
        let of_request = Filter::RequestHeaders(model.clone());
        let of_response = Filter::ResponseHeaders(model);
        let filters = [of_request, of_response];
        let mut filtered = FilteredRequest {
            scheme: Scheme::Http,
            port: 80,
            host: Cow::Borrowed("host"),
            path: Cow::Borrowed("/"),
            query: None,
            headers: &mut request,
        };
        prop_assert_eq!(apply_to_request(&filters, &PathMatch::Prefix("/".into()), &mut filtered), None);
        apply_to_response(&filters, &mut response);
        let wanted = header_map(&oracle::edit_headers(&lines, &edit));
        prop_assert_eq!(&request, &wanted);
        prop_assert_eq!(&response, &wanted);
    }
}

#[test]
fn filters_are_applied_in_the_order_given() {
    let set = |value| {
        Filter::RequestHeaders(HeaderEdit { set: pairs(&[("x-a".into(), value)]), ..HeaderEdit::default() })
    };
    let rewrite = Filter::Rewrite(Rewrite {
        hostname: Some("new.example".into()),
        path: Some(PathEdit::ReplacePrefix("/new".into())),
    });
    let mut headers = HeaderMap::new();
    let mut request = FilteredRequest {
        scheme: Scheme::Http,
        port: 80,
        host: Cow::Borrowed("old.example"),
        path: Cow::Borrowed("/old/a"),
        query: Some("q"),
        headers: &mut headers,
    };
    let filters = [set("1".into()), rewrite, set("2".into())];
    assert_eq!(apply_to_request(&filters, &PathMatch::Prefix("/old".into()), &mut request), None);
    assert_eq!((&*request.host, &*request.path, request.query), ("new.example", "/new/a", Some("q")));
    assert_eq!(headers["x-a"], "2");
}

#[test]
fn a_rewrite_leaves_alone_what_it_does_not_name() {
    let mut headers = HeaderMap::new();
    let mut request = FilteredRequest {
        scheme: Scheme::Http,
        port: 80,
        host: Cow::Borrowed("old.example"),
        path: Cow::Borrowed("/old/a"),
        query: None,
        headers: &mut headers,
    };
    let nothing = Filter::Rewrite(Rewrite { hostname: None, path: None });
    assert_eq!(apply_to_request(&[nothing], &PathMatch::Prefix("/old".into()), &mut request), None);
    assert_eq!((&*request.host, &*request.path), ("old.example", "/old/a"));
}

#[test]
fn locations_are_header_values_whatever_the_request_has() {
    let redirect =
        Redirect { scheme: None, hostname: None, path: None, port: None, status: RedirectStatus::Found };
    let matched = PathMatch::Prefix("/".into());
    let mut headers = HeaderMap::new();
    let mut location = |host: &str, query: &str| {
        let request = FilteredRequest {
            scheme: Scheme::Https,
            port: 443,
            host: Cow::Owned(host.to_owned()),
            path: Cow::Borrowed("/a"),
            query: Some(query),
            headers: &mut headers,
        };
        redirect.location(&matched, &request).to_str().unwrap().to_owned()
    };
    assert_eq!(location("a.example", "q=ü ~\r\n\u{7f}"), "https://a.example/a?q=%C3%BC%20~%0D%0A%7F");
    assert_eq!(location("[::1]", "q"), "https://[::1]/a?q");
    assert_eq!(location("", "q"), "/a?q");
}
