//! What the statuses of routes and policies say is found, no worse than it is, and nothing is found of what is only assumed or
//! another's.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside test functions are tests too")]

mod common;

use common::{CART, TO_CART, findings, object, one, route, service, told, with};
use culvert_check::{Absent, Code, Finding, Severity};

const HTTP: &str = "{name: http, port: 80}";
const EVERYTHING: &str = "{backendRefs: [{name: cart, port: 80}]}";

fn cart(ports: &str) -> String {
    object("Service", "shop/cart", &format!("{{selector: {{app: a}}, ports: [{ports}]}}"))
}

fn at(port: u16) -> String {
    CART.replace("cart}", &format!("cart, port: {port}}}"))
}

fn of_code(code: Code, text: &str) -> Vec<Finding> {
    findings(text).into_iter().filter(|of| of.code == code).collect()
}

fn severities(code: Code, text: &str) -> Vec<Severity> {
    of_code(code, text).into_iter().map(|of| of.severity).collect()
}

#[test]
fn ports_that_carry_no_http_are_named_also_where_the_route_names_none() {
    use Severity::{Notice, Warning};
    let postgres = "{name: pg, port: 5432, appProtocol: postgres}";
    let cases: &[(&str, Option<u16>, &[Severity])] = &[
        (&format!("{HTTP}, {postgres}"), None, &[Warning]),
        (&format!("{HTTP}, {postgres}"), Some(5432), &[Warning]),
        (&format!("{HTTP}, {postgres}"), Some(80), &[]),
        ("{name: https, port: 443}", None, &[Warning]),
        // Many call a port so that speaks HTTP.
        (&format!("{HTTP}, {{name: tcp, port: 81}}"), None, &[Notice]),
        (&format!("{HTTP}, {{name: tcp, port: 81}}"), Some(81), &[Warning]),
        (&format!("{HTTP}, {{name: web, port: 81}}"), None, &[]),
        (&format!("{HTTP}, {{name: dns, port: 53, protocol: UDP, appProtocol: tcp}}"), None, &[]),
    ];
    for (ports, port, expected) in cases {
        let parent = port.map_or(CART.to_owned(), at);
        let text = cart(ports) + &route("shop/cart", &parent, EVERYTHING);
        assert_eq!(severities(Code::NotHttp, &text), *expected, "{text}");
    }
    let text = cart(&format!("{HTTP}, {postgres}")) + &route("shop/cart", CART, EVERYTHING);
    let finding = one(&text);
    assert!(
        finding.what.starts_with("port 5432 of Service shop/cart is declared as postgres"),
        "{finding:?}"
    );
    assert!(finding.remedy.contains("port or sectionName"), "{finding:?}");
}

#[test]
fn a_route_is_told_which_of_its_ports_another_kind_has_taken() {
    let ports = cart("{name: a, port: 80}, {name: b, port: 81}");
    let calls = |port: u16| {
        let spec = format!("{{parentRefs: [{}], rules: [{EVERYTHING}]}}", at(port));
        object("GRPCRoute", "shop/calls", &spec)
    };
    let both = ports.clone() + &calls(80) + &route("shop/cart", CART, EVERYTHING);
    let finding = one(&both);
    assert_eq!((finding.code, finding.severity), (Code::Conflicted, Severity::Warning));
    assert!(
        finding.what.contains("port 80 of Service shop/cart is taken by GRPCRoute shop/calls"),
        "{finding:?}"
    );
    assert!(finding.what.contains("only port 81"), "{finding:?}");
    assert_eq!(told(&(ports.clone() + &calls(80) + &route("shop/cart", &at(81), EVERYTHING))), [""; 0]);
    let none = ports + &calls(80) + &route("shop/cart", &at(80), EVERYTHING);
    assert_eq!(severities(Code::Conflicted, &none), [Severity::Error]);
}

fn policy(name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\n\
         spec: {{targetRefs: [{{group: '', kind: Service, name: cart}}], {rest}}}\n"
    )
}

