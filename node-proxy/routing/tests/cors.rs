//! Cross-origin requests: browsers, played by the oracle, let through what the filter was meant to allow and nothing else.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of integration tests for code outside tests")]

use std::borrow::Cow;

use culvert_routing::cors::{Allowed, Cors, Credentials, OriginPattern, Preflight, origin};
use culvert_routing::filters::{Answer, FilteredRequest, apply_to_request, apply_to_response};
use culvert_routing::model::{Filter, PathMatch, Redirect, RedirectStatus, Scheme};
use culvert_routing_oracle::cors as oracle;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

fn allowed<T>(texts: &[String], read: impl Fn(&str) -> T) -> Allowed<T> {
    match texts {
        [any] if any == "*" => Allowed::Any,
        these => Allowed::These(these.iter().map(|text| read(text)).collect()),
    }
}

fn filter(of: &oracle::Filter) -> Cors {
    let name = |text: &str| text.parse::<HeaderName>().unwrap();
    Cors {
        origins: allowed(&of.origins, |text| OriginPattern::parse(text).unwrap()),
        methods: allowed(&of.methods, |text| text.parse::<Method>().unwrap()),
        headers: allowed(&of.headers, name),
        exposed: allowed(&of.exposed, name),
        credentials: if of.credentials { Credentials::Allowed } else { Credentials::Omitted },
        max_age: 5,
    }
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
}

/// The request that a browser sends before that of a script.
fn preflight(script: &oracle::Script) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("origin", script.origin.parse().unwrap());
    headers.insert("access-control-request-method", script.method.parse().unwrap());
    if !script.headers.is_empty() {
        headers.insert("access-control-request-headers", script.headers.join(",").parse().unwrap());
    }
    headers
}

fn answer(filters: &[Filter], method: &Method, headers: &mut HeaderMap) -> Option<Answer> {
    let mut request = FilteredRequest {
        method,
        scheme: Scheme::Http,
        port: 80,
        host: Cow::Borrowed("api.example"),
        path: Cow::Borrowed("/"),
        query: None,
        headers,
    };
    apply_to_request(filters, &PathMatch::Prefix("/".into()), &mut request, |_, _, _| {})
}

fn list(of: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let some = subsequence(of, 0..=of.len()).prop_map(|all| all.into_iter().map(str::to_owned).collect());
    prop_oneof![2 => some, 1 => Just(vec!["*".to_owned()])]
}

fn any_filter() -> impl Strategy<Value = oracle::Filter> {
    let origins = list(&[
        "https://a.example",
        "http://a.example",
        "https://*.a.example",
        "https://*.a.example:8443",
        "http://*",
        "http://*:8080",
        "https://A.Example:443",
    ]);
    let names = || list(&["x-a", "X-B", "authorization"]);
    (origins, list(&["GET", "PUT", "DELETE", "PATCH"]), names(), names(), any::<bool>()).prop_map(
        |(origins, methods, headers, exposed, credentials)| oracle::Filter {
            origins,
            methods,
            headers,
            exposed,
            credentials,
        },
    )
}

