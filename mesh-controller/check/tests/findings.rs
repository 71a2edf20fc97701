//! Findings and what is nearly one, beyond the examples of `docs/check.md`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside test functions are tests too")]

mod common;

use common::{CART, TO_CART, at_cart, findings, object, one, route, service, told, with};
use culvert_check::{Absent, Code, Finding};

/// Rules with these matches each.
fn matching(rules: &[&str]) -> String {
    let rules: Vec<String> = rules.iter().map(|of| format!("{{matches: [{of}], {TO_CART}}}")).collect();
    at_cart(&rules.join(", "))
}

#[test]
fn a_match_is_named_only_where_it_never_wins() {
    let hidden = ["CV401 spec.rules[1].matches[0]"];
    let cases: &[(&[&str], &[&str])] = &[
        // The same, by other words.
        (&["{path: {value: /a}}", "{path: {value: /a/}}"], &hidden),
        (&["{path: {type: Exact, value: /a}}", "{path: {type: Exact, value: /a}}"], &hidden),
        (&["{path: {type: Exact, value: /a}}", "{path: {type: Exact, value: /a/}}"], &[]),
        (&["{path: {type: Exact, value: /a}}", "{path: {value: /a}}"], &[]),
        (&["{path: {value: /}}", "{path: {value: /a}}"], &[]),
        (&["{path: {value: /a}}", "{path: {value: /ab}}"], &[]),
        // More conditions go first, wherever they stand.
        (&["{path: {value: /a}}", "{path: {value: /a}, method: GET}"], &[]),
        (&["{path: {value: /a}}", "{path: {value: /a}, headers: [{name: x, value: v}]}"], &[]),
        (&["{headers: [{name: x, value: v}]}", "{headers: [{name: X, value: v}]}"], &hidden),
        (&["{headers: [{name: x, value: v}]}", "{headers: [{name: x, value: z}]}"], &[]),
        (&["{queryParams: [{name: x, value: v}]}", "{queryParams: [{name: X, value: v}]}"], &[]),
        (&["{queryParams: [{name: x, value: v}]}", "{queryParams: [{name: x, value: v}]}"], &hidden),
        (&["{method: GET}", "{method: POST}"], &[]),
        (&["{method: GET}", "{method: GET}"], &hidden),
        // Expressions.
        (&["{path: {type: RegularExpression, value: '/.*'}}", "{path: {value: /a}}"], &hidden),
        (&["{path: {type: RegularExpression, value: '/.*'}}", "{path: {type: Exact, value: /a}}"], &[]),
        (&["{path: {type: RegularExpression, value: '/a/.*'}}", "{path: {value: /a}}"], &[]),
        (&["{path: {type: RegularExpression, value: '/a(/.*)?'}}", "{path: {value: /a}}"], &hidden),
        (
            &[
                "{path: {type: RegularExpression, value: '/[0-9]+'}}",
                "{path: {type: RegularExpression, value: '/[0-9]+'}}",
            ],
            &hidden,
        ),
        (
            &[
                "{headers: [{name: x, type: RegularExpression, value: 'a.*'}]}",
                "{headers: [{name: x, value: abc}]}",
            ],
            &hidden,
        ),
        (
            &[
                "{headers: [{name: x, type: RegularExpression, value: 'a.*'}]}",
                "{headers: [{name: x, value: b}]}",
            ],
            &[],
        ),
        // One in another.
        (
            &[
                "{path: {type: RegularExpression, value: '/api/.*'}}",
                "{path: {type: RegularExpression, value: '/api/v1/.*'}}",
            ],
            &hidden,
        ),
        (
            &[
                "{path: {type: RegularExpression, value: '/api/v1/.*'}}",
                "{path: {type: RegularExpression, value: '/api/.*'}}",
            ],
            &[],
        ),
        (
            &[
                "{path: {type: RegularExpression, value: '/api/v[0-9]/.*'}}",
                "{path: {type: RegularExpression, value: '/api/v1/[a-z]+'}}",
            ],
            &hidden,
        ),
        (
            &[
                "{path: {type: RegularExpression, value: '(/b|/c)(/.*)?'}}",
                "{path: {type: RegularExpression, value: '/b'}}",
            ],
            &hidden,
        ),
        (
            &[
                "{path: {type: RegularExpression, value: '(/b|/c)(/.*)?'}}",
                "{path: {type: RegularExpression, value: '/bb'}}",
            ],
            &[],
        ),
        (
            &[
                "{headers: [{name: x, type: RegularExpression, value: '.*'}]}",
                "{headers: [{name: x, type: RegularExpression, value: 'foo|bar'}]}",
            ],
            &hidden,
        ),
        (
            &[
                "{headers: [{name: x, type: RegularExpression, value: 'foo|b.*'}]}",
                "{headers: [{name: x, type: RegularExpression, value: 'foo|car'}]}",
            ],
            &[],
        ),
        // Alone.
        (&[r"{path: {type: RegularExpression, value: '/api\?v=1'}}"], &["CV402 spec.rules[0].matches[0]"]),
        (&[r"{path: {type: RegularExpression, value: '/apis?'}}"], &[]),
        (&["{path: {type: RegularExpression, value: '/a//b'}}"], &["CV402 spec.rules[0].matches[0]"]),
        (&["{path: {type: RegularExpression, value: '/a b'}}"], &["CV402 spec.rules[0].matches[0]"]),
        (&[r"{path: {type: RegularExpression, value: '/x/\.\./y'}}"], &["CV402 spec.rules[0].matches[0]"]),
        (&[r"{path: {type: RegularExpression, value: '/x/\.\.\./y'}}"], &[]),
        (&["{method: CONNECT}"], &["CV402 spec.rules[0].matches[0]"]),
        (&["{path: {type: RegularExpression, value: 'a/.*'}}"], &["CV402 spec.rules[0].matches[0]"]),
        (&["{path: {type: RegularExpression, value: '.*/a'}}"], &[]),
        (&["{headers: [{name: x, value: ' y'}]}"], &["CV102 spec.rules[0].matches[0].headers[0].value"]),
        (&["{headers: [{name: x, value: 'y z'}]}"], &[]),
    ];
    for (rules, expected) in cases {
        assert_eq!(told(&matching(rules)), *expected, "{rules:?}");
    }
}

