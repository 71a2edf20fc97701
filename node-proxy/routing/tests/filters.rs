//! Filters against the oracle, and the table of the specification.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of integration tests for code outside tests")]

mod common;

use std::borrow::Cow;

use culvert_routing::filters::{Answer, FilteredRequest, apply_to_request, apply_to_response, rewrite_path};
use culvert_routing::model::{
    Filter, HeaderEdit, Mirror, PathEdit, PathMatch, Redirect, RedirectStatus, Rewrite, Scheme, Share, Target,
};
use culvert_routing_oracle::filters as oracle;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
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
            method: &Method::GET,
            scheme: own,
            port: listener_port,
            host: Cow::Borrowed("host.example"),
            path: Cow::Borrowed(&path),
            query: query.as_deref(),
            headers: &mut headers,
        };
        let after = Filter::RequestHeaders(HeaderEdit { set: pairs(&[("x-a".into(), "1".into())]), ..HeaderEdit::default() });
        let matched = PathMatch::Prefix(prefix.as_str().into());
        let redirection = apply_to_request(&[Filter::Redirect(redirect), after], &matched, &mut request, |_, _, _| {}).unwrap();
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
        let Answer::Redirection(redirection) = redirection else { panic!("{redirection:?}") };
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
            method: &Method::GET,
            scheme: Scheme::Http,
            port: 80,
            host: Cow::Borrowed("host"),
            path: Cow::Borrowed("/"),
            query: None,
            headers: &mut request,
        };
        prop_assert_eq!(apply_to_request(&filters, &PathMatch::Prefix("/".into()), &mut filtered, |_, _, _| {}), None);
        apply_to_response(&filters, None, &mut response);
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
        method: &Method::GET,
        scheme: Scheme::Http,
        port: 80,
        host: Cow::Borrowed("old.example"),
        path: Cow::Borrowed("/old/a"),
        query: Some("q"),
        headers: &mut headers,
    };
    let filters = [set("1".into()), rewrite, set("2".into())];
    assert_eq!(
        apply_to_request(&filters, &PathMatch::Prefix("/old".into()), &mut request, |_, _, _| {}),
        None
    );
    assert_eq!((&*request.host, &*request.path, request.query), ("new.example", "/new/a", Some("q")));
    assert_eq!(headers["x-a"], "2");
}

#[test]
fn a_rewrite_leaves_alone_what_it_does_not_name() {
    let mut headers = HeaderMap::new();
    let mut request = FilteredRequest {
        method: &Method::GET,
        scheme: Scheme::Http,
        port: 80,
        host: Cow::Borrowed("old.example"),
        path: Cow::Borrowed("/old/a"),
        query: None,
        headers: &mut headers,
    };
    let nothing = Filter::Rewrite(Rewrite { hostname: None, path: None });
    assert_eq!(
        apply_to_request(&[nothing], &PathMatch::Prefix("/old".into()), &mut request, |_, _, _| {}),
        None
    );
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
            method: &Method::GET,
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

fn mirror(number: usize) -> Filter {
    let target = Target::Service { namespace: "n".into(), name: number.to_string().into(), port: 80 };
    Filter::Mirror(Mirror { target, share: Share::ALL })
}

/// A list of filters in both forms, of at most one of each kind but mirrors.
fn any_steps() -> impl Strategy<Value = (String, Vec<(Filter, oracle::Step)>)> {
    let edits = (any_header_edit(), any_filter_path(), 0..4_usize);
    edits.prop_flat_map(|(headers, (_, path, edit), mirrors)| {
        let model = HeaderEdit {
            set: pairs(&headers.set),
            add: pairs(&headers.add),
            remove: headers.remove.iter().map(|name| name.parse().unwrap()).collect(),
        };
        let mut steps = vec![(Filter::RequestHeaders(model), oracle::Step::Headers(headers))];
        steps.extend(edit.map(|(model, naive)| {
            let rewrite = Rewrite { hostname: None, path: Some(model) };
            (Filter::Rewrite(rewrite), oracle::Step::Path(naive))
        }));
        steps.extend((0..mirrors).map(|number| (mirror(number), oracle::Step::Mirror(number))));
        (Just(path), Just(steps).prop_shuffle())
    })
}

fn lines(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut lines: Vec<_> =
        headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    lines.sort();
    lines
}

proptest! {
    #[test]
    fn a_mirror_is_sent_what_the_filters_before_it_made((path, steps) in any_steps(), sent in vec((select(vec!["x-a", "x-b", "x-c"]), text(&["1", "2"])), 0..4)) {
        let sent: Vec<(String, String)> = sent.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let (filters, naive): (Vec<Filter>, Vec<oracle::Step>) = steps.into_iter().unzip();
        // The prefix that an edit of the path replaces.
        let matched = naive.iter().find_map(|step| match step {
            oracle::Step::Path(oracle::PathEdit::Prefix { prefix, .. }) => Some(prefix.clone()),
            _ => None,
        });
        let matched = PathMatch::Prefix(matched.unwrap_or_else(|| "/".to_owned()).as_str().into());
        let mut headers = header_map(&sent);
        let mut request = FilteredRequest {
            method: &Method::GET,
            scheme: Scheme::Http,
            port: 80,
            host: Cow::Borrowed("a.example"),
            path: Cow::Borrowed(&path),
            query: None,
            headers: &mut headers,
        };
        let mut copies = Vec::new();
        let redirected = apply_to_request(&filters, &matched, &mut request, |place, mirror, copy| {
            assert!(matches!(&filters[place], Filter::Mirror(at) if at == mirror));
            let Target::Service { name, .. } = &mirror.target else { panic!("{mirror:?}") };
            copies.push((name.parse::<usize>().unwrap(), copy.path.to_string(), lines(copy.headers)));
        });
        prop_assert_eq!(redirected, None);
        let mut expected = oracle::copies(&path, &sent, &naive);
        for (.., lines) in &mut expected {
            lines.iter_mut().for_each(|(name, _)| name.make_ascii_lowercase());
            lines.sort();
        }
        prop_assert_eq!(copies, expected);
    }
}
