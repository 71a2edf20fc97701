//! Kinds and versions that no API server has, and the nearest that it has.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers outside test functions are tests too")]

mod common;

use common::{at_cart, findings, told};
use culvert_check::Finding;

fn of(version: &str, kind: &str) -> Vec<Finding> {
    findings(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n"))
        .into_iter()
        .filter(|of| ["CV105", "CV106", "CV107"].contains(&of.code.as_str()))
        .collect()
}

/// `CODE remedy`, or nothing.
fn said(version: &str, kind: &str) -> String {
    of(version, kind).iter().map(|of| format!("{} {}", of.code, of.remedy)).collect()
}

#[test]
fn groups_that_nobody_has_are_named() {
    let route = "CV105 write apiVersion: gateway.networking.k8s.io/v1";
    for version in [
        "gateway.networking.k8s.io",
        "gateway.networking.io/v1",
        "gateway.networking.kubernetes.io/v1",
        "gateway.k8s.io/v1",
        "gateway.netwroking.k8s.io/v1",
        "v1",
    ] {
        assert_eq!(said(version, "HTTPRoute"), route, "{version}");
    }
    assert_eq!(said("apps", "Deployment"), "CV105 write apiVersion: apps/v1");
    assert_eq!(said("core/v1", "Service"), "CV105 write apiVersion: v1");
    let policy = of("gateway.networking.k8s.io/v1", "XBackendTrafficPolicy").remove(0);
    assert!(!policy.what.contains("did you mean"), "{}", policy.what);
    assert_eq!(policy.remedy, "write apiVersion: gateway.networking.x-k8s.io/v1alpha1");
    // Others have kinds of these names, in groups of their own.
    for (version, kind) in [
        ("policy.linkerd.io/v1beta3", "HTTPRoute"),
        ("gateway.solo.io/v1", "Gateway"),
        ("gateway.nginx.org/v1", "Gateway"),
        ("networking.istio.io/v1", "Gateway"),
        ("apps/v1", "Deployment"),
        ("v1", "Service"),
        ("v1", "Frobnicator"),
    ] {
        assert_eq!(said(version, kind), "", "{version} {kind}");
    }
}

#[test]
fn versions_that_kubernetes_took_away_are_named_and_those_that_it_serves_are_not() {
    let gone = [
        ("batch/v2alpha1", "CronJob", "batch/v1"),
        (
            "admissionregistration.k8s.io/v1beta1",
            "ValidatingWebhookConfiguration",
            "admissionregistration.k8s.io/v1",
        ),
        ("apiregistration.k8s.io/v1beta1", "APIService", "apiregistration.k8s.io/v1"),
        ("certificates.k8s.io/v1beta1", "CertificateSigningRequest", "certificates.k8s.io/v1"),
        ("coordination.k8s.io/v1beta1", "Lease", "coordination.k8s.io/v1"),
        ("events.k8s.io/v1beta1", "Event", "events.k8s.io/v1"),
        ("storage.k8s.io/v1beta1", "CSIDriver", "storage.k8s.io/v1"),
        ("scheduling.k8s.io/v1beta1", "PriorityClass", "scheduling.k8s.io/v1"),
        ("node.k8s.io/v1beta1", "RuntimeClass", "node.k8s.io/v1"),
        ("flowcontrol.apiserver.k8s.io/v1beta3", "FlowSchema", "flowcontrol.apiserver.k8s.io/v1"),
    ];
    for (version, kind, instead) in gone {
        assert_eq!(said(version, kind), format!("CV106 write apiVersion: {instead}"), "{version} {kind}");
    }
    assert!(said("policy/v1beta1", "PodSecurityPolicy").contains("pod-security.kubernetes.io/enforce"));
    // The same versions, of kinds that came later.
    for (version, kind) in [
        ("coordination.k8s.io/v1beta1", "LeaseCandidate"),
        ("certificates.k8s.io/v1beta1", "ClusterTrustBundle"),
        ("storage.k8s.io/v1", "CSIDriver"),
        ("batch/v1", "CronJob"),
        ("flowcontrol.apiserver.k8s.io/v1", "FlowSchema"),
    ] {
        assert_eq!(said(version, kind), "", "{version} {kind}");
    }
}

fn role(rule: &str) -> String {
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {{name: a}}\nrules: [{{{rule}}}]\n"
    )
}