#[test]
fn expressions_of_grpc_are_for_one_segment_each() {
    let with = |methods: &[&str]| {
        let rules: Vec<String> =
            methods.iter().map(|of| format!("{{matches: [{{method: {{{of}}}}}], {TO_CART}}}")).collect();
        let spec = format!("{{parentRefs: [{CART}], rules: [{}]}}", rules.join(", "));
        told(&(service("shop/cart") + &object("GRPCRoute", "shop/cart", &spec)))
    };
    let regex = |service: &str| format!("type: RegularExpression, service: '{service}'");
    assert_eq!(with(&[&regex("a/b")]), ["CV402 spec.rules[0].matches[0]"]);
    assert_eq!(with(&[&regex("a.b")]), [""; 0]);
    assert_eq!(with(&[&regex("shop[.].*"), &regex("shop[.](Cart|Pay)")]), ["CV401 spec.rules[1].matches[0]"]);
    assert_eq!(with(&[&regex("shop[.]C.*"), &regex("shop[.](Cart|Pay)")]), [""; 0]);
}

#[test]
fn one_match_of_several_may_be_hidden_and_another_route_may_hide_it() {
    let rules = format!(
        "{{matches: [{{path: {{value: /a}}}}], {TO_CART}}}, \
         {{matches: [{{path: {{value: /b}}}}, {{path: {{value: /a}}}}], {TO_CART}}}"
    );
    let finding = one(&at_cart(&rules));
    assert_eq!((finding.code, &*finding.field), (Code::Hidden, "spec.rules[1].matches[1]"));
    assert!(finding.what.contains("spec.rules[0].matches[0] of the same route"), "{}", finding.what);
    let everything = format!("{{{TO_CART}}}");
    let two =
        service("shop/cart") + &route("shop/a", CART, &everything) + &route("shop/b", CART, &everything);
    let finding = one(&two);
    assert_eq!((&*finding.object, &*finding.field), ("HTTPRoute shop/b", "spec.rules[0]"));
    assert!(finding.what.contains("of HTTPRoute shop/a takes every request"), "{}", finding.what);
    // Both at ports of their own: nothing is hidden.
    let ports = object("Service", "shop/cart", "{ports: [{name: a, port: 80}, {name: b, port: 81}]}");
    let at = |name: &str, port: u16| {
        route(name, &CART.replace("cart}", &format!("cart, port: {port}}}")), &everything)
    };
    assert_eq!(told(&(ports.clone() + &at("shop/a", 80) + &at("shop/b", 81))), [""; 0]);
    // At one port of the two it may win.
    let wide = route("shop/b", CART, &everything);
    assert_eq!(told(&(ports + &at("shop/a", 80) + &wide)), [""; 0]);
}

