//! Paths, hosts and hostnames.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of integration tests for code outside tests")]

use std::borrow::Cow;

use culvert_routing::host::{Host, HostError};
use culvert_routing::hostname::{HostnameError, intersect};
use culvert_routing::model::Hostname;
use culvert_routing::path::{PathError, normalize};
use culvert_routing_oracle as oracle;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

#[test]
fn paths_are_normalized_as_documented() {
    let table: [(&str, Result<&str, PathError>); 48] = [
        ("/", Ok("/")),
        ("", Ok("/")),
        ("*", Ok("*")),
        ("/a/b", Ok("/a/b")),
        ("/a/b/", Ok("/a/b/")),
        ("//", Ok("/")),
        ("//a///b//", Ok("/a/b/")),
        ("/.", Ok("/")),
        ("/./", Ok("/")),
        ("/a/.", Ok("/a/")),
        ("/a/./b", Ok("/a/b")),
        ("/a/..", Ok("/")),
        ("/a/../", Ok("/")),
        ("/a/b/..", Ok("/a/")),
        ("/a/b/../c", Ok("/a/c")),
        ("/a/b/../../c", Ok("/c")),
        ("/a//../b", Ok("/b")),
        ("/a/%2e%2e/b", Ok("/b")),
        ("/a/%2E./b", Ok("/b")),
        ("/a/.%2e", Ok("/")),
        ("/a/%2e/b", Ok("/a/b")),
        ("/...", Ok("/...")),
        ("/.a/..b/c.", Ok("/.a/..b/c.")),
        ("/%61%2D%7e%5F", Ok("/a-~_")),
        ("/a%2fb", Ok("/a%2Fb")),
        ("/a%2F..%2fb", Ok("/a%2F..%2Fb")),
        ("/a%5c..", Ok("/a%5C..")),
        ("/a/..;/b", Ok("/a/..;/b")),
        ("/a%20b%0a", Ok("/a%20b%0A")),
        ("/%25%32%65", Ok("/%252e")),
        ("/!$&'()*+,;=:@", Ok("/!$&'()*+,;=:@")),
        ("/{id}|\"<>^`", Ok("/%7Bid%7D%7C%22%3C%3E%5E%60")),
        ("/ü", Ok("/%C3%BC")),
        ("/%c3%bc", Ok("/%C3%BC")),
        ("/..", Err(PathError::AboveRoot)),
        ("/a/../..", Err(PathError::AboveRoot)),
        ("/%2e%2e/a", Err(PathError::AboveRoot)),
        ("/a/../../a", Err(PathError::AboveRoot)),
        ("a", Err(PathError::NotAbsolute)),
        ("*a", Err(PathError::NotAbsolute)),
        ("/a%", Err(PathError::BadEscape { at: 2 })),
        ("/a%2", Err(PathError::BadEscape { at: 2 })),
        ("/a%2g", Err(PathError::BadEscape { at: 2 })),
        ("/%+1", Err(PathError::BadEscape { at: 1 })),
        ("/a%00", Err(PathError::Nul { at: 2 })),
        ("/\0", Err(PathError::Nul { at: 1 })),
        ("/a\\b", Err(PathError::Forbidden { byte: b'\\', at: 2 })),
        ("/a#b", Err(PathError::Forbidden { byte: b'#', at: 2 })),
    ];
    for (raw, wanted) in table {
        assert_eq!(normalize(raw), wanted.map(Cow::Borrowed), "{raw:?}");
    }
    for byte in [1u8, 9, b'\r', b'\n', 0x1f, b' ', 0x7f, b'?'] {
        let raw = format!("/{}", char::from(byte));
        assert_eq!(normalize(&raw), Err(PathError::Forbidden { byte, at: 1 }));
    }
}

#[test]
fn normal_paths_are_not_copied() {
    for path in ["/", "/a/b.c/", "/a%2Fb", "/.a", "/a..", "*"] {
        assert!(matches!(normalize(path), Ok(Cow::Borrowed(same)) if same == path), "{path}");
    }
}

