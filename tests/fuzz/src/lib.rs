//! What must hold for every parser that strangers feed, whatever they send. Each function takes bytes and panics when its
//! invariant does not hold; `tests/fuzz/run` searches for such bytes with libFuzzer, the tests try the seeds in `corpus/`.

mod question;

use std::str::from_utf8;
use std::sync::{Arc, LazyLock};

use culvert_identity::token::{Issuer, Verifier};
use culvert_node_proxy::http::blocks::{FRAME_HEAD, Walk, Walked, has_target_over};
use culvert_node_proxy::http::chunks::{Chunks, Taken};
use culvert_node_proxy::http::head::{Judged, judge};
use culvert_node_proxy::inbound::{grpc_probe as health, http_probe as probe};
use culvert_node_proxy::outbound::client_hello::{Read, Reader};
use culvert_node_proxy::outbound::protocol;
use culvert_node_proxy::session::{self, Scope, SessionKeys};
use culvert_node_proxy::state::model::ProbeCheck;
use culvert_node_proxy::tunnel::headers;
use culvert_routing::host::Host;
use culvert_routing::model::{
    Action, HeaderMatch, Match, PathMatch, QueryMatch, Route, RouteKey, RouteKind, Rule, SessionPersistence,
    Timeouts, ValueMatch,
};
use culvert_routing::path::normalize;
use culvert_routing::session::{Carrier, CookieName, CookiePath, Lifetime};
use culvert_routing::{CompiledRoute, CompiledRule, RequestView, RouteTable};
use culvert_routing_oracle as oracle;
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};

pub use question::dns_question;

/// A fuzz target: its name, which is that of its directory of seeds, and what it checks.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 16] = [
    ("request_head", request_head),
    ("chunked_body", chunked_body),
    ("http2_head", http2_head),
    ("request_path", request_path),
    ("request_host", request_host),
    ("first_bytes", first_bytes),
    ("client_hello", client_hello),
    ("connect_target", connect_target),
    ("route_pattern", route_pattern),
    ("token", token),
    ("request_query", request_query),
    ("http_probe", http_probe),
    ("grpc_probe", grpc_probe),
    ("certificate_request", certificate_request),
    ("dns_question", dns_question),
    ("session_cookie", session_cookie),
];

/// Heads of HTTP/1 requests: a complete head ends where it says, no part of it is complete or refused, and what follows
/// changes nothing.
pub fn request_head(bytes: &[u8]) {
    let Judged::Complete(head) = judge(bytes) else { return };
    assert!(head.length <= bytes.len());
    assert!(bytes[..head.length].ends_with(b"\r\n\r\n"), "the head ends with an empty line");
    assert_eq!(judge(&bytes[..head.length]), Judged::Complete(head), "what follows does not matter");
    for cut in 0..head.length {
        assert_eq!(judge(&bytes[..cut]), Judged::Partial, "cut at {cut}");
    }
}

/// Chunked bodies: the same whatever pieces they arrive in.
pub fn chunked_body(bytes: &[u8]) {
    let whole = Chunks::default().take(bytes);
    let mut piecewise = Chunks::default();
    let mut found = Taken::All;
    for (index, byte) in bytes.iter().enumerate() {
        match piecewise.take(std::slice::from_ref(byte)) {
            Taken::All => {}
            Taken::End(length) => {
                found = Taken::End(index + length);
                break;
            }
            Taken::Bad(length, why) => {
                found = Taken::Bad(index + length, why);
                break;
            }
        }
    }
    assert_eq!(whole, found);
}

/// Heads of HTTP/2 requests: they end in the same place whatever pieces they arrive in, never beyond what came or may come.
pub fn http2_head(bytes: &[u8]) {
    const MOST: usize = 200;
    let whole = Walk::default().go_on(bytes, MOST);
    let mut walk = Walk::default();
    let mut pieces = (0..=bytes.len()).map(|cut| walk.go_on(&bytes[..cut], MOST));
    let piecewise = pieces.find(|walked| *walked != Walked::Partial).unwrap_or(Walked::Partial);
    assert_eq!(piecewise, whole);
    let Walked::Whole(length) = whole else { return };
    assert!((FRAME_HEAD..=MOST.min(bytes.len())).contains(&length));
    let head = &bytes[..length];
    assert!(!has_target_over(head, length), "no longer than all of it");
    assert!(
        !has_target_over(head, 20) || has_target_over(head, 10),
        "what is longer than more is longer than less"
    );
}