#[test]
fn the_share_of_requests_that_fail_is_said() {
    let backends = |text: &str| findings(&at_cart(&format!("{{backendRefs: [{text}]}}")));
    let half = backends("{name: cart, port: 80}, {name: cart, port: 81}");
    assert!(
        half[0].code == Code::Unusable
            && half[0].what.ends_with("1 of 2 requests of the rule are answered 500")
    );
    let all = backends("{name: cart, port: 81}");
    assert!(all[0].what.ends_with("every request of the rule is answered 500"), "{}", all[0].what);
    let none = backends("{name: cart, port: 80}, {name: cart, port: 81, weight: 0}");
    assert!(none[0].what.ends_with("no request meets it"), "{}", none[0].what);
    let zero = backends("{name: cart, port: 80, weight: 0}");
    assert!(
        zero[0].code == Code::NoBackend
            && zero[0].what.contains("every request that no more specific rule takes")
    );
    let some = findings(&at_cart(&format!(
        "{{matches: [{{method: GET}}], backendRefs: [{{name: cart, port: 80, weight: 0}}]}}, {{{TO_CART}}}"
    )));
    assert!(some[0].what.contains("every request of the rule is"), "{}", some[0].what);
    assert_eq!(told(&at_cart("{filters: []}")), ["CV403 spec.rules[0]"]);
    let redirect = "{filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]}";
    assert_eq!(told(&at_cart(redirect)), [""; 0]);
    let route_as_backend =
        "{backendRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: child}]}";
    let delegated = one(&at_cart(route_as_backend));
    assert!(
        delegated.code == Code::Unusable && delegated.remedy.contains("same parent"),
        "{}",
        delegated.remedy
    );
}

#[test]
fn how_sure_it_is_that_something_is_missing() {
    let namespace = object("Namespace", "shop", "{}");
    let lonely = route("shop/cart", CART, &format!("{{{TO_CART}}}"));
    let other = service("shop/other");
    let near = service("shop/card");
    let codes = |absent: Absent, text: &str| -> Vec<Code> {
        with(absent, text).findings.iter().map(|finding| finding.code).collect()
    };
    assert_eq!(codes(Absent::Judged, &lonely), [Code::NotInFiles]);
    assert_eq!(codes(Absent::Judged, &(other + &lonely)), [Code::ProbablyMissing]);
    assert_eq!(codes(Absent::Judged, &(namespace + &lonely)), [Code::Missing]);
    assert_eq!(codes(Absent::Missing, &lonely), [Code::Missing]);
    assert_eq!(codes(Absent::There, &lonely), []);
    let report = with(Absent::Judged, &(near + &lonely));
    assert_eq!(report.findings[0].code, Code::ProbablyMissing);
    assert!(
        report.findings[0].what.contains("did you mean Service shop/card?"),
        "{}",
        report.findings[0].what
    );
    assert!(report.findings[0].what.contains("(2 references)"), "{}", report.findings[0].what);
}

const EDGE: &str = "{gatewayClassName: culvert, listeners: [{name: web, port: 80, protocol: HTTP}]}";