#[test]
fn verbs_that_do_not_exist_are_named() {
    let on_routes = |verbs: &str| {
        told(&role(&format!(
            "apiGroups: [gateway.networking.k8s.io], resources: [httproutes], verbs: {verbs}"
        )))
    };
    assert_eq!(on_routes("[get, edit]"), ["CV504 rules[0].verbs[1]"]);
    assert_eq!(on_routes("[get, approvee]"), ["CV504 rules[0].verbs[1]"]);
    assert_eq!(on_routes("[get, frobnicate]"), ["CV504 rules[0].verbs[1]"]);
    assert_eq!(on_routes("[get, update]"), [""; 0]);
    // The API server takes lists of strings.
    assert_eq!(on_routes("edit"), ["CV102 rules[0].verbs"]);
    assert_eq!(on_routes("[]"), ["CV102 rules[0].verbs"]);
    assert_eq!(on_routes("[get, 3]"), ["CV102 rules[0].verbs[1]"]);
    assert_eq!(told(&role("apiGroups: [''], resources: [pods]")), ["CV102 rules[0].verbs"]);
    let users = |verb: &str| {
        told(&role(&format!("apiGroups: [authentication.k8s.io], resources: [users], verbs: ['{verb}']")))
    };
    for verb in ["impersonate", "impersonate:user-info", "impersonate-on:user-info:list"] {
        assert_eq!(users(verb), [""; 0], "{verb}");
    }
    assert_eq!(users("impersonates"), ["CV504 rules[0].verbs[0]"]);
    // Others may ask for verbs of their own; a word for another verb is a word for another verb there, too.
    let on_theirs = |groups: &str, verb: &str| {
        findings(&role(&format!("apiGroups: [{groups}], resources: [things], verbs: [{verb}]")))
    };
    assert_eq!(on_theirs("example.com", "frobnicate"), []);
    assert!(
        on_theirs("example.com", "edit")
            .remove(0)
            .what
            .contains("unless something of example.com asks for it")
    );
    assert!(on_theirs("example.com, ''", "frobnicate").remove(0).what.starts_with("there is no verb"));
}

#[test]
fn whatever_has_items_is_a_list() {
    let list = |kind: &str, version: &str, items: &str| {
        format!("apiVersion: {version}\nkind: {kind}\nitems: [{items}]\n")
    };
    let rbac = "rbac.authorization.k8s.io/v1";
    let rule = "rules: [{apiGroups: [''], resources: [pods], verbs: [edit]}]";
    // Items of such a list may leave out what the list says.
    assert_eq!(
        told(&list("RoleList", rbac, &format!("{{metadata: {{name: a}}, {rule}}}"))),
        ["CV504 rules[0].verbs[0]"]
    );
    let written = format!("{{apiVersion: {rbac}, kind: Role, metadata: {{name: a}}, {rule}}}");
    assert_eq!(told(&list("List", "v1", &written)), ["CV504 rules[0].verbs[0]"]);
    let route = "{metadata: {name: a}, spec: {rules: [{backendRefs: [{name: cart, port: 80}]}]}}";
    let gateway = "gateway.networking.k8s.io/v1";
    assert_eq!(told(&list("HTTPRouteList", gateway, route)), ["CV306 spec.parentRefs"]);
    assert_eq!(told(&list("HTTPRouteList", gateway, "")), [""; 0]);
    assert_eq!(told(&at_cart("{backendRefs: [{name: cart, port: 80}]}")), [""; 0]);
}