/// Paths: the normal form is its own, and has nothing left to resolve.
pub fn request_path(bytes: &[u8]) {
    let Ok(raw) = from_utf8(bytes) else { return };
    let Ok(path) = normalize(raw) else { return };
    assert_eq!(normalize(&path).as_deref(), Ok(&*path), "idempotent");
    assert!(path == "*" || path.starts_with('/'));
    assert!(!path.contains("//"));
    assert!(path.split('/').all(|segment| segment != "." && segment != ".."));
    assert!(path.is_ascii() && !path.contains(['\\', '#', '?', ' ']));
}

/// Hosts: the name is its own, in lower case, without port or trailing dot.
pub fn request_host(bytes: &[u8]) {
    let Ok(text) = from_utf8(bytes) else { return };
    let Ok(host) = Host::parse(text) else { return };
    let name = host.name();
    assert!(!name.is_empty() && !name.ends_with('.') && !name.contains(char::is_uppercase));
    let again = Host::parse(name).map(|again| (again.name().to_owned(), again.port()));
    assert_eq!(again, Ok((name.to_owned(), None)));
}

/// First bytes of a connection: what was told apart stays so when more arrives.
pub fn first_bytes(bytes: &[u8]) {
    let mut told = None;
    for length in 0..=bytes.len() {
        let first = protocol::first(&bytes[..length]);
        if told.is_some() {
            assert_eq!(first, told, "after {length} bytes");
        }
        told = first;
    }
}

/// ClientHellos: the same whatever pieces they arrive in, and the server name is its own, in lower case and without trailing dot.
pub fn client_hello(bytes: &[u8]) {
    let whole = Reader::default().read(bytes);
    let mut reader = Reader::default();
    let step = 1 + bytes.len() / 8;
    let ends = (0..bytes.len()).step_by(step).chain([bytes.len()]);
    let mut pieces = ends.map(|end| reader.read(&bytes[..end]));
    let piecewise = pieces.find(|read| *read != Read::Partial).unwrap_or(Read::Partial);
    match (&whole, &piecewise) {
        // In other words perhaps.
        (Read::Not(_), Read::Not(_)) => {}
        _ => assert_eq!(whole, piecewise),
    }
    if let Read::Whole { server_name: Some(name) } = whole {
        assert!(!name.is_empty() && !name.ends_with('.') && !name.contains(char::is_uppercase), "{name}");
        assert!(name.parse::<std::net::IpAddr>().is_err(), "{name}");
    }
}

/// Targets of CONNECT: an address and a port, written in one way only.
pub fn connect_target(bytes: &[u8]) {
    let Ok(uri) = Uri::try_from(bytes) else { return };
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    let authority = uri.authority().map(ToString::to_string);
    *request.uri_mut() = uri;
    if let Ok(address) = headers::destination(&request) {
        assert_eq!(authority.and_then(|text| text.parse().ok()), Some(address));
    }
}

/// Expressions and paths of routes: compiled or refused with a place, and never a panic or an endless search.
pub fn route_pattern(bytes: &[u8]) {
    let Ok(text) = from_utf8(bytes) else { return };
    let matches =
        [PathMatch::Regex(text.into()), PathMatch::Prefix(text.into()), PathMatch::Exact(text.into())].map(
            |path| Match {
                path,
                method: None,
                headers: vec![HeaderMatch {
                    name: HeaderName::from_static("x-a"),
                    value: ValueMatch::Regex(text.into()),
                }],
                query: Vec::new(),
            },
        );
    for one in matches {
        if let Err(error) = CompiledRoute::compile(route(vec![one])) {
            assert!(error.to_string().contains("rules[0]"), "{error}");
        }
    }
}