#[test]
fn parents_in_other_namespaces() {
    let rules = format!("{{{TO_CART}}}");
    let gateway = object("Gateway", "edge/edge", EDGE);
    let open = EDGE.replace("HTTP}", "HTTP, allowedRoutes: {namespaces: {from: All}}}");
    let open = object("Gateway", "edge/edge", &open);
    let written = service("shop/cart") + &route("shop/cart", "{name: edge, namespace: edge}", &rules);
    let finding = one(&(gateway.clone() + &written));
    assert_eq!((finding.code, &*finding.field), (Code::NamespaceNotAllowed, "spec.parentRefs[0]"));
    assert!(finding.remedy.contains("from: All"), "{}", finding.remedy);
    assert_eq!(told(&(open + &written)), [""; 0]);
    // Without the namespace, it is another Gateway.
    let forgotten = service("shop/cart") + &route("shop/cart", "{name: edge}", &rules);
    let report = with(Absent::Judged, &(gateway + &forgotten));
    assert_eq!(report.findings[0].code, Code::ProbablyMissing);
    assert_eq!(report.findings[0].remedy, "write namespace: edge");
    let section = object("Gateway", "shop/edge", EDGE)
        + &service("shop/cart")
        + &route("shop/cart", "{name: edge, sectionName: wbe}", &rules);
    let finding = one(&section);
    assert!(
        finding.code == Code::NoParent && finding.remedy.contains("80 (\"web\")")
            || finding.remedy.contains("80 (web)")
    );
}

#[test]
fn gateways_of_others_are_judged_by_what_holds_for_all() {
    let class = object(
        "GatewayClass",
        "other",
        "{controllerName: example.com/gateway, parametersRef: {group: a, kind: B, name: c}}",
    );
    let listeners = "{name: web, port: 80, protocol: HTTP}, {name: tls, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}}";
    let spec = format!("{{gatewayClassName: other, listeners: [{listeners}]}}");
    let auth = "filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: cart, port: 80}, http: {}}}]";
    let base = class + &object("Gateway", "edge/edge", &spec) + &service("shop/cart") + &service("edge/cart");
    let at = |namespace: &str, section: &str| {
        let parent = format!("{{name: edge, namespace: edge, sectionName: {section}}}");
        told(
            &(base.clone()
                + &route(&format!("{namespace}/cart"), &parent, &format!("{{{auth}, {TO_CART}}}"))),
        )
    };
    assert_eq!(at("edge", "web"), ["CV311 spec.gatewayClassName"]);
    assert_eq!(at("edge", "tls"), ["CV311 spec.gatewayClassName"]);
    assert_eq!(at("shop", "web"), ["CV311 spec.gatewayClassName", "CV302 spec.parentRefs[0]"]);
    assert_eq!(at("edge", "none"), ["CV311 spec.gatewayClassName", "CV301 spec.parentRefs[0]"]);
}

#[test]
fn mirrors_need_a_grant_at_a_gateway_only() {
    let mirror = format!(
        "{{filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: copy, namespace: lab, port: 80}}}}}}], {TO_CART}}}"
    );
    let services = service("shop/cart") + &service("lab/copy");
    let gateway = object("Gateway", "shop/edge", EDGE);
    let at_gateway = services.clone() + &gateway + &route("shop/cart", "{name: edge}", &mirror);
    let is_ungranted =
        |text: &str| told(text).iter().any(|of| of.starts_with("CV204 spec.rules[0].filters[0]"));
    assert!(is_ungranted(&at_gateway), "{:?}", told(&at_gateway));
    let grant = object(
        "ReferenceGrant",
        "lab/g",
        "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}",
    );
    assert!(!is_ungranted(&(at_gateway + &grant)));
    assert!(!is_ungranted(&(services + &route("shop/cart", CART, &mirror))));
}

#[test]
fn certificates_of_other_namespaces_need_a_grant() {
    let listener =
        "{name: web, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c, namespace: vault}]}}";
    let gateway =
        object("Gateway", "shop/edge", &format!("{{gatewayClassName: culvert, listeners: [{listener}]}}"));
    let namespace = object("Namespace", "vault", "{}");
    let grant = |kind: &str| {
        let from = format!("{{group: gateway.networking.k8s.io, kind: {kind}, namespace: shop}}");
        object(
            "ReferenceGrant",
            "vault/g",
            &format!("{{from: [{from}], to: [{{group: '', kind: Secret, name: c}}]}}"),
        )
    };
    let in_files = |absent: Absent, text: &str| -> Vec<Code> {
        let of_grants = |of: &&Finding| of.what.contains("ReferenceGrant");
        with(absent, text).findings.iter().filter(of_grants).map(|of| of.code).collect()
    };
    let codes = |text: &str| in_files(Absent::Judged, text);
    assert_eq!(codes(&gateway), [Code::NotInFiles]);
    assert_eq!(in_files(Absent::There, &gateway), []);
    assert_eq!(in_files(Absent::Missing, &gateway), [Code::NotGranted]);
    assert_eq!(codes(&(gateway.clone() + &namespace)), [Code::NotGranted]);
    assert_eq!(codes(&(gateway.clone() + &namespace + &grant("HTTPRoute"))), [Code::NotGranted]);
    assert_eq!(codes(&(gateway + &namespace + &grant("Gateway"))), []);
}