#[test]
fn a_policy_that_its_status_refuses_is_named() {
    let budget =
        |interval: &str| format!("retryConstraint: {{budget: {{percent: 10, interval: {interval}}}}}");
    let session = "sessionPersistence: {type: Cookie, sessionName: a}";
    let affine =
        object("Service", "shop/cart", "{sessionAffinity: ClientIP, ports: [{name: http, port: 80}]}");
    let plain = service("shop/cart");
    let refused = |text: &str| -> Vec<String> {
        of_code(Code::PolicyRefused, text)
            .into_iter()
            .map(|of| format!("{} {}", of.object, of.field))
            .collect()
    };
    let two = plain.clone() + &policy("a", &budget("10s")) + &policy("b", session);
    assert_eq!(refused(&two), ["XBackendTrafficPolicy shop/b spec.targetRefs[0]"]);
    assert!(one(&two).what.contains("policy a"), "{:?}", one(&two));
    assert_eq!(told(&(plain.clone() + &policy("a", &budget("10s")))), [""; 0]);
    let long = refused(&(plain.clone() + &policy("a", &budget("2h"))));
    assert_eq!(long, ["XBackendTrafficPolicy shop/a spec.retryConstraint.budget.interval"]);
    assert_eq!(told(&(plain.clone() + &policy("a", &budget("1h")))), [""; 0]);
    let sessions = refused(&(affine.clone() + &policy("a", session)));
    assert_eq!(sessions, ["XBackendTrafficPolicy shop/a spec.sessionPersistence"]);
    assert_eq!(told(&(plain.clone() + &policy("a", session))), [""; 0]);
    assert_eq!(told(&(affine + &policy("a", &budget("10s")))), [""; 0]);
    // Nothing of it is told when it is missing: that is a finding of its own.
    assert_eq!(told(&policy("a", session)), [""; 0]);
    // Once, by the schema.
    let percent = plain + &policy("a", "retryConstraint: {budget: {percent: 101}}");
    assert_eq!(told(&percent), ["CV102 spec.retryConstraint.budget.percent"]);
}

#[test]
fn a_parent_of_a_group_that_has_no_parents_is_named() {
    use Severity::{Error, Notice};
    let cases = [
        ("group: core, kind: Service", Some((Error, "write group: \"\""))),
        ("group: v1, kind: Service", Some((Error, "write group: \"\""))),
        ("group: gateway.networking.k8s.io, kind: Service", Some((Error, "write group: \"\""))),
        ("group: '', kind: Gateway", Some((Error, "write group: gateway.networking.k8s.io"))),
        ("group: networking.k8s.io, kind: Gateway", Some((Error, "write group: gateway.networking.k8s.io"))),
        (
            "group: gateway.networking.io, kind: Gateway",
            Some((Error, "write group: gateway.networking.k8s.io")),
        ),
        ("group: apps, kind: Deployment", Some((Error, "write a Gateway, or a Service"))),
        ("group: policy.example.com, kind: Server", Some((Notice, "if Culvert is to serve it"))),
        ("group: '', kind: Service", None),
    ];
    for (parent, expected) in cases {
        let text =
            service("shop/cart") + &route("shop/cart", &format!("{{{parent}, name: cart}}"), EVERYTHING);
        let found = findings(&text);
        let Some((severity, remedy)) = expected else {
            assert_eq!(found, [], "{parent}");
            continue;
        };
        let [finding] = &found[..] else { panic!("{parent}: {found:#?}") };
        assert_eq!((finding.code, finding.severity), (Code::NoParent, severity), "{parent}: {finding:?}");
        assert!(finding.remedy.starts_with(remedy), "{parent}: {finding:?}");
    }
}