fn any_script() -> impl Strategy<Value = oracle::Script> {
    let origin = select(&[
        "https://a.example",
        "https://A.example",
        "https://a.example:443",
        "https://a.example:8443",
        "http://a.example",
        "http://a.example:8080",
        "https://b.a.example",
        "https://c.b.a.example:8443",
        "https://ba.example",
        "https://.a.example",
        "https://a.example.evil",
        "http://[::1]",
        "http://[::1]:8080",
        "ftp://a.example",
        "null",
    ]);
    let method = select(&["GET", "POST", "PUT", "put", "DELETE", "OPTIONS"]);
    let headers = subsequence(&["x-a", "x-b", "x-c", "authorization"], 0..=2);
    (origin, method, headers, any::<bool>()).prop_map(|(origin, method, headers, includes)| oracle::Script {
        origin: origin.to_owned(),
        method: method.to_owned(),
        headers: headers.into_iter().map(str::to_owned).collect(),
        includes,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_browser_lets_through_what_was_meant_and_nothing_else(written in any_filter(), script in any_script()) {
        let cors = filter(&written);
        let Some(Answer::Preflight(answer)) =
            answer(&[Filter::Cors(cors.clone())], &Method::OPTIONS, &mut preflight(&script))
        else {
            panic!("a preflight is answered")
        };
        let (status, headers) = match &answer {
            Preflight::Granted(headers) => (204, fields(headers)),
            Preflight::Refused => (403, Vec::new()),
        };
        prop_assert_eq!(oracle::preflight(&script, status, &headers), written.allows(&script), "{:?}", answer);
        let star = headers.iter().any(|(_, value)| value.contains('*'));
        prop_assert!(!(written.credentials && star), "no * with credentials: {:?}", headers);

        // The request proper, with a backend that has an opinion of its own.
        let mut response = HeaderMap::new();
        response.insert("access-control-allow-origin", "https://backend.example".parse().unwrap());
        response.insert("access-control-allow-credentials", "true".parse().unwrap());
        response.insert("x-own", "1".parse().unwrap());
        let origin = HeaderValue::from_str(&script.origin).unwrap();
        cors.apply(Some(&origin), &mut response);
        let may_read = written.allows_origin(&script.origin) && (!script.includes || written.credentials);
        prop_assert_eq!(oracle::check(&script, &fields(&response)), may_read, "{:?}", response);
        prop_assert!(!(written.credentials && fields(&response).iter().any(|(_, value)| value.contains('*'))));
        let says_credentials = response.contains_key("access-control-allow-credentials");
        prop_assert_eq!(says_credentials, written.credentials && written.allows_origin(&script.origin));
    }

    #[test]
    fn a_pattern_is_written_as_it_is_read(written in any_filter()) {
        for text in written.origins.iter().filter(|text| *text != "*") {
            let pattern = OriginPattern::parse(text).unwrap();
            prop_assert_eq!(OriginPattern::parse(&pattern.to_string()), Some(pattern));
        }
    }
}

#[test]
fn what_is_no_pattern_is_not_read() {
    let texts = [
        "",
        "a.example",
        "https://",
        "https://a..b",
        "ftp://a.example",
        "https://a.*.b",
        "https://a*",
        "https://a/b",
    ];
    for text in texts.into_iter().chain([
        "https://a:0",
        "https://a:65536",
        "https://a:+1",
        "https://*.",
        "null",
        "https://[::1]",
    ]) {
        assert_eq!(OriginPattern::parse(text), None, "{text}");
    }
}

#[test]
fn what_is_no_preflight_goes_on() {
    let cors = Filter::Cors(filter(&oracle::Filter { origins: vec!["*".to_owned()], ..Default::default() }));
    let headers = |lines: &[(&'static str, &'static str)]| -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    };
    let whole = [("origin", "https://a.example"), ("access-control-request-method", "PUT")];
    for (method, lines) in
        [(Method::GET, &whole[..]), (Method::OPTIONS, &whole[..1]), (Method::OPTIONS, &whole[1..])]
    {
        assert_eq!(
            answer(std::slice::from_ref(&cors), &method, &mut headers(lines)),
            None,
            "{method} {lines:?}"
        );
    }
    let redirect =
        Redirect { scheme: None, hostname: None, path: None, port: None, status: RedirectStatus::Found };
    let filters = [Filter::Redirect(redirect), cors];
    let answered = answer(&filters, &Method::OPTIONS, &mut headers(&whole));
    assert!(matches!(answered, Some(Answer::Preflight(_))), "also behind a redirect: {answered:?}");
}

#[test]
fn caches_are_told_what_the_answer_depends_on() {
    let written = oracle::Filter { origins: vec!["https://a.example".to_owned()], ..Default::default() };
    let mut response = HeaderMap::new();
    response.insert("vary", "accept".parse().unwrap());
    apply_to_response(&[Filter::Cors(filter(&written))], None, &mut response);
    let vary: Vec<&str> = response.get_all("vary").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(vary, ["accept", "origin"]);
    let mut response = HeaderMap::new();
    let any = oracle::Filter { origins: vec!["*".to_owned()], ..Default::default() };
    apply_to_response(
        &[Filter::Cors(filter(&any))],
        Some(&"https://b.example".parse().unwrap()),
        &mut response,
    );
    assert_eq!(fields(&response), [("access-control-allow-origin".to_owned(), "*".to_owned())]);
}

#[test]
fn every_header_is_exposed_by_its_name_where_a_star_would_be_one() {
    let written = oracle::Filter {
        origins: vec!["*".to_owned()],
        exposed: vec!["*".to_owned()],
        credentials: true,
        ..Default::default()
    };
    let mut response = HeaderMap::new();
    response.insert("x-total", "7".parse().unwrap());
    filter(&written).apply(Some(&"https://a.example".parse().unwrap()), &mut response);
    assert_eq!(response["access-control-expose-headers"], "x-total");
}

#[test]
fn two_origins_are_none_and_a_method_is_a_token() {
    let any = vec!["*".to_owned()];
    for origins in [&["*"], &["https://a.example"]] {
        let origins = origins.map(str::to_owned).to_vec();
        let cors = filter(&oracle::Filter { origins, methods: any.clone(), ..Default::default() });
        let asked = |origins: &[&'static str], method: &str| {
            let lines = origins.iter().map(|of| (http::header::ORIGIN, HeaderValue::from_static(of)));
            let mut headers = HeaderMap::from_iter(lines);
            headers.insert("access-control-request-method", method.parse().unwrap());
            (origin(&headers).is_some(), cors.preflight(&Method::OPTIONS, &headers))
        };
        assert!(matches!(asked(&["https://a.example"], "BREW"), (true, Some(Preflight::Granted(_)))));
        let both = ["https://a.example", "https://evil.example"];
        assert_eq!(asked(&both, "PUT"), (false, Some(Preflight::Refused)));
        assert_eq!(asked(&["https://a.example"], "BAD METHOD"), (true, Some(Preflight::Refused)));
        assert_eq!(asked(&[], "PUT"), (false, None), "no preflight");
    }
}