/// Pieces that meet in the worst ways, and any text.
fn any_path() -> impl Strategy<Value = String> {
    let piece = select(
        &[
            "/", "/", "/", ".", "..", "a", "b", "%2e", "%2F", "%61", "%", "%0", "\\", "%5C", "ü", "{", ";",
            "%00",
        ][..],
    );
    prop_oneof![
        4 => vec(piece, 0..9).prop_map(|pieces| format!("/{}", pieces.concat())),
        1 => "\\PC{0,8}".prop_map(|text| text),
        1 => "[/.%a2eEfF]{0,10}".prop_map(|text| text),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn normalization_is_what_the_oracle_says(raw in any_path()) {
        prop_assert_eq!(normalize(&raw).ok().map(Cow::into_owned), oracle::path::normalize(&raw));
    }

    #[test]
    fn normalization_is_idempotent_and_leaves_nothing_to_resolve(raw in any_path()) {
        if let Ok(path) = normalize(&raw) {
            prop_assert_eq!(normalize(&path).unwrap(), path.clone());
            if path != "*" {
                prop_assert!(path.starts_with('/') && !path.contains("//"));
                prop_assert!(path.split('/').all(|segment| segment != "." && segment != ".."));
                let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&byte);
                prop_assert!(path.bytes().all(allowed));
            }
        }
    }

    /// Whatever a path is spelled like: what it matches is where a file server that decodes first would end up.
    #[test]
    fn no_spelling_matches_a_prefix_that_it_is_not_below(raw in any_path()) {
        let Ok(path) = normalize(&raw) else { return Ok(()) };
        // An encoded slash or backslash is part of a segment here; a server that sees it otherwise sees it still encoded.
        let Some(decoded) = decode_and_resolve(&raw.replace("%2F", "%252F").replace("%2f", "%252F").replace("%5C", "%255C")) else {
            return Ok(());
        };
        for prefix in ["/a", "/b", "/a/b"] {
            let below = |path: &str| path == prefix || path.starts_with(&format!("{prefix}/"));
            prop_assert_eq!(below(&path), below(&decoded), "{} is {}, resolved {}", raw, path, decoded);
        }
    }

    #[test]
    fn intersections_are_what_the_oracle_says(
        listener in option::of(any_hostname()),
        route in vec(any_hostname(), 0..4),
        host in select(HOSTS),
    ) {
        let parse = |text: &String| Hostname::parse(text).unwrap();
        let hostnames: Vec<Hostname> = route.iter().map(parse).collect();
        let ours = intersect(listener.as_ref().map(parse).as_ref(), &hostnames);
        let texts = ours.as_ref().map(|common| common.iter().map(Hostname::to_string).collect::<Vec<_>>());
        prop_assert_eq!(texts, oracle::hostname::intersection(listener.as_deref(), &route));
        // What it means: a host is in the intersection if listener and route both take it.
        let takes = |hostnames: &[Hostname]| hostnames.is_empty() || hostnames.iter().any(|name| name.matches(host));
        let both = listener.as_ref().map(parse).is_none_or(|name| name.matches(host)) && takes(&hostnames);
        prop_assert_eq!(ours.is_some_and(|common| takes(&common)), both);
    }

    #[test]
    fn hostnames_match_what_the_oracle_says(hostname in any_hostname(), host in select(HOSTS)) {
        prop_assert_eq!(Hostname::parse(&hostname).unwrap().matches(host), oracle::hostname::matches(&hostname, host));
    }

    #[test]
    fn hosts_do_not_panic_and_come_out_normal(text in "\\PC{0,12}|[a-zA-Z0-9.:\\[\\]-]{0,12}") {
        if let Ok(host) = Host::parse(&text) {
            let again = Host::parse(host.name()).unwrap();
            prop_assert_eq!(again.name(), host.name());
            prop_assert!(!host.name().bytes().any(|byte| byte.is_ascii_uppercase()));
        }
    }
}

/// One decoding of everything, then the segments.
fn decode_and_resolve(raw: &str) -> Option<String> {
    let mut bytes = raw.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            decoded.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    let text = String::from_utf8_lossy(&decoded).into_owned();
    let mut segments: Vec<&str> = Vec::new();
    for segment in text.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop()?;
            }
            segment => segments.push(segment),
        }
    }
    Some(format!("/{}", segments.join("/")))
}

const HOSTS: &[&str] = &[
    "a.example",
    "b.a.example",
    "c.b.a.example",
    "example",
    "xa.example",
    "x.b.example",
    "",
    ".example",
    "a.example.com",
];