#[test]
fn what_is_assumed_has_no_names_that_findings_tell() {
    let judged = |text: &str| with(Absent::Judged, text).findings;
    let tls = |parent: &str| {
        let spec = format!(
            "{{parentRefs: [{parent}], hostnames: [a.example], rules: [{{backendRefs: [{{name: cart, port: 9443}}]}}]}}"
        );
        object("TLSRoute", "shop/cart", &spec)
    };
    for parent in [&at(9443), CART, &CART.replace("cart}", "cart, sectionName: tls}")] {
        let found = judged(&tls(parent));
        assert!(found.iter().all(|of| of.code == Code::NotInFiles), "{parent}: {found:#?}");
    }
    // A name that somebody wrote says what the port carries.
    let http = judged(&tls(&CART.replace("cart}", "cart, sectionName: http}")));
    let declared = http.iter().find(|of| of.code == Code::NotHttp).unwrap();
    assert!(declared.what.starts_with("port http of Service shop/cart is declared as http:"), "{declared:?}");
    // Two routes of which one hides the other, at what is not there.
    let two = |parent: &str| {
        judged(&(route("shop/a", parent, EVERYTHING) + &route("shop/b", parent, EVERYTHING)))
            .into_iter()
            .find(|of| of.code == Code::Hidden)
            .unwrap()
            .what
    };
    assert!(two("{name: edge}").contains("at Gateway shop/edge;"), "{}", two("{name: edge}"));
    assert!(two("{name: edge, sectionName: web}").contains("at listener shop/edge/web;"));
    let missing = judged(&route("shop/a", CART, "{backendRefs: [{name: stock}]}"));
    assert!(missing.iter().any(|of| of.remedy == "write port: one of the Service's"), "{missing:#?}");
}

#[test]
fn what_is_missing_is_as_bad_as_the_share_of_it() {
    let namespace = object("Namespace", "shop", "{}");
    let missing = |kind: &str, backends: &str| {
        let hostnames = if kind == "TLSRoute" { "hostnames: [a.example], " } else { "" };
        let spec = format!("{{parentRefs: [{CART}], {hostnames}rules: [{{backendRefs: [{backends}]}}]}}");
        let text = namespace.clone() + &service("shop/cart") + &object(kind, "shop/r", &spec);
        with(Absent::Judged, &text).findings.into_iter().find(|of| of.code == Code::Missing).unwrap()
    };
    let gone = "{name: gone, port: 80}";
    let (here, off) = ("{name: cart, port: 80}", "{name: gone, port: 80, weight: 0}");
    let cases = [
        (
            "HTTPRoute",
            gone.to_owned(),
            Severity::Error,
            "without it every request of the rule is answered 500",
        ),
        (
            "HTTPRoute",
            format!("{here}, {gone}"),
            Severity::Error,
            "without it 1 of 2 requests of the rule are answered 500",
        ),
        ("HTTPRoute", format!("{here}, {off}"), Severity::Notice, "its weight is 0, so no request meets it"),
        (
            "TCPRoute",
            format!("{here}, {gone}"),
            Severity::Error,
            "without it 1 of 2 connections of the rule are reset",
        ),
        ("TLSRoute", gone.to_owned(), Severity::Error, "without it every connection of the rule is reset"),
        (
            "TCPRoute",
            format!("{here}, {off}"),
            Severity::Notice,
            "its weight is 0, so no connection meets it",
        ),
    ];
    for (kind, backends, severity, ends) in cases {
        let finding = missing(kind, &backends);
        assert_eq!(finding.severity, severity, "{finding:?}");
        assert!(finding.what.ends_with(ends), "{finding:?}");
    }
    // The same of a backend that is there and cannot be called.
    let wrong = |weight: u32| {
        let backends = format!("{here}, {{name: cart, port: 81, weight: {weight}}}");
        let text =
            service("shop/cart") + &route("shop/cart", CART, &format!("{{backendRefs: [{backends}]}}"));
        severities(Code::Unusable, &text)
    };
    assert_eq!((wrong(0), wrong(1)), (vec![Severity::Notice], vec![Severity::Error]));
}

