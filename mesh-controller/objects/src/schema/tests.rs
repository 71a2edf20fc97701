use serde_json::json;

use super::*;

fn faults(object: serde_json::Value) -> Vec<String> {
    let object: Object = serde_json::from_value(object).unwrap();
    check(&object).into_iter().map(|fault| fault.to_string()).collect()
}

#[test]
fn every_fault_of_an_object_is_found() {
    let found = faults(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "1A"}, "spec": {
        "clusterIP": "10.0.0", "internalTrafficPolicy": "Near",
        "ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "a"}]}}));
    assert_eq!(found.len(), 5, "{found:#?}");
    assert!(found[0].starts_with("metadata.name: invalid value: \"1A\""), "{found:?}");
}

#[test]
fn pods_are_checked_inside_deployments_too() {
    let found =
        faults(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {
        "selector": {"matchLabels": {"app": "x"}}, "template": {"metadata": {"labels": {"app": "y"}},
        "spec": {"containers": [{"name": "c", "livenessProbe": {}}]}}}}));
    let fields: Vec<&str> = found.iter().filter_map(|text| text.split(": ").next()).collect();
    assert_eq!(fields, ["spec.template.spec.containers[0].livenessProbe", "spec.template.metadata.labels"]);
}

#[test]
fn routes_are_checked_field_by_field_and_unknown_fields_are_left_to_their_status() {
    let route = |kind: &str, rule: serde_json::Value| {
        faults(json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": {"name": "a"},
            "spec": {"parentRefs": [{"name": "g", "later": 1}], "rules": [{}, rule], "later": true}}))
    };
    let cases = [
        ("HTTPRoute", json!({"later": [1]}), None),
        ("HTTPRoute", json!({"matches": [{"path": {"type": "Glob", "value": "/*"}}]}), None),
        (
            "HTTPRoute",
            json!({"matches": {}}),
            Some("spec.rules[1].matches: invalid type: map, expected a sequence"),
        ),
        (
            "HTTPRoute",
            json!({"matches": [{"path": {"value": 1}}]}),
            Some("spec.rules[1].matches[0].path.value: invalid type: integer `1`, expected a string"),
        ),
        (
            "HTTPRoute",
            json!({"backendRefs": [{"name": "a", "port": 70_000}]}),
            Some(
                "spec.rules[1].backendRefs[0].port: invalid value: integer `70000`, expected a port from 1 to 65535",
            ),
        ),
        (
            "HTTPRoute",
            json!({"backendRefs": [{"name": "a", "weight": -1}]}),
            Some("spec.rules[1].backendRefs[0].weight: invalid value: integer `-1`, expected u32"),
        ),
        (
            "HTTPRoute",
            json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": "302"}}]}),
            Some(
                "spec.rules[1].filters[0].requestRedirect.statusCode: invalid type: string \"302\", expected u16",
            ),
        ),
        (
            "HTTPRoute",
            json!({"backendRefs": [{}]}),
            Some("spec.rules[1].backendRefs[0]: missing field `name`"),
        ),
        ("GRPCRoute", json!({"matches": [{"method": {"service": "a.B"}}]}), None),
        (
            "GRPCRoute",
            json!({"matches": [{"method": "a.B/C"}]}),
            Some(
                "spec.rules[1].matches[0].method: invalid type: string \"a.B/C\", expected struct GrpcMethodMatch",
            ),
        ),
    ];
    for (kind, rule, expected) in cases {
        let found = route(kind, rule.clone());
        assert_eq!(found.first().map(String::as_str), expected, "{kind} {rule}");
    }
}

#[test]
fn gateways_and_grants_are_checked() {
    let api = "gateway.networking.k8s.io/v1";
    let gateway = faults(json!({"apiVersion": api, "kind": "Gateway", "metadata": {"name": "a"},
        "spec": {"gatewayClassName": "culvert", "listeners": [{"name": "http", "port": 0, "protocol": "HTTP"}]}}));
    assert!(gateway[0].starts_with("spec.listeners[0].port: invalid value"), "{gateway:?}");
    let class = faults(json!({"apiVersion": api, "kind": "GatewayClass", "metadata": {"name": "a"},
        "spec": {"controllerName": 1}}));
    assert!(class[0].starts_with("spec.controllerName: invalid type"), "{class:?}");
    let grant = faults(json!({"apiVersion": api, "kind": "ReferenceGrant", "metadata": {"name": "a"},
        "spec": {"from": [{"group": "", "kind": "Service"}], "to": []}}));
    assert!(grant[0].starts_with("spec.from[0]: missing field `namespace`"), "{grant:?}");
}

#[test]
fn names_are_told_apart() {
    assert!(dns_label("a-1").is_ok() && dns_label("").is_err() && dns_label("-a").is_err());
    assert!(dns_subdomain("a.b").is_ok() && dns_subdomain("a..b").is_err() && dns_subdomain("../a").is_err());
    assert!(port_name("http").is_ok() && port_name("80").is_err() && port_name("sixteen-letters-x").is_err());
    assert!(qualified_key("culvert.dev/mesh") && !qualified_key("a/b/c") && !qualified_key("/b"));
}

#[test]
fn every_field_of_the_wrong_type_is_named_and_what_follows_from_it_is_not() {
    let found =
        faults(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {
        "replicas": "three", "selector": {"matchLabels": {"app": "x"}}, "strategy": {"type": "Never"},
        "template": {"metadata": {"labels": {"app": 1}}, "spec": {"hostNetwork": "yes", "hostname": "-",
            "containers": [{"name": "c", "command": "sleep"}]}}}}));
    let mut fields: Vec<&str> = found.iter().filter_map(|text| text.split(": ").next()).collect();
    fields.sort_unstable();
    let pod = "spec.template.spec";
    assert_eq!(
        fields,
        [
            "spec.replicas".to_owned(),
            "spec.strategy.type".to_owned(),
            "spec.template.metadata.labels.app".to_owned(),
            format!("{pod}.containers[0].command"),
            format!("{pod}.hostNetwork"),
            format!("{pod}.hostname"),
        ],
        "{found:#?}"
    );
}
