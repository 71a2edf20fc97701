use super::*;

fn wire() -> wire::Route {
    let exact =
        |text: &str| Some(wire::ValueMatch { kind: Some(wire::value_match::Kind::Exact(text.to_owned())) });
    let service = |name: &str, weight| wire::RouteBackend {
        weight,
        filters: vec![wire::RouteFilter {
            kind: Some(wire::route_filter::Kind::RequestHeaders(wire::HeaderEdit {
                set: vec![wire::Header { name: "X-To".to_owned(), value: name.to_owned() }],
                ..wire::HeaderEdit::default()
            })),
        }],
        target: Some(wire::route_backend::Target::Service(wire::ServiceTarget {
            service: format!("shop/{name}"),
            port: 80,
        })),
    };
    wire::Route {
        kind: wire::RouteKind::Http.into(),
        namespace: "shop".to_owned(),
        name: "canary".to_owned(),
        created: 7,
        parent: Some(wire::route::Parent::Service(wire::ServiceParent {
            service: "shop/cart".to_owned(),
            ports: vec![80, 81],
            consumer_namespace: String::new(),
        })),
        hostnames: Vec::new(),
        rules: vec![
            wire::RouteRule {
                name: "testers".to_owned(),
                matches: vec![wire::RouteMatch {
                    path: Some(wire::route_match::Path::Prefix("/a".to_owned())),
                    method: "GET".to_owned(),
                    headers: vec![wire::NamedMatch { name: "X-Tester".to_owned(), value: exact("yes") }],
                    query: vec![wire::NamedMatch { name: "q".to_owned(), value: exact("1") }],
                }],
                filters: vec![wire::RouteFilter {
                    kind: Some(wire::route_filter::Kind::Rewrite(wire::Rewrite {
                        hostname: "other".to_owned(),
                        path: Some(wire::PathEdit {
                            kind: Some(wire::path_edit::Kind::ReplacePrefix("/b".to_owned())),
                        }),
                    })),
                }],
                backends: vec![service("v1", 9), service("v2", 1)],
                refuse: String::new(),
                request_timeout_ms: 1500,
                backend_request_timeout_ms: 0,
                retry: Some(wire::Retry { codes: vec![503], attempts: 2, backoff_ms: 10 }),
                session: Some(wire::SessionPersistence {
                    carrier: Some(wire::session_persistence::Carrier::Header("x-session".to_owned())),
                    absolute_timeout_ms: 60_000,
                }),
            },
            wire::RouteRule {
                matches: vec![wire::RouteMatch {
                    path: Some(wire::route_match::Path::Exact("/refused".to_owned())),
                    ..wire::RouteMatch::default()
                }],
                refuse: "retries".to_owned(),
                ..wire::RouteRule::default()
            },
        ],
    }
}

const NAME: &str = "HTTPRoute/shop/canary@shop/cart";

#[test]
fn a_route_arrives_as_it_was_meant() {
    let attached = route(NAME, wire()).unwrap();
    let Parent::Service { service, ports, consumers } = attached.parent else { panic!("a Service") };
    assert_eq!((&*service.0, &ports[..], consumers), ("shop/cart", &[80, 81][..], None));
    let route = attached.route.route();
    assert_eq!((&*route.key.name, route.created), ("canary", 7));
    let [testers, refused] = &route.rules[..] else { panic!("two rules") };
    assert_eq!(testers.name.as_deref(), Some("testers"));
    assert_eq!(testers.timeouts.request, Some(Duration::from_millis(1500)));
    assert_eq!(testers.timeouts.backend_request, None);
    let matched = &testers.matches[0];
    assert_eq!((&matched.path, &matched.method), (&PathMatch::Prefix("/a".into()), &Some(Method::GET)));
    assert_eq!(matched.headers[0].name, "x-tester");
    assert_eq!(matched.query[0].value, ValueMatch::Exact("1".into()));
    let Action::Forward(backends) = &testers.action else { panic!("forwards") };
    assert_eq!(backends.iter().map(|backend| backend.weight).collect::<Vec<_>>(), [9, 1]);
    assert!(matches!(&backends[1].filters[0], Filter::RequestHeaders(edit) if edit.set[0].1 == "v2"));
    assert!(
        matches!(&testers.filters[0], Filter::Rewrite(rewrite) if rewrite.hostname.as_deref() == Some("other"))
    );
    assert!(matches!(&refused.action, Action::Refuse(why) if &**why == "retries"));
}

#[test]
fn a_consumer_and_a_listener_are_told_apart() {
    let mut consumer = wire();
    let Some(wire::route::Parent::Service(parent)) = &mut consumer.parent else { panic!("a Service") };
    parent.consumer_namespace = "audit".to_owned();
    let Parent::Service { consumers, .. } = route(NAME, consumer).unwrap().parent else {
        panic!("a Service")
    };
    assert_eq!(consumers.as_deref(), Some("audit"));
    let at_listener =
        wire::Route { parent: Some(wire::route::Parent::Listener("edge/gw/web".to_owned())), ..wire() };
    let parent = route("HTTPRoute/shop/canary@edge/gw/web", at_listener).unwrap().parent;
    assert_eq!(parent, Parent::Listener("edge/gw/web".into()));
}