#[test]
fn every_object_is_told_what_it_misses() {
    let gateway = object(
        "Gateway",
        "edge/web",
        "{gatewayClassName: culvert, listeners: [{name: web, port: 80, protocol: HTTP}]}",
    );
    let routes = ["a", "b", "c"].map(|name| {
        let hosted =
            format!("{{parentRefs: [{{name: web}}], hostnames: [{name}.example], rules: [{EVERYTHING}]}}");
        object("HTTPRoute", &format!("shop/{name}"), &hosted)
    });
    let text = gateway + &service("shop/cart") + &routes.concat();
    let found = with(Absent::Judged, &text).findings;
    let told: Vec<(Code, &str)> = found.iter().map(|of| (of.code, &*of.object)).collect();
    let probably = |name| (Code::ProbablyMissing, name);
    assert_eq!(told, ["HTTPRoute shop/a", "HTTPRoute shop/b", "HTTPRoute shop/c"].map(probably));
    assert!(found.iter().all(|of| of.remedy == "write namespace: edge"), "{found:#?}");
}

#[test]
fn each_version_is_judged_by_its_own_schema() {
    let tls = |version: &str| {
        format!(
            "{}---\napiVersion: gateway.networking.k8s.io/{version}\nkind: TLSRoute\nmetadata: {{name: a, namespace: shop}}\n\
             spec: {{parentRefs: [{CART}], rules: [{{{TO_CART}}}]}}\n",
            cart("{name: tls, port: 80}")
        )
    };
    let missing = |version: &str| severities(Code::Schema, &tls(version)).len();
    assert_eq!((missing("v1alpha2"), missing("v1alpha3"), missing("v1")), (0, 1, 1));
}

#[test]
fn what_each_implementation_decides_is_not_judged_at_the_gateways_of_others() {
    let class = object("GatewayClass", "other", "{controllerName: example.com/gateway}");
    let gateway = |class: &str| {
        object(
            "Gateway",
            "shop/edge",
            &format!("{{gatewayClassName: {class}, listeners: [{{name: web, port: 80, protocol: HTTP}}]}}"),
        )
    };
    let unusable = |gateway: &str, backend: &str| {
        let route = route("shop/cart", "{name: edge}", &format!("{{backendRefs: [{backend}]}}"));
        let ports = "{name: http, port: 80}, {name: pg, port: 81, appProtocol: postgres}";
        of_code(Code::Unusable, &(class.clone() + gateway + &cart(ports) + &route)).len()
    };
    let (own, foreign) = (gateway("culvert"), gateway("other"));
    let bucket = "{group: example.com, kind: Bucket, name: a, port: 80}";
    assert_eq!((unusable(&own, bucket), unusable(&foreign, bucket)), (1, 0));
    let postgres = "{name: cart, port: 81}";
    assert_eq!((unusable(&own, postgres), unusable(&foreign, postgres)), (1, 0));
    // That holds for all.
    let nowhere = "{name: cart, port: 82}";
    assert_eq!((unusable(&own, nowhere), unusable(&foreign, nowhere)), (1, 1));
}

#[test]
fn labels_of_a_namespace_that_is_not_there_are_not_known() {
    use Severity::{Error, Notice};
    let found = |absent: Absent, selector: &str, namespace: &str| -> Vec<Severity> {
        let listener = format!(
            "{{name: web, port: 80, protocol: HTTP, allowedRoutes: {{namespaces: {{from: Selector, selector: {selector}}}}}}}"
        );
        let text = object(
            "Gateway",
            "edge/edge",
            &format!("{{gatewayClassName: culvert, listeners: [{listener}]}}"),
        ) + &service("shop/cart")
            + &route("shop/cart", "{name: edge, namespace: edge}", EVERYTHING)
            + namespace;
        let all = with(absent, &text).findings.into_iter();
        all.filter(|of| of.code == Code::NamespaceNotAllowed).map(|of| of.severity).collect()
    };
    let team = "{matchLabels: {team: shop}}";
    let namespace = |label: &str| {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{team: {label}}}}}\n")
    };
    assert_eq!(found(Absent::Judged, team, ""), [Notice]);
    assert_eq!(found(Absent::There, team, ""), []);
    assert_eq!(found(Absent::Missing, team, ""), [Error]);
    assert_eq!(found(Absent::Judged, team, &namespace("other")), [Error]);
    assert_eq!(found(Absent::Judged, team, &namespace("shop")), []);
    // Every namespace has its name.
    let name = |name: &str| format!("{{matchLabels: {{kubernetes.io/metadata.name: {name}}}}}");
    assert_eq!(found(Absent::Judged, &name("shop"), ""), []);
    assert_eq!(found(Absent::Judged, &name("other"), ""), [Error]);
    let both = "{matchLabels: {kubernetes.io/metadata.name: other, team: shop}}";
    assert_eq!(found(Absent::Judged, both, ""), [Error]);
    let expression = "{matchExpressions: [{key: team, operator: Exists}]}";
    assert_eq!(found(Absent::Judged, expression, ""), [Notice]);
}

