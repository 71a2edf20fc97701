//! What a later version may write into a route, put at every place of one that uses all there is: the rule it is in answers 500
//! and the status names it; the other rules stay as they are.

// Helpers outside test functions are tests too.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use culvert_api::mesh as pb;
use culvert_controller::status::DesiredCondition;
use culvert_controller::translate::{Environment, translate};
use culvert_objects::mesh_config::LastGood;
use culvert_objects::types::ConditionStatus;
use culvert_objects::{Kind, Object, ObjectKey, Objects, manifest};
use serde_json::{Value, json};

const NAME: &str = "r";

fn http_route() -> Value {
    let headers =
        json!({"set": [{"name": "a", "value": "b"}], "add": [{"name": "c", "value": "d"}], "remove": ["e"]});
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": NAME, "namespace": "shop"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "cart"}],
            "hostnames": ["a.example"],
            "rules": [
                {"name": "plain", "backendRefs": [{"name": "cart", "port": 80}]},
                {"matches": [
                    {"path": {"type": "PathPrefix", "value": "/a"}, "method": "GET",
                        "headers": [{"type": "Exact", "name": "a", "value": "b"}],
                        "queryParams": [{"type": "RegularExpression", "name": "a", "value": "b"}]}],
                    "filters": [
                        {"type": "RequestHeaderModifier", "requestHeaderModifier": headers},
                        {"type": "ResponseHeaderModifier", "responseHeaderModifier": headers},
                        {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"}}},
                        {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "cart", "port": 80},
                            "fraction": {"numerator": 1, "denominator": 2}}},
                        {"type": "CORS", "cors": {"allowOrigins": ["https://a.example"], "allowMethods": ["PUT"]}}],
                    "backendRefs": [{"group": "", "kind": "Service", "name": "cart", "port": 80, "weight": 1, "filters": [
                        {"type": "RequestHeaderModifier", "requestHeaderModifier": headers}]}],
                    "retry": {"codes": [500], "attempts": 2, "backoff": "1s"},
                    "timeouts": {"request": "1s", "backendRequest": "1s"}},
                {"matches": [{"path": {"type": "Exact", "value": "/c"}}],
                    "filters": [{"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "hostname": "b.example",
                        "port": 443, "statusCode": 301, "path": {"type": "ReplaceFullPath", "replaceFullPath": "/d"}}}]}]}})
}

fn grpc_route() -> Value {
    let headers = json!({"set": [{"name": "a", "value": "b"}]});
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute", "metadata": {"name": NAME, "namespace": "shop"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "cart"}],
            "rules": [
                {"name": "plain", "backendRefs": [{"name": "cart", "port": 80}]},
                {"matches": [{"method": {"type": "Exact", "service": "a.B", "method": "C"},
                        "headers": [{"type": "RegularExpression", "name": "a", "value": "b"}]}],
                    "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": headers},
                        {"type": "ResponseHeaderModifier", "responseHeaderModifier": headers},
                        {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "cart", "port": 80}, "percent": 1}}],
                    "backendRefs": [{"group": "", "kind": "Service", "name": "cart", "port": 80, "filters": [
                        {"type": "ResponseHeaderModifier", "responseHeaderModifier": headers}]}]}]}})
}

/// The rules that proxies get and what the status says.
struct Outcome {
    rules: Vec<pb::RouteRule>,
    conditions: Vec<DesiredCondition>,
}

fn outcome(route: &Value) -> Outcome {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {"clusterIP": "10.2.0.1", "ports": [{"port": 80}]}});
    let objects = [service, route.clone()].map(|object| serde_json::from_value::<Object>(object).unwrap());
    let objects: Objects = objects.into_iter().collect();
    let translation = translate(&objects, &Environment::default(), &LastGood::default());
    let kind = if route["kind"] == "HTTPRoute" { Kind::HttpRoute } else { Kind::GrpcRoute };
    let status = &translation.statuses[&ObjectKey::namespaced(kind, "shop", NAME)];
    let [parent] = status.parents.as_slice() else { panic!("{status:?}") };
    let route = translation.routes.values().next().unwrap_or_else(|| panic!("a route is left out: {route}"));
    Outcome { rules: route.rules.clone(), conditions: parent.conditions.clone() }
}

