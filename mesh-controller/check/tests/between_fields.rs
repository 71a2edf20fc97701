//! What the API server's rules between fields forbid.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside test functions are tests too")]

mod common;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use common::{CART, TO_CART, at_cart, findings, object, service, told};
use culvert_check::Code;
use serde::Deserialize as _;
use serde_json::Value;

/// Fields of the values that are forbidden.
fn forbidden(text: &str) -> Vec<String> {
    findings(text).into_iter().filter(|of| of.code == Code::Schema).map(|of| of.field).collect()
}

#[test]
fn what_a_list_of_a_route_has_twice_is_told_where_it_stands_again() {
    let matched = |of: &str| at_cart(&format!("{{matches: [{{{of}}}], {TO_CART}}}"));
    let filter = |of: &str| at_cart(&format!("{{filters: [{{{of}}}], {TO_CART}}}"));
    let cors = |of: &str| filter(&format!("type: CORS, cors: {{{of}}}"));
    let retry = |codes: &str| {
        at_cart(&format!("{{timeouts: {{request: 1s}}, retry: {{codes: {codes}}}, {TO_CART}}}"))
    };
    let rule = "spec.rules[0]";
    let cases = [
        (matched("headers: [{name: a, value: b}, {name: a, value: c}]"), Some("matches[0].headers[1].name")),
        (matched("headers: [{name: a, value: b}, {name: c, value: b}]"), None),
        (
            matched("queryParams: [{name: a, value: b}, {name: a, value: b}]"),
            Some("matches[0].queryParams[1].name"),
        ),
        (matched("queryParams: [{name: a, value: b}, {name: A, value: b}]"), None),
        (
            cors("allowOrigins: ['https://a.example', 'https://a.example']"),
            Some("filters[0].cors.allowOrigins[1]"),
        ),
        (cors("allowOrigins: ['https://a.example', 'https://b.example']"), None),
        (cors("allowOrigins: ['*'], allowMethods: [GET, PUT, GET]"), Some("filters[0].cors.allowMethods[2]")),
        (cors("allowOrigins: ['*'], exposeHeaders: [a, a]"), Some("filters[0].cors.exposeHeaders[1]")),
        (retry("[500, 503, 500]"), Some("retry.codes[2]")),
        (retry("[500, 503]"), None),
    ];
    for (text, expected) in cases {
        let expected: Vec<String> = expected.iter().map(|field| format!("{rule}.{field}")).collect();
        assert_eq!(forbidden(&text), expected, "{text}");
    }
}

#[test]
fn a_route_has_at_most_128_matches() {
    let rules = |last: usize| {
        let rule = |of: usize| {
            let matches: Vec<String> =
                (0..of).map(|index| format!("{{path: {{value: /{of}-{index}}}}}")).collect();
            format!("{{matches: [{}], {TO_CART}}}", matches.join(", "))
        };
        forbidden(&at_cart(&format!("{}, {}, {{{TO_CART}}}", rule(64), rule(last))))
    };
    assert_eq!(rules(63), [""; 0]);
    assert_eq!(rules(64), ["spec.rules"]);
}

#[test]
fn a_policy_names_its_authority_in_one_way() {
    let policy = |validation: &str, more: &str| {
        let target = format!("{{group: '', kind: Service, name: cart{more}}}");
        let spec = format!("{{targetRefs: [{target}], validation: {{hostname: a.example{validation}}}}}");
        forbidden(&(service("shop/cart") + &object("BackendTLSPolicy", "shop/cart", &spec)))
    };
    let refs = ", caCertificateRefs: [{group: '', kind: ConfigMap, name: c}]";
    let system = ", wellKnownCACertificates: System";
    assert_eq!(policy("", ""), ["spec.validation"]);
    assert_eq!(policy(&format!("{refs}{system}"), ""), ["spec.validation"]);
    assert_eq!(policy(refs, ""), [""; 0]);
    assert_eq!(policy(system, ""), [""; 0]);
    let names = |of: &str| policy(&format!("{system}, subjectAltNames: [{of}]"), "");
    assert_eq!(names("{type: Hostname, hostname: a.example}, {type: URI, uri: 'spiffe://a/b'}"), [""; 0]);
    assert_eq!(names("{type: Hostname}"), ["spec.validation.subjectAltNames[0].hostname"]);
    assert_eq!(
        names("{type: URI, uri: 'spiffe://a/b', hostname: a.example}"),
        ["spec.validation.subjectAltNames[0].hostname"]
    );
    let again = |section: &str| format!("}}, {{group: '', kind: Service, name: cart{section}");
    assert_eq!(policy(system, &again("")), ["spec.targetRefs[1]"]);
    assert_eq!(policy(system, &again(", sectionName: http")), ["spec.targetRefs[1]"]);
    let both = format!(", sectionName: a{}", again(", sectionName: b"));
    assert_eq!(policy(system, &both), [""; 0]);
}