/// A route with a rule for each match.
fn route(matches: Vec<Match>) -> Route {
    let rule = |one| Rule {
        name: None,
        matches: vec![one],
        filters: Vec::new(),
        action: Action::Forward(Vec::new()),
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    };
    let key = RouteKey { kind: RouteKind::Http, namespace: "n".into(), name: "r".into() };
    Route { key, created: 0, hostnames: Vec::new(), rules: matches.into_iter().map(rule).collect() }
}

/// Queries: parameters are found as the transcription of the specification finds them.
pub fn request_query(bytes: &[u8]) {
    /// A name and its value, by rule; the last rule takes what is left.
    const PARAMETERS: [(&str, &str); 4] = [("a", "1"), ("q", "a b"), ("r%", "+"), ("\u{e4}", "")];
    static TABLE: LazyLock<RouteTable> = LazyLock::new(|| {
        let query = |(name, value): (&str, &str)| {
            vec![QueryMatch { name: name.into(), value: ValueMatch::Exact(value.into()) }]
        };
        let queries = PARAMETERS.into_iter().map(query).chain([Vec::new()]);
        let one =
            |query| Match { path: PathMatch::Prefix("/".into()), method: None, headers: Vec::new(), query };
        let compiled = CompiledRoute::compile(route(queries.map(one).collect())).expect("a valid route");
        RouteTable::new(vec![compiled.into()])
    });
    let Ok(text) = from_utf8(bytes) else { return };
    let headers = HeaderMap::new();
    let request = RequestView {
        method: &Method::GET,
        host: "",
        path: "/",
        query: Some(text),
        headers: &headers,
        grpc: false,
    };
    let rules = PARAMETERS.iter().map(|(name, value)| oracle::Match {
        path: oracle::Path::Prefix("/".to_owned()),
        method: None,
        headers: Vec::new(),
        query: vec![((*name).to_owned(), oracle::Value::Exact((*value).to_owned()))],
    });
    let asked = oracle::Request {
        http2: false,
        method: "GET".to_owned(),
        host: String::new(),
        path: "/".to_owned(),
        query: Some(text.to_owned()),
        headers: Vec::new(),
    };
    let matches =
        |rule: &oracle::Match| oracle::matching::matches(oracle::Kind::Http, rule, &asked, &|_, _| false);
    let expected = rules.enumerate().find(|(_, rule)| matches(rule));
    let expected = expected.map_or(PARAMETERS.len(), |(index, _)| index);
    assert_eq!(TABLE.select(&request).map(|selected| selected.rule.index()), Some(expected), "{text:?}");
}

/// HTTP probes in plaintext: what reaches the application is made of what is declared and of nothing else, is itself the
/// declared probe, and comes of nothing less than the whole request.
pub fn http_probe(bytes: &[u8]) {
    const ALLOWED: [&str; 5] = ["host", "x-probe", "user-agent", "accept", "connection"];
    static DECLARED: LazyLock<[ProbeCheck; 2]> = LazyLock::new(|| {
        let get = |path: &str, headers: Vec<(String, String)>| ProbeCheck::HttpGet {
            path: path.to_owned(),
            headers,
            https: false,
        };
        [get("/healthz?full=1", vec![("X-Probe".to_owned(), "yes".to_owned())]), get("/live", Vec::new())]
    });
    let declared: Vec<&ProbeCheck> = DECLARED.iter().collect();
    let check = |bytes: &[u8]| probe::check(bytes, &declared, ([10, 1, 0, 5], 8080).into());
    let Ok(Some(passed)) = check(bytes) else { return };
    assert_eq!(check(&passed), Ok(Some(passed.clone())), "it is the probe itself");
    let head = String::from_utf8_lossy(&passed);
    let mut lines = head.strip_suffix("\r\n\r\n").expect("a head and nothing after it").split("\r\n");
    let first = lines.next().unwrap_or_default();
    assert!(matches!(first, "GET /healthz?full=1 HTTP/1.1" | "GET /live HTTP/1.1"), "{first}");
    for line in lines {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        assert!(ALLOWED.contains(&name.as_str()), "{line}");
    }
    for cut in 0..bytes.len() {
        assert!(!matches!(check(&bytes[..cut]), Ok(Some(_))), "cut at {cut}");
    }
}