/// Every place in a value, as a JSON pointer and as statuses write it.
fn places(value: &Value, pointer: &str, path: &str, found: &mut Vec<(String, String)>) {
    found.push((pointer.to_owned(), path.to_owned()));
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                places(value, &format!("{pointer}/{name}"), &format!("{path}.{name}"), found);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                places(value, &format!("{pointer}/{index}"), &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

/// Rules as `spec.rules[1].matches` has them; None: not in a rule.
fn rule_of(path: &str) -> Option<usize> {
    path.strip_prefix("spec.rules[")?.split_once(']')?.0.parse().ok()
}

/// The rules that something at `path` concerns refuse and say so, the others do not.
fn check(good: &Outcome, route: &Value, path: &str) {
    let Outcome { rules, conditions } = outcome(route);
    assert_eq!(rules.len(), good.rules.len(), "{path}");
    for (index, (rule, before)) in rules.iter().zip(&good.rules).enumerate() {
        match rule_of(path) {
            Some(of) if of != index => assert_eq!(rule, before, "{path}"),
            _ => {
                assert!(rule.refuse.contains(path), "{path}: {}", rule.refuse);
                assert_eq!(rule.matches.len(), before.matches.len(), "{path}");
                assert!(rule.filters.is_empty() && rule.backends.is_empty(), "{path}");
            }
        }
    }
    let (kind, status) = match rule_of(path) {
        Some(_) => ("PartiallyInvalid", ConditionStatus::True),
        None => ("Accepted", ConditionStatus::False),
    };
    let says = |at: &DesiredCondition| {
        at.kind == kind && at.status == status && at.reason == "UnsupportedValue" && at.message.contains(path)
    };
    assert!(conditions.iter().any(says), "{path}: {conditions:#?}");
}

#[test]
fn a_field_that_nobody_knows_refuses_the_rule_that_it_is_in() {
    let mut tried = 0;
    for route in [http_route(), grpc_route()] {
        let good = outcome(&route);
        assert!(good.rules.iter().all(|rule| rule.refuse.is_empty()), "{:?}", good.rules);
        let mut all = Vec::new();
        places(&route["spec"], "/spec", "spec", &mut all);
        for (pointer, path) in all {
            let mut route = route.clone();
            let Some(fields) = route.pointer_mut(&pointer).and_then(Value::as_object_mut) else { continue };
            fields.insert("later".to_owned(), json!({"than": "this"}));
            check(&good, &route, &format!("{path}.later"));
            tried += 1;
        }
    }
    assert!(tried >= 45, "{tried}");
}

#[test]
fn a_choice_that_nobody_knows_refuses_the_rule_that_it_is_in() {
    let mut tried = 0;
    for route in [http_route(), grpc_route()] {
        let good = outcome(&route);
        let mut all = Vec::new();
        places(&route["spec"], "/spec", "spec", &mut all);
        for (pointer, path) in all {
            let later = match path.rsplit('.').next().unwrap() {
                "type" | "scheme" => json!("Later"),
                "statusCode" => json!(399),
                "method" if route.pointer(&pointer) == Some(&json!("GET")) => json!("LATER"),
                _ => continue,
            };
            let mut route = route.clone();
            *route.pointer_mut(&pointer).unwrap() = later;
            check(&good, &route, &path);
            tried += 1;
        }
    }
    assert!(tried >= 16, "{tried}");
}

#[test]
fn a_backend_of_a_kind_that_nobody_knows_answers_500_for_its_share() {
    for mut route in [http_route(), grpc_route()] {
        route["spec"]["rules"][1]["backendRefs"][0]["kind"] = json!("Later");
        let Outcome { rules, conditions } = outcome(&route);
        assert!(rules.iter().all(|rule| rule.refuse.is_empty()), "{rules:?}");
        let invalid =
            |of: &pb::RouteBackend| matches!(of.target, Some(pb::route_backend::Target::Invalid(_)));
        assert!(rules[1].backends.iter().all(invalid), "{rules:?}");
        let says = |at: &DesiredCondition| at.kind == "ResolvedRefs" && at.reason == "InvalidKind";
        assert!(conditions.iter().any(says), "{conditions:#?}");
    }
}

#[test]
fn a_route_without_rules_refuses_too() {
    for mut route in [http_route(), grpc_route()] {
        for rules in [json!([]), json!({"later": 1})] {
            route["spec"]["rules"] = rules;
            route["spec"]["later"] = json!(1);
            let Outcome { rules, conditions } = outcome(&route);
            assert!(rules.len() == 1 && rules[0].refuse.contains("spec.later"), "{rules:?}");
            assert_eq!(
                (conditions[0].status, conditions[0].reason.as_str()),
                (ConditionStatus::False, "UnsupportedValue")
            );
        }
    }
}

#[test]
fn a_parent_that_cannot_be_read_is_told_so() {
    let mut route = http_route();
    route["spec"]["parentRefs"] = json!([{"name": "edge", "port": "web"}, {"name": "of-others", "port": "web"},
        {"group": "", "kind": "Service", "name": "cart", "port": [80]}]);
    let gateway = manifest::parse(include_str!("mesh/gateway.yaml"), Path::new("gateway.yaml"));
    let gateway = gateway.objects.into_iter().map(|at| at.object);
    let objects: Objects = gateway.chain([serde_json::from_value(route).unwrap()]).collect();
    let translation = translate(&objects, &Environment::default(), &LastGood::default());
    let status = &translation.statuses[&ObjectKey::namespaced(Kind::HttpRoute, "shop", NAME)];
    let [edge, cart] = status.parents.as_slice() else { panic!("{status:?}") };
    for (parent, path) in [(edge, "spec.parentRefs[0].port"), (cart, "spec.parentRefs[2].port")] {
        let accepted = &parent.conditions[0];
        assert_eq!((accepted.status, accepted.reason.as_str()), (ConditionStatus::False, "NoMatchingParent"));
        assert!(accepted.message.contains(path), "{}", accepted.message);
    }
    assert!(translation.routes.is_empty());
}