/// By types, schema, rules between fields and the controller, whoever is the first.
#[test]
fn what_several_refuse_is_told_once() {
    let rule = |of: &str| at_cart(&format!("{{{of}, {TO_CART}}}"));
    for text in [
        rule("matches: [{method: get}]"),
        rule("matches: [{headers: [{name: 'a b', value: c}]}]"),
        rule(
            "filters: [{type: RequestMirror, requestMirror: {percent: 101, backendRef: {name: cart, port: 80}}}]",
        ),
        rule(
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: 'a b', value: c}]}}]",
        ),
        at_cart("{backendRefs: [{port: 80}]}"),
        rule("timeouts: {request: 1}"),
        rule("matches: [{path: {value: a}}]"),
        rule("matches: [{headers: [{value: c}]}]"),
    ] {
        assert_eq!(forbidden(&text).len(), 1, "{text}{:#?}", findings(&text));
    }
    let both = rule("matches: [{method: get, path: {value: a}}]");
    assert_eq!(forbidden(&both).len(), 2, "{:#?}", findings(&both));
}

/// Every list of a route that the API's definitions let have each item once is one that a second item of it is told of.
#[test]
fn the_lists_are_those_of_the_definitions() {
    let output = Command::new("go")
        .args(["mod", "download", "-json", "sigs.k8s.io/gateway-api@v1.6.1"])
        .current_dir(tempfile::tempdir().unwrap().path())
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let module = PathBuf::from(answer["Dir"].as_str().unwrap_or_else(|| panic!("no module: {answer}")));
    for kind in ["httproutes", "grpcroutes"] {
        let file = format!("config/crd/experimental/gateway.networking.k8s.io_{kind}.yaml");
        let text = std::fs::read_to_string(module.join(file)).unwrap();
        let definition = Value::deserialize(serde_yaml_ng::Deserializer::from_str(&text)).unwrap();
        let versions = definition["spec"]["versions"].as_array().unwrap();
        let newest = versions.iter().find(|of| of["name"] == "v1").unwrap();
        let spec = &newest["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let mut lists = BTreeSet::new();
        collect(spec, &mut Vec::new(), &mut lists);
        assert!(lists.len() > 5, "{lists:?}");
        for list in lists {
            let (path, unique) = list;
            let item = match path.last().map(String::as_str) {
                _ if unique == "map" => "{name: a}",
                Some("allowMethods") => "GET",
                Some("allowOrigins") => "'https://a.example'",
                Some("codes") => "500",
                _ => "a",
            };
            let value = path.iter().rev().fold(format!("[{item}, {item}]"), |inner, step| {
                match step.strip_suffix("[]") {
                    Some(name) => format!("{{{name}: [{inner}]}}"),
                    None => format!("{{{step}: {inner}}}"),
                }
            });
            let name = if kind == "httproutes" { "HTTPRoute" } else { "GRPCRoute" };
            let value = value.replacen('{', &format!("{{parentRefs: [{CART}], "), 1);
            let found = findings(&object(name, "shop/r", &value));
            assert!(
                found.iter().any(|of| of.remedy.starts_with("write it once")),
                "{name} {value}: {found:#?}"
            );
        }
    }
}

/// Paths of lists of type `map` and `set`, by step; those of listeners and parents have rules of their own.
fn collect(schema: &Value, path: &mut Vec<String>, lists: &mut BTreeSet<(Vec<String>, String)>) {
    if let kind @ ("map" | "set") = schema["x-kubernetes-list-type"].as_str().unwrap_or_default() {
        let mut steps = path.clone();
        steps.retain(|step| !step.is_empty());
        lists.insert((steps, kind.to_owned()));
    }
    if schema["items"].is_object()
        && let Some(last) = path.last().cloned()
    {
        *path.last_mut().unwrap() = format!("{last}[]");
        collect(&schema["items"], path, lists);
        *path.last_mut().unwrap() = last;
    }
    for (name, of) in schema["properties"].as_object().into_iter().flatten() {
        path.push(name.clone());
        collect(of, path, lists);
        path.pop();
    }
}

fn gateway(spec: &str) -> String {
    object("Gateway", "shop/edge", &format!("{{gatewayClassName: culvert, {spec}}}"))
}

#[test]
fn what_the_rules_between_fields_of_a_gateway_forbid_is_told_where_it_stands() {
    let http = "{name: a, port: 80, protocol: HTTP}";
    let with = |listener: &str| gateway(&format!("listeners: [{http}, {listener}]"));
    let addresses = |all: &str| gateway(&format!("listeners: [{http}], addresses: [{all}]"));
    let keys = |field: &str, key: &str| {
        gateway(&format!("listeners: [{http}], infrastructure: {{{field}: {{{key}: b}}}}"))
    };
    let long = format!("{}.example/a", "a".repeat(253));
    let per_port = |second: u16| {
        gateway(&format!(
            "listeners: [{http}], tls: {{frontend: {{default: {{}}, perPort: [{{port: 443, tls: {{}}}}, {{port: {second}, tls: {{}}}}]}}}}"
        ))
    };
    let certificate = "certificateRefs: [{name: c}]";
    let https = |tls: &str| with(&format!("{{name: b, port: 443, protocol: HTTPS, tls: {{{tls}}}}}"));
    let tls = |tls: &str| with(&format!("{{name: b, port: 443, protocol: TLS{tls}}}"));
    let cases = [
        (with("{name: a, port: 81, protocol: HTTP}"), Some("spec.listeners[1].name")),
        (with("{name: b, port: 81, protocol: HTTP}"), None),
        (with("{name: b, port: 80, protocol: HTTP}"), Some("spec.listeners[1]")),
        (with("{name: b, port: 80, protocol: HTTP, hostname: a.example}"), None),
        (
            with("{name: b, port: 81, protocol: HTTP, tls: {mode: Passthrough}}"),
            Some("spec.listeners[1].tls"),
        ),
        (with("{name: b, port: 90, protocol: TCP, hostname: a.example}"), Some("spec.listeners[1].hostname")),
        (with("{name: b, port: 90, protocol: TCP}"), None),
        (https("mode: Passthrough"), Some("spec.listeners[1].tls.mode")),
        (https(certificate), None),
        (https(""), Some("spec.listeners[1].tls.certificateRefs")),
        (https("mode: Terminate, options: {example.com/a: b}"), None),
        (tls(""), Some("spec.listeners[1].tls")),
        (tls(", tls: {mode: Passthrough}"), None),
        (addresses("{value: 10.0.0.1}, {type: IPAddress, value: 10.0.0.1}"), Some("spec.addresses[1].value")),
        (addresses("{value: 10.0.0.1}, {value: 10.0.0.2}"), None),
        (
            addresses("{type: Hostname, value: a.example}, {type: Hostname, value: a.example}"),
            Some("spec.addresses[1].value"),
        ),
        (addresses("{type: Hostname, value: a_b}"), Some("spec.addresses[0].value")),
        (addresses("{type: Hostname, value: '*.a.example'}"), None),
        (keys("labels", "a b"), Some("spec.infrastructure.labels")),
        (keys("labels", "example.com/a"), None),
        (keys("annotations", &long), Some("spec.infrastructure.annotations")),
        (per_port(443), Some("spec.tls.frontend.perPort[1].port")),
        (per_port(8443), None),
    ];
    for (text, expected) in cases {
        assert_eq!(forbidden(&text), expected.into_iter().collect::<Vec<_>>(), "{text}");
    }
    let set = object(
        "ListenerSet",
        "shop/more",
        "{parentRef: {name: edge}, listeners: [{name: a, port: 80, protocol: HTTP}, {name: a, port: 81, protocol: HTTP}]}",
    );
    assert!(told(&set).contains(&"CV102 spec.listeners[1].name".to_owned()), "{:?}", told(&set));
}