fn nobody() -> Option<wire::mirror::Target> {
    Some(wire::mirror::Target::Invalid("for a test".to_owned()))
}

fn mirror(route: &mut wire::Route, mirror: wire::Mirror) {
    route.rules[0].filters[0].kind = Some(wire::route_filter::Kind::Mirror(mirror));
}

fn cors(route: &mut wire::Route, origins: &[&str], headers: &[&str]) {
    let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
    let cors = wire::Cors { origins: texts(origins), headers: texts(headers), ..wire::Cors::default() };
    route.rules[0].filters[0].kind = Some(wire::route_filter::Kind::Cors(cors));
}

fn retry(route: &mut wire::Route, attempts: u32, code: u32) {
    route.rules[0].retry = Some(wire::Retry { codes: vec![code], attempts, backoff_ms: 0 });
}

#[test]
fn what_makes_no_sense_is_refused_by_field() {
    let refused = |change: fn(&mut wire::Route)| {
        let mut changed = wire();
        change(&mut changed);
        route(NAME, changed).unwrap_err().to_string()
    };
    for (change, expected) in [
        ((|route| route.kind = 9) as fn(&mut wire::Route), "kind: the value 9 is not known"),
        (|route| route.parent = None, "parent: missing"),
        (|route| route.name = "other".to_owned(), "the resource is named"),
        (|route| route.rules[0].matches.clear(), "rules.matches: missing"),
        (|route| route.rules[0].matches[0].path = None, "rules.matches.path: missing"),
        (|route| route.rules[0].matches[0].method = "G T".to_owned(), "rules.matches.method: \"G T\""),
        (|route| route.rules[0].matches[0].headers[0].name = "a b".to_owned(), "header name: \"a b\""),
        (|route| route.rules[0].matches[0].headers[0].value = None, "rules.matches.headers.value: missing"),
        (|route| route.rules[0].filters[0].kind = None, "filters.kind: missing"),
        (|route| mirror(route, wire::Mirror::default()), "filters.mirror.target: missing"),
        (
            |route| mirror(route, wire::Mirror { target: nobody(), numerator: 2, denominator: 1 }),
            "filters.mirror.numerator: \"2 of 1\"",
        ),
        (|route| cors(route, &["a.example"], &[]), "filters.cors.origins: \"a.example\""),
        (|route| cors(route, &["*", "https://a.example"], &[]), "filters.cors.origins: \"*\""),
        (|route| cors(route, &["*"], &["a b"]), "filters.cors.headers: \"a b\""),
        (|route| retry(route, 0, 503), "rules.retry.attempts"),
        (|route| retry(route, 1, 99_999), "rules.retry.codes: \"99999\""),
        (|route| route.rules[0].backends[0].target = None, "rules.backends.target: missing"),
        (
            |route| route.rules[0].matches[0].path = Some(wire::route_match::Path::Regex("(".to_owned())),
            "the route does not compile",
        ),
    ] {
        let error = refused(change);
        assert!(error.contains(expected), "{error} does not say {expected}");
    }
}

#[test]
fn of_a_route_that_cannot_be_read_the_parent_is_known_all_the_same() {
    let of = |name: &str, route: Option<&wire::Route>| unusable(name, route, "why").map(|one| one.parent);
    let service = |ports: &[u16]| {
        Some(Parent::Service {
            service: ServiceKey("shop/cart".into()),
            ports: ports.to_vec(),
            consumers: None,
        })
    };
    assert_eq!(of(NAME, Some(&wire())), service(&[80, 81]));
    assert_eq!(of(NAME, None), service(&[]));
    assert_eq!(of("HTTPRoute/a/b@edge/gw/web", None), Some(Parent::Listener("edge/gw/web".into())));
    assert_eq!(of("nonsense", None), None);
}

#[test]
fn listeners_are_checked() {
    let good = wire::Listener {
        gateway: "edge/gw".to_owned(),
        name: "web".to_owned(),
        port: 8080,
        hostname: "*.example.com".to_owned(),
        protocol: wire::ListenerProtocol::Http.into(),
    };
    let converted = listener("edge/gw/web", good.clone()).unwrap();
    assert_eq!((converted.port, converted.hostname), (8080, Some(Hostname::Wildcard("example.com".into()))));
    assert!(listener("edge/gw/other", good.clone()).is_err());
    assert!(listener("edge/gw/web", wire::Listener { port: 0, ..good.clone() }).is_err());
    assert!(listener("edge/gw/web", wire::Listener { protocol: 7, ..good }).is_err());
}