#[test]
fn routes_of_connections_are_told_in_words_of_connections() {
    let all = |kind: &str, parent: &str, ports: &str, backends: &str| {
        let hostnames = if kind == "TLSRoute" { "hostnames: [a.example], " } else { "" };
        let spec = format!("{{parentRefs: [{parent}], {hostnames}rules: [{{backendRefs: [{backends}]}}]}}");
        findings(&(cart(ports) + &object(kind, "shop/r", &spec)))
    };
    let tls = "{name: tls, port: 443, appProtocol: tls}";
    for kind in ["TCPRoute", "TLSRoute"] {
        let off = all(kind, CART, tls, "{name: cart, port: 443, weight: 0}");
        let codes: Vec<Code> = off.iter().map(|of| of.code).collect();
        assert_eq!(codes, [Code::NoConnections], "{kind}: {off:#?}");
        let wrong = all(kind, CART, tls, "{name: cart, port: 443}, {name: cart, port: 444}");
        assert!(wrong[0].what.ends_with("1 of 2 connections of the rule are reset"), "{kind}: {wrong:#?}");
    }
    let ports = format!("{tls}, {{name: web, port: 80, appProtocol: http}}");
    let clear = all("TLSRoute", &at(443), &ports, "{name: cart, port: 80}");
    let [finding] = &clear[..] else { panic!("{clear:#?}") };
    assert!(finding.what.ends_with("every connection of the rule is reset"), "{finding:?}");
    assert!(finding.remedy.contains("speaks TLS"), "{finding:?}");
    let consumer = |kind: &str| {
        let hostnames = if kind == "TLSRoute" { "hostnames: [a.example], " } else { "" };
        let of = |namespace: &str| {
            let parent = CART.replace("kind", "namespace: shop, kind");
            let backend = "{name: cart, namespace: shop, port: 443}";
            let spec =
                format!("{{parentRefs: [{parent}], {hostnames}rules: [{{backendRefs: [{backend}]}}]}}");
            object(kind, &format!("{namespace}/r"), &spec)
        };
        one(&(cart(tls) + &of("shop") + &of("audit"))).what
    };
    assert!(consumer("TCPRoute").ends_with("no rule of that applies to them"), "{}", consumer("TCPRoute"));
    assert!(consumer("TLSRoute").ends_with("(they are reset)"), "{}", consumer("TLSRoute"));
}