fn any_hostname() -> impl Strategy<Value = String> {
    let names =
        &["a.example", "*.example", "*.a.example", "b.a.example", "*.b.a.example", "example", "*.b.example"]
            [..];
    select(names).prop_map(str::to_owned)
}

#[test]
fn hosts_are_read_as_documented() {
    let long = "a".repeat(64);
    let longest = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "a".repeat(61));
    let too_long = format!("{longest}a");
    type Wanted<'a> = Result<(&'a str, Option<u16>), HostError>;
    let table: Vec<(&str, Wanted<'_>)> = vec![
        ("Example.COM", Ok(("example.com", None))),
        ("example.com.", Ok(("example.com", None))),
        ("example.com.:8080", Ok(("example.com", Some(8080)))),
        ("example.com:", Ok(("example.com", None))),
        ("cart", Ok(("cart", None))),
        ("my_service-1", Ok(("my_service-1", None))),
        ("10.0.0.1:80", Ok(("10.0.0.1", Some(80)))),
        ("a:65535", Ok(("a", Some(65535)))),
        ("[::1]", Ok(("[::1]", None))),
        ("[FE80::A]:443", Ok(("[fe80::a]", Some(443)))),
        ("[::1]:", Ok(("[::1]", None))),
        (&longest, Ok((&longest, None))),
        ("", Err(HostError::Empty)),
        (".", Err(HostError::Empty)),
        (":80", Err(HostError::Empty)),
        ("a..b", Err(HostError::EmptyLabel)),
        (".a", Err(HostError::EmptyLabel)),
        ("a..", Err(HostError::EmptyLabel)),
        ("a:0", Err(HostError::BadPort)),
        ("a:65536", Err(HostError::BadPort)),
        ("a:+80", Err(HostError::BadPort)),
        ("a:8a", Err(HostError::BadPort)),
        ("::1", Err(HostError::BadPort)),
        ("[::1]80", Err(HostError::BadPort)),
        ("[::1", Err(HostError::BadIpv6)),
        ("[::1%eth0]", Err(HostError::BadIpv6)),
        ("[10.0.0.1]", Err(HostError::BadIpv6)),
        ("user@host", Err(HostError::Forbidden { byte: b'@', at: 4 })),
        ("a b", Err(HostError::Forbidden { byte: b' ', at: 1 })),
        ("a%41", Err(HostError::Forbidden { byte: b'%', at: 1 })),
        ("a/b", Err(HostError::Forbidden { byte: b'/', at: 1 })),
        ("\u{e4}", Err(HostError::Forbidden { byte: 0xc3, at: 0 })),
        (&long, Err(HostError::TooLong)),
        (&too_long, Err(HostError::TooLong)),
    ];
    for (authority, wanted) in table {
        let host = Host::parse(authority);
        assert_eq!(
            host.as_ref().map(|host| (host.name(), host.port())),
            wanted.as_ref().copied(),
            "{authority:?}"
        );
        if let Ok(host) = host {
            let name = host.name().to_owned();
            assert_eq!(host.into_name(), name);
        }
    }
}

#[test]
fn hostnames_are_read_as_documented() {
    let longest = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "a".repeat(61));
    assert_eq!(Hostname::parse("A.Example"), Ok(Hostname::Exact("a.example".into())));
    assert_eq!(Hostname::parse("*.a-1.example"), Ok(Hostname::Wildcard("a-1.example".into())));
    assert_eq!(Hostname::parse("*.a"), Ok(Hostname::Wildcard("a".into())));
    assert_eq!(Hostname::parse(&longest), Ok(Hostname::Exact(longest.as_str().into())));
    for text in
        ["", ".", "a.", "a..b", "-a", "a-", "a_b", "a:80", "*.", "ü", &format!("{longest}a"), &"a".repeat(64)]
    {
        assert!(
            matches!(Hostname::parse(text), Err(HostnameError::NotAName { hostname }) if hostname == text),
            "{text}"
        );
    }
    for text in ["*", "*a.example", "a.*.example", "*.*.example"] {
        assert!(matches!(Hostname::parse(text), Err(HostnameError::BadWildcard { .. })), "{text}");
    }
    for text in ["10.0.0.1", "::1"] {
        assert!(matches!(Hostname::parse(text), Err(HostnameError::Address { .. })), "{text}");
    }
}
