//! What articles and other systems have and the Gateway API does not: wherever it is written, the real way is said, and what
//! this version of Culvert does not do of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside test functions are tests too")]

mod common;

use common::{CART, TO_CART, at_cart, findings, object, one, route, service, told};
use culvert_check::{Code, Finding};

/// Manifests with a field where it does not belong.
type Place<'p> = &'p dyn Fn(&str) -> String;

const HTTP: &str = "name: web, port: 80, protocol: HTTP";

fn gateway(rest: &str, listener: &str) -> String {
    object(
        "Gateway",
        "shop/edge",
        &format!("{{gatewayClassName: culvert, {rest}listeners: [{{{HTTP}{listener}}}]}}"),
    )
}

/// The findings of what does not exist.
fn invented(text: &str) -> Vec<Finding> {
    findings(text).into_iter().filter(|of| of.code == Code::InventedField).collect()
}

#[test]
fn wherever_it_is_written_the_real_way_is_said() {
    let rule = |of: &str| at_cart(&format!("{{{of}, {TO_CART}}}"));
    let backend = |of: &str| at_cart(&format!("{{backendRefs: [{{name: cart, port: 80, {of}}}]}}"));
    let filter = |of: &str| at_cart(&format!("{{filters: [{{{of}}}], {TO_CART}}}"));
    let mirror = |of: &str| {
        filter(&format!("type: RequestMirror, requestMirror: {{backendRef: {{name: cart, port: 80, {of}}}}}"))
    };
    let spec = |of: &str| {
        service("shop/cart")
            + &object(
                "HTTPRoute",
                "shop/r",
                &format!("{{parentRefs: [{CART}], {of}, rules: [{{{TO_CART}}}]}}"),
            )
    };
    let listener = |of: &str| gateway("", &format!(", {of}"));
    let whole = |of: &str| gateway(&format!("{of}, "), "");
    let on_route = [&rule as Place<'_>, &backend, &mirror, &spec];
    let on_gateway = [&listener as Place<'_>, &whole];
    let everywhere: Vec<_> = on_route.iter().chain(&on_gateway).copied().collect();
    let cases: &[(&[Place<'_>], &[&str], &[&str])] = &[
        (
            &[&backend, &mirror],
            &[
                "tls: {mode: Simple}",
                "tls: {options: {gateway.networking.k8s.io/backend-tls: skip}}",
                "backendTLS: {}",
            ],
            &["BackendTLSPolicy", "CV501", "enrol", "TLSRoute"],
        ),
        (&[&rule, &spec], &["tls: {secretName: a}"], &["mutual TLS", "certificateRefs", "CV501", "TLSRoute"]),
        (
            &everywhere,
            &["clientCertificate: {}", "clientAuth: require", "mtls: {}", "clientValidation: {}"],
            &["spec.tls.frontend", "CV501", "TLSRoute"],
        ),
        (
            &everywhere,
            &["accessLog: {}", "accessLogging: true", "logging: {}", "accessLogs: []"],
            &["accessLog.filter"],
        ),
        (&everywhere, &["sampling: 1", "tracing: {}", "traceSampling: 5"], &["no tracing"]),
        (&everywhere, &["rateLimit: {}", "requestRateLimit: {}", "rate_limit: 1"], &["limits.requests"]),
        (&on_route, &["perTryTimeout: 1s", "timeout: 1s"], &["backendRequest"]),
        (&everywhere, &["circuitBreaker: {}", "outlierDetection: {}"], &["ejection"]),
    ];
    for (places, fields, words) in cases {
        for (field, place) in fields.iter().flat_map(|field| places.iter().map(move |place| (field, place))) {
            let text = place(field);
            let found = invented(&text);
            assert_eq!(found.len(), 1, "{text}{found:#?}");
            let name = field.split(':').next().unwrap();
            assert!(found[0].field.ends_with(&format!(".{name}")), "{text}{found:#?}");
            for word in *words {
                assert!(found[0].remedy.contains(word), "{word}: {}", found[0].remedy);
            }
            let of_schema = |of: &&Finding| matches!(of.code, Code::UnknownField | Code::Schema);
            assert_eq!(findings(&text).iter().filter(of_schema).count(), 0, "{text}");
        }
    }
}

#[test]
fn the_real_way_is_said_once() {
    let limited = format!(
        "{{filters: [{{type: RequestRateLimit, requestRateLimit: {{requestsPerSecond: 1}}}}], {TO_CART}}}"
    );
    let fields = told(&at_cart(&limited));
    assert_eq!(
        fields,
        ["CV104 spec.rules[0].filters[0].requestRateLimit", "CV104 spec.rules[0].filters[0].type"]
    );
    let tls = at_cart("{backendRefs: [{name: cart, port: 80, tls: {mode: x}}]}");
    let finding = one(&tls);
    assert!(
        finding.code == Code::InventedField && finding.remedy.contains("BackendTLSPolicy"),
        "{finding:?}"
    );
    let slip = one(&at_cart(&format!("{{fliters: [], {TO_CART}}}")));
    assert!(slip.code == Code::UnknownField && slip.what.contains("did you mean filters?"), "{slip:?}");
    let slip = one(&at_cart(&format!("{{filters: [{{type: UrlRewrite}}], {TO_CART}}}")));
    assert!(slip.code == Code::InventedField && slip.remedy == "type: URLRewrite", "{slip:?}");
}

#[test]
fn each_option_is_answered_where_the_api_has_options_and_where_it_has_none() {
    let (log, trace) = ("gateway.networking.k8s.io/access-log", "gateway.networking.k8s.io/trace-sampling");
    let both = format!("options: {{{log}: a, {trace}: '5'}}");
    for (text, at) in [
        (gateway("", &format!(", {both}")), "spec.listeners[0].options"),
        (gateway(&format!("{both}, "), ""), "spec.options"),
        (at_cart(&format!("{{{both}, {TO_CART}}}")), "spec.rules[0].options"),
        (
            at_cart(&format!("{{backendRefs: [{{name: cart, port: 80, {both}}}]}}")),
            "spec.rules[0].backendRefs[0].options",
        ),
    ] {
        let found = invented(&text);
        let said: Vec<(&str, bool, bool)> = found
            .iter()
            .map(|of| (&*of.field, of.remedy.contains("accessLog.filter"), of.remedy.contains("no tracing")))
            .collect();
        let fields = [format!("{at}.{log}"), format!("{at}.{trace}")];
        assert_eq!(said, [(&*fields[0], true, false), (&*fields[1], false, true)], "{text}");
        assert!(found.iter().all(|of| of.what.contains("no field options here")), "{found:#?}");
    }
    let nothing = invented(&gateway("", ", options: {}"));
    assert_eq!(nothing.len(), 1, "{nothing:#?}");
    let tls = |key: &str, class: &str| {
        let listener = format!("tls: {{certificateRefs: [{{name: c}}], options: {{{key}: a}}}}");
        object(
            "Gateway",
            "shop/edge",
            &format!(
                "{{gatewayClassName: {class}, listeners: [{{name: a, port: 443, protocol: HTTPS, {listener}}}]}}"
            ),
        )
    };
    for key in ["gateway.networking.k8s.io/auth-type", "gateway.networking.k8s.io/client-certificates"] {
        let found = invented(&tls(key, "culvert"));
        assert!(found.len() == 1 && found[0].remedy.contains("spec.tls.frontend"), "{found:#?}");
        assert!(found[0].what.contains("the Gateway API defines no option"), "{found:#?}");
    }
    // Another implementation's own options are its own, the API's are nobody's.
    let class = object("GatewayClass", "other", "{controllerName: example.com/gateway}");
    let own = "networking.example.com/certificates";
    assert_eq!(invented(&tls(own, "culvert")).len(), 1);
    assert_eq!(invented(&(class.clone() + &tls(own, "other"))), []);
    assert_eq!(invented(&(class + &tls("gateway.networking.k8s.io/auth-type", "other"))).len(), 1);
}

#[test]
fn fields_that_exist_or_are_a_slip_of_one_are_no_inventions() {
    for text in [
        at_cart(&format!("{{timeouts: {{request: 1s}}, retry: {{attempts: 1}}, {TO_CART}}}")),
        gateway("tls: {frontend: {default: {validation: {caCertificateRefs: [{name: c, group: '', kind: ConfigMap}]}}}}, ", ""),
        gateway("tls: {backend: {clientCertificateRef: {name: c}}}, ", ""),
        at_cart(&format!("{{fliters: [], {TO_CART}}}")),
        // Other groups have such fields.
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: a}\nspec: {selector: {a: b}, servers: [{tls: {mode: SIMPLE, options: {a: b}}}]}\n"
            .to_owned(),
    ] {
        assert_eq!(invented(&text), [], "{text}");
    }
}

#[test]
fn filters_of_the_other_kind_of_route_are_said_to_be_so() {
    let grpc = |filter: &str| {
        let rules = format!("[{{filters: [{{{filter}}}], {TO_CART}}}]");
        let text = service("shop/cart")
            + &object("GRPCRoute", "shop/r", &format!("{{parentRefs: [{CART}], rules: {rules}}}"));
        invented(&text).remove(0).remedy
    };
    for kind in ["URLRewrite", "UrlRewrite", "RequestRedirect", "CORS", "Redirect"] {
        let remedy = grpc(&format!("type: {kind}"));
        assert!(remedy.contains("only HTTPRoutes have it (type: "), "{kind}: {remedy}");
    }
    let of_rule = |field: &str| {
        let rules = format!("[{{{field}, {TO_CART}}}]");
        service("shop/cart")
            + &object("GRPCRoute", "shop/r", &format!("{{parentRefs: [{CART}], rules: {rules}}}"))
    };
    for field in [
        "timeouts: {request: 1s}",
        "retry: {attempts: 1}",
        "filters: [{type: URLRewrite, urlRewrite: {hostname: a.example}}]",
        "matches: [{path: {value: /a}}]",
    ] {
        let found = findings(&of_rule(field));
        assert!(found.iter().all(|of| of.code == Code::InventedField), "{found:#?}");
        assert!(found.iter().all(|of| of.remedy.starts_with("only HTTPRoutes have it")), "{found:#?}");
    }
    assert_eq!(grpc("type: RequestMiror"), "type: RequestMirror");
    assert!(grpc("type: RequestRateLimit").contains("limits.requests"));
    let http = |kind: &str| one(&at_cart(&format!("{{filters: [{{type: {kind}}}], {TO_CART}}}"))).remedy;
    assert_eq!(http("UrlRewrite"), "type: URLRewrite");
    assert!(http("JWTAuthentication").contains("CV501"), "{}", http("JWTAuthentication"));
    assert!(http("Whatever").starts_with("the types are RequestHeaderModifier"));
}

/// What the ways say that this version does not do is the controller's answer, and what they offer instead works.
#[test]
fn what_a_way_says_of_this_version_is_so() {
    let refused = |text: &str| told(text).iter().any(|of| of.starts_with("CV501"));
    let policy = object(
        "BackendTLSPolicy",
        "shop/cart",
        "{targetRefs: [{group: '', kind: Service, name: cart}], validation: {hostname: a.example, wellKnownCACertificates: System}}",
    );
    assert!(refused(&(at_cart(&format!("{{{TO_CART}}}")) + &policy)));
    let validation = "validation: {caCertificateRefs: [{name: c, group: '', kind: ConfigMap}]}";
    assert!(refused(&gateway(&format!("tls: {{frontend: {{default: {{{validation}}}}}}}, "), "")));
    assert!(refused(&object(
        "Gateway",
        "shop/edge",
        "{gatewayClassName: culvert, listeners: [{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}}]}",
    )));
    let auth = "filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: cart, port: 80}, http: {}}}]";
    assert!(refused(&at_cart(&format!("{{{auth}, {TO_CART}}}"))));
    let tls = object(
        "Service",
        "shop/vault",
        "{selector: {app: a}, ports: [{name: tls, port: 443, appProtocol: tls}]}",
    ) + &object(
        "TLSRoute",
        "shop/vault",
        "{parentRefs: [{group: '', kind: Service, name: vault, port: 443}], hostnames: [a.example], \
             rules: [{backendRefs: [{name: vault, port: 443}]}]}",
    );
    assert_eq!(told(&tls), [""; 0]);
    let enrolled =
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {culvert.dev/mesh: enabled}}\n";
    let route = route("shop/cart", "{name: edge}", &format!("{{{TO_CART}}}"));
    assert_eq!(told(&(enrolled.to_owned() + &service("shop/cart") + &gateway("", "") + &route)), [""; 0]);
}