#[test]
fn parents_are_named_once_and_by_a_kind_that_is_one() {
    let rules = format!("{{{TO_CART}}}");
    let at = |parents: &str| told(&(service("shop/cart") + &route("shop/cart", parents, &rules)));
    assert_eq!(at(&CART.replace("Service", "Sevice")), ["CV301 spec.parentRefs[0]"]);
    let named = CART.replace("cart}", "cart, port: 80}");
    assert_eq!(at(&format!("{named}, {CART}")), ["CV102 spec.parentRefs[1]"]);
    assert_eq!(at(&format!("{named}, {named}")), ["CV102 spec.parentRefs[1]"]);
    let section = CART.replace("cart}", "cart, sectionName: http}");
    assert_eq!(at(&format!("{named}, {section}")), [""; 0]);
}

#[test]
fn consumers_are_told_whom_they_are_for() {
    let everything = "{backendRefs: [{name: cart, namespace: shop, port: 80}]}";
    let enrolled = |name: &str, labels: &str| {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
    };
    let consumer = route("audit/cart", &CART.replace("kind", "namespace: shop, kind"), everything);
    let base = service("shop/cart") + &enrolled("shop", "culvert.dev/mesh: enabled") + &consumer;
    let outside = base.clone() + &enrolled("audit", "team: a");
    assert_eq!(told(&outside), ["CV306 spec.parentRefs[0]"]);
    assert_eq!(told(&(base.clone() + &enrolled("audit", "culvert.dev/mesh: enabled"))), [""; 0]);
    // Nobody is enrolled by these files: others may do it.
    let unlabelled =
        service("shop/cart") + &enrolled("shop", "a: b") + &consumer + &enrolled("audit", "team: a");
    assert_eq!(told(&unlabelled), [""; 0]);
    // But a namespace that is kept out stays out.
    let kept_out = service("shop/cart") + &consumer + &enrolled("audit", "culvert.dev/mesh: disabled");
    assert_eq!(told(&kept_out), ["CV306 spec.parentRefs[0]"]);
    let system = base.replace("audit", "kube-system");
    assert_eq!(told(&system), ["CV306 spec.parentRefs[0]"]);
}

#[test]
fn a_value_that_types_and_schema_refuse_is_told_once() {
    let finding = one(&at_cart("{backendRefs: [{name: cart, port: 0}]}"));
    assert_eq!((finding.code, &*finding.field), (Code::Schema, "spec.rules[0].backendRefs[0].port"));
    let both = told(&at_cart("{backendRefs: [{name: cart, port: 0, weight: -1}]}"));
    assert_eq!(both.len(), 2, "{both:?}");
}