#[test]
fn a_fault_hides_neither_the_rest_of_its_object_nor_what_refers_to_it() {
    let hosted = |rules: &str| {
        object(
            "HTTPRoute",
            "shop/cart",
            &format!("{{parentRefs: [{CART}], hostnames: [a.example], rules: [{rules}]}}"),
        )
    };
    let off = "{backendRefs: [{name: cart, port: 80, weight: 0}]}";
    let text =
        service("shop/cart") + &hosted(&format!("{off}, {{backendRefs: [{{name: cart, port: '80'}}]}}"));
    // On one line.
    let expected = [
        "CV102 spec.rules[1].backendRefs[0].port",
        "CV403 spec.rules[0].backendRefs",
        "CV305 spec.hostnames",
    ];
    assert_eq!(told(&text), expected);
    let fault = of_code(Code::Schema, &text).remove(0);
    assert!(fault.what.ends_with("the rest of the object was judged without it"), "{fault:?}");
    // The faulty rule might have been for everything: it hides nothing.
    let rules = format!("{{matches: [{{path: {{value: 1}}}}], {TO_CART}}}, {{{TO_CART}}}");
    assert_eq!(
        told(&(service("shop/cart") + &route("shop/cart", CART, &rules))),
        ["CV102 spec.rules[0].matches[0].path.value"]
    );
    // A Service, and a route at it.
    let ports = "{name: http, port: 80, targetPort: 70000}";
    let twice = format!("{{{TO_CART}}}, {{{TO_CART}}}");
    let at_faulty = told(&(cart(ports) + &hosted(&twice)));
    assert_eq!(at_faulty, ["CV102 spec.ports[0].targetPort", "CV305 spec.hostnames", "CV401 spec.rules[1]"]);
    // A producer's route, and a consumer's.
    let limited = format!("{{timeouts: {{request: 5}}, {TO_CART}}}");
    let consumer = CART.replace("kind", "namespace: shop, kind");
    let text = service("shop/cart")
        + &route("shop/cart", CART, &limited)
        + &route("audit/cart", &consumer, "{backendRefs: [{name: cart, namespace: shop, port: 80}]}");
    assert_eq!(told(&text), ["CV102 spec.rules[0].timeouts.request", "CV307 spec.parentRefs[0]"]);
    // Too much depends on these.
    let faulty = [
        cart("{name: http, port: 0}") + &hosted(off),
        service("shop/cart") + &route("shop/cart", &CART.replace("cart}", "cart, port: http}"), off),
    ];
    for text in faulty {
        let fault = of_code(Code::Schema, &text).remove(0);
        assert!(fault.what.ends_with("comes when this is mended"), "{fault:?}");
    }
    let fine = of_code(
        Code::Schema,
        &route("shop/cart", CART, "{name: A_B, backendRefs: [{name: cart, port: 80}]}"),
    );
    assert!(!fine[0].what.contains("mended"), "{fine:?}");
}

#[test]
fn words_are_the_booleans_that_they_are_to_kubectl() {
    let matched = |value: &str| {
        let rules = format!("{{matches: [{{headers: [{{name: x, value: {value}}}]}}], {TO_CART}}}");
        findings(&(service("shop/cart") + &route("shop/cart", CART, &rules)))
    };
    for word in ["yes", "no", "on", "y", "true"] {
        let found = matched(word);
        let [finding] = &found[..] else { panic!("{word}: {found:#?}") };
        assert_eq!(
            (finding.code, &*finding.field),
            (Code::Schema, "spec.rules[0].matches[0].headers[0].value")
        );
        assert!(finding.remedy.contains("in quotes"), "{word}: {finding:?}");
        assert_eq!(matched(&format!("'{word}'")), [], "{word}");
    }
    assert_eq!(matched("yesterday"), []);
    let cors = |credentials: &str| {
        let cors = format!("cors: {{allowOrigins: ['https://a.example'], allowCredentials: {credentials}}}");
        told(
            &(service("shop/cart")
                + &route("shop/cart", CART, &format!("{{filters: [{{type: CORS, {cors}}}], {TO_CART}}}"))),
        )
    };
    assert_eq!(cors("yes"), [""; 0]);
    assert_eq!(cors("'yes'"), ["CV102 spec.rules[0].filters[0].cors.allowCredentials"]);
    // A label is a string.
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: no}}\n";
    let finding = one(namespace);
    assert!(finding.field == "metadata.labels.team" && finding.remedy.contains("in quotes"), "{finding:?}");
    assert_eq!(told(&namespace.replace("no}", "none}")), [""; 0]);
}

#[test]
fn an_empty_namespace_is_none() {
    let of = |namespace: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: cart{namespace}}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n"
        )
    };
    assert_eq!(told(&of(", namespace: ''")), [""; 0]);
    assert_eq!(told(&of(", namespace: 'A'")), ["CV102 metadata.namespace"]);
    let both = of(", namespace: ''")
        + &object("HTTPRoute", "default/cart", &format!("{{parentRefs: [{CART}], rules: [{{{TO_CART}}}]}}"));
    assert_eq!(with(Absent::Missing, &both).findings, []);
}