/// gRPC probes in plaintext: a message that asks for a service says so again when it is made anew, and is a message only when
/// it is whole.
pub fn grpc_probe(bytes: &[u8]) {
    let Some(service) = health::asked_service(bytes) else { return };
    assert_eq!(health::asked_service(&health::health_check(service.clone())), Some(service));
    for cut in 0..bytes.len() {
        assert_eq!(health::asked_service(&bytes[..cut]), None, "cut at {cut}");
    }
}

/// Certificate requests: only what is signed with its own key passes, and nobody signs here but those who made the seeds, all
/// for one identity.
pub fn certificate_request(bytes: &[u8]) {
    let Ok(text) = from_utf8(bytes) else { return };
    if let Ok(request) = culvert_ca::request::check(text) {
        assert_eq!(request.identity.uri(), "spiffe://cluster.local/ns/shop/sa/cart", "nobody signed that");
    }
}

/// Cookies of sessions: what nobody sealed is none, and what the response says beside it reads as the session that it begins.
pub fn session_cookie(bytes: &[u8]) {
    static KEYS: LazyLock<Arc<SessionKeys>> =
        LazyLock::new(|| Arc::new(SessionKeys::new([(1, &[7; 32][..])]).expect("a key")));
    static RULE: LazyLock<Arc<CompiledRule>> = LazyLock::new(|| {
        let everything = PathMatch::Prefix("/".into());
        let one = Match { path: everything, method: None, headers: Vec::new(), query: Vec::new() };
        let mut route = route(vec![one]);
        route.rules[0].session = Some(SessionPersistence {
            carrier: Carrier::Cookie {
                name: CookieName::parse("s").expect("a name"),
                lifetime: Lifetime::Session,
                path: CookiePath::Matched,
            },
            absolute_timeout: None,
        });
        CompiledRoute::compile(route).expect("a valid route").rules()[0].clone()
    });
    let Ok(line) = HeaderValue::from_bytes(bytes) else { return };
    let persistence = RULE.session().expect("as it was made");
    let read = |line: HeaderValue| {
        let headers = HeaderMap::from_iter([(COOKIE, line)]);
        session::Request::read(Scope::Rule(&RULE), persistence, &headers, &KEYS, 1)
    };
    let request = read(line);
    assert!(request.live.is_empty(), "nobody sealed that");
    let said = request.answer(&PathMatch::Prefix("/".into()), None, "n/s:80".to_owned(), "uid");
    let (name, value) = said.expect("a session is begun");
    assert_eq!(name, SET_COOKIE);
    let value = value.to_str().expect("visible ASCII");
    let (pair, attributes) = value.split_once("; ").expect("attributes");
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Strict");
    let begun = read(HeaderValue::from_str(pair).expect("a part of a value"));
    assert_eq!(begun.live.len(), 1, "{pair}");
    assert_eq!(begun.live[0].0.endpoint, "uid");
}

/// Tokens: only what the issuer signed is believed, and nobody but fuzzing's own issuer signs here.
pub fn token(bytes: &[u8]) {
    static VERIFIER: LazyLock<Verifier> = LazyLock::new(verifier);
    let Ok(text) = from_utf8(bytes) else { return };
    assert!(VERIFIER.verify(text).is_err(), "a token that nobody signed");
}

fn verifier() -> Verifier {
    let keys = tempfile::NamedTempFile::new().expect("a temporary file");
    let issuer = Issuer::generate("fuzzing").expect("a key");
    std::fs::write(keys.path(), issuer.jwks()).expect("the file is ours");
    Verifier::open(keys.path(), "fuzzing", "culvert.dev").expect("keys that were just written")
}