#[test]
fn kinds_of_other_groups_are_left_alone_and_mistaken_groups_are_not() {
    let told = |version: &str, kind: &str| {
        told(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n"))
    };
    assert_eq!(told("networking.istio.io/v1", "Gateway"), [""; 0]);
    assert_eq!(told("serving.knative.dev/v1", "Service"), [""; 0]);
    assert_eq!(told("batch/v1", "Job"), [""; 0]);
    assert_eq!(told("networking.k8s.io/v1", "HTTPRoute"), ["CV105 apiVersion"]);
    assert_eq!(told("v1", "Deployment"), ["CV105 apiVersion"]);
    assert_eq!(told("extensions/v1beta1", "Deployment"), ["CV106 apiVersion"]);
    assert_eq!(told("autoscaling/v2beta2", "HorizontalPodAutoscaler"), ["CV106 apiVersion"]);
    assert_eq!(told("autoscaling/v2", "HorizontalPodAutoscaler"), [""; 0]);
    assert_eq!(told("gateway.networking.k8s.io/v1alpha2", "ReferencePolicy"), ["CV106 kind"]);
}

#[test]
fn nothing_that_is_written_stops_it() {
    let texts = [
        "",
        "null",
        "[]",
        "3",
        "{}",
        "kind: HTTPRoute",
        "apiVersion: v1",
        "a: &a [*a]",
        "\u{0}",
        "---\n---\n",
        "\t",
    ];
    for text in texts {
        let _ = findings(text);
    }
    let odd = r#"{parentRefs: {a: 1}, hostnames: [1], rules: [{matches: 3, backendRefs: [null, {}, "x"], filters: [{}]}]}"#;
    assert!(!findings(&object("HTTPRoute", "shop/odd", odd)).is_empty());
    let odd = "{listeners: [{name: 1, tls: []}, null], gatewayClassName: []}";
    assert!(!findings(&object("Gateway", "shop/odd", odd)).is_empty());
}

/// A Gateway with this `spec` beside its class.
#[test]
fn a_rule_of_connections_with_weights_of_0_is_named_and_one_with_a_weight_is_not() {
    let rule = |kind: &str, backends: &str| {
        let hostnames = if kind == "TLSRoute" { "hostnames: [a.example], " } else { "" };
        let spec = format!("{{parentRefs: [{CART}], {hostnames}rules: [{{backendRefs: [{backends}]}}]}}");
        told(&(service("shop/cart") + &object(kind, "shop/r", &spec)))
    };
    let named = "CV405 spec.rules[0].backendRefs".to_owned();
    for kind in ["TCPRoute", "TLSRoute"] {
        let off = "{name: cart, port: 80, weight: 0}";
        assert!(rule(kind, off).contains(&named), "{kind}");
        assert!(rule(kind, &format!("{off}, {off}")).contains(&named), "{kind}");
        assert!(!rule(kind, &format!("{off}, {{name: cart, port: 80}}")).contains(&named), "{kind}");
        assert!(!rule(kind, "{name: cart, port: 80, weight: 1}").contains(&named), "{kind}");
    }
}

#[test]
fn of_two_tcp_routes_at_a_port_the_younger_is_named_and_at_two_ports_none_is() {
    let route = |name: &str, day: u32, port: u16| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\n\
             metadata: {{name: {name}, namespace: shop, creationTimestamp: 2026-01-0{day}T00:00:00Z}}\n\
             spec: {{parentRefs: [{{group: '', kind: Service, name: db, port: {port}}}], \
             rules: [{{backendRefs: [{{name: db, port: {port}}}]}}]}}\n"
        )
    };
    let ports = "{selector: {app: a}, ports: [{name: a, port: 5432}, {name: b, port: 5433}]}";
    let db = object("Service", "shop/db", ports);
    let same = one(&(db.clone() + &route("newer", 2, 5432) + &route("older", 1, 5432)));
    assert_eq!((same.code, &*same.field), (Code::Conflicted, "spec.parentRefs[0]"));
    assert!(same.what.contains("taken by TCPRoute shop/older;"), "{}", same.what);
    let apart = db + &route("newer", 2, 5433) + &route("older", 1, 5432);
    assert_eq!(told(&apart), Vec::<String>::new());
}

#[test]
fn a_cors_filter_is_named_where_no_preflight_reaches_it() {
    let cors = "filters: [{type: CORS, cors: {allowOrigins: ['*']}}]";
    let rule = |of: &str| format!("{{matches: [{of}], {cors}, {TO_CART}}}");
    let plain = |of: &str| format!("{{matches: [{of}], {TO_CART}}}");
    let missed = "CV406 spec.rules[0].matches[0]";
    let cases = [
        (vec![rule("{method: GET}")], vec![missed]),
        (vec![rule("{headers: [{name: x-a, value: b}]}")], vec![missed]),
        (
            vec![rule("{path: {value: /a}}, {path: {value: /b}, method: PUT}")],
            vec!["CV406 spec.rules[0].matches[1]"],
        ),
        // Reached by itself.
        (vec![rule("{path: {value: /a}}")], vec![]),
        (vec![rule("{method: OPTIONS}")], vec![]),
        (vec![rule("{headers: [{name: Origin, value: 'https://a.example'}]}")], vec![]),
        (vec![rule("{queryParams: [{name: a, value: b}]}")], vec![]),
        // Or by another rule with the filter, and by none without.
        (
            vec![rule("{path: {value: /a}, method: PUT}"), rule("{path: {value: /a}, method: OPTIONS}")],
            vec![],
        ),
        (vec![rule("{path: {type: Exact, value: /a/b}, method: PUT}"), rule("{path: {value: /a}}")], vec![]),
        (vec![rule("{path: {value: /ab}, method: PUT}"), rule("{path: {value: /a}}")], vec![missed]),
        (
            vec![rule("{path: {value: /a}, method: PUT}"), plain("{path: {value: /a}, method: OPTIONS}")],
            vec![missed],
        ),
        (vec![plain("{method: GET}")], vec![]),
    ];
    for (rules, expected) in cases {
        assert_eq!(told(&at_cart(&rules.join(", "))), expected, "{rules:?}");
    }
}

#[test]
fn a_network_policy_is_named_where_it_keeps_the_mesh_from_enrolled_pods() {
    let policy = |name: &str, selector: &str, rest: &str| {
        format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{podSelector: {selector}, {rest}}}\n"
        )
    };
    let namespace = |label: &str| {
        format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{culvert.dev/mesh: {label}}}}}\n"
        )
    };
    let pods = |label: &str| {
        format!(
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: cart, namespace: shop}}\n\
             spec: {{selector: {{matchLabels: {{app: cart}}}}, template: {{metadata: {{labels: {{app: cart{label}}}}}, \
             spec: {{containers: [{{name: c, image: i}}]}}}}}}\n"
        )
    };
    let cart = "{matchLabels: {app: cart}}";
    let closed = "ingress: [{ports: [{port: 8080}]}]";
    let open = "ingress: [{ports: [{port: 15008}]}]";
    let (enabled, disabled) = (namespace("enabled"), namespace("disabled"));
    let in_mesh = ", culvert.dev/mesh: enabled";
    let out = ", culvert.dev/mesh: disabled";
    let one = policy("p", cart, closed);
    let ingress = vec!["CV505 spec.ingress"];
    let cases = [
        (format!("{enabled}{one}"), ingress.clone()),
        (format!("{disabled}{one}"), vec![]),
        (one.clone(), vec![]),
        (format!("{enabled}{}{one}", pods("")), ingress.clone()),
        (format!("{enabled}{}{one}", pods(out)), vec![]),
        (format!("{disabled}{}{one}", pods(in_mesh)), ingress.clone()),
        (format!("{enabled}{}{}", pods(""), policy("p", "{matchLabels: {app: other}}", open)), vec![]),
        (format!("{enabled}{}", policy("p", "{}", closed)), ingress.clone()),
        (
            format!(
                "{enabled}{}",
                policy("p", "{}", "egress: [{ports: [{port: 53, protocol: UDP}]}], policyTypes: [Egress]")
            ),
            vec!["CV505 spec.egress"],
        ),
        (
            format!("{enabled}{}", policy("p", cart, "ingress: [{ports: [{port: 8080, endPort: 20000}]}]")),
            vec![],
        ),
        (format!("{enabled}{}", policy("p", cart, "ingress: [{}]")), vec![]),
        (format!("{enabled}{}", policy("p", cart, "ingress: []")), vec![]),
        (
            format!("{enabled}{}", policy("p", cart, "ingress: [{ports: [{port: 15008, protocol: UDP}]}]")),
            ingress.clone(),
        ),
        // Others allow it.
        (format!("{enabled}{}{one}{}", pods(""), policy("q", cart, open)), vec![]),
        (format!("{enabled}{one}{}", policy("q", "{}", open)), vec![]),
        (format!("{enabled}{one}{}", policy("q", "{matchLabels: {app: other}}", open)), ingress),
    ];
    for (text, expected) in cases {
        assert_eq!(told(&text), expected, "{text}");
    }
}
