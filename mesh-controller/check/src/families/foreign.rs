//! What other implementations read and Culvert does not: Ingresses, and annotations on objects of the Gateway API.

use culvert_objects::types::GATEWAY_GROUP;

use crate::code::Code;
use crate::context::{Context, Document};
use crate::finding::Finding;

/// Groups of annotations that other implementations read on Ingresses, routes and Gateways.
const OTHERS: &[&str] = &[
    "nginx.ingress.kubernetes.io/",
    "nginx.org/",
    "traefik.ingress.kubernetes.io/",
    "haproxy.org/",
    "haproxy-ingress.github.io/",
    "konghq.com/",
    "alb.ingress.kubernetes.io/",
    "appgw.ingress.kubernetes.io/",
    "projectcontour.io/",
    "retry.linkerd.io/",
    "timeout.linkerd.io/",
];

/// What is said of annotations that have no equal.
const NOTHING: &str = "there is nothing for it yet";

/// Words of annotations, and how the Gateway API says it.
const SAID: &[(&str, &str)] = &[
    ("rewrite-target", "a filter of type URLRewrite"),
    ("app-root", "a rule with a filter of type RequestRedirect"),
    ("ssl-redirect", "a rule at the HTTP listener with a filter of type RequestRedirect, scheme: https"),
    ("permanent-redirect", "a filter of type RequestRedirect with statusCode: 301"),
    ("temporal-redirect", "a filter of type RequestRedirect"),
    ("cors", "a filter of type CORS"),
    ("canary", "several backendRefs with weight, or a match of a header"),
    ("affinity", "sessionPersistence of the rule"),
    (
        "rate-limit",
        "there is nothing for it yet: the Gateway API has no rate limit (Culvert bounds each workload by its settings, limits.*)",
    ),
    (
        "limit-rps",
        "there is nothing for it yet: the Gateway API has no rate limit (Culvert bounds each workload by its settings, limits.*)",
    ),
    ("limit-conn", "Culvert's setting limits.connections"),
    ("auth", "a filter of type ExternalAuth"),
    ("whitelist", "there is nothing for it yet but a NetworkPolicy, for addresses"),
    ("allowlist", "there is nothing for it yet but a NetworkPolicy, for addresses"),
    ("timeout", "timeouts of the rule"),
    ("retr", "retry of the rule"),
    ("next-upstream", "retry of the rule"),
    ("mirror", "a filter of type RequestMirror"),
    ("backend-protocol", "appProtocol of the Service's port, or a BackendTLSPolicy"),
    ("ssl-passthrough", "a TLSRoute"),
    ("custom-headers", "a filter of type ResponseHeaderModifier"),
    ("configuration-snippet", "filters, one by one"),
    ("use-regex", "a path match of type RegularExpression"),
];

pub fn find(context: &Context) -> Vec<Finding> {
    let mut findings = Vec::new();
    for document in &context.documents {
        let group = document.api_version.split_once('/').map_or("", |(group, _)| group);
        if document.kind == "Ingress" {
            findings.push(ingress(document));
        }
        if document.kind == "Ingress" || group == GATEWAY_GROUP {
            findings.extend(annotations(document));
        }
    }
    findings
}

fn ingress(document: &Document) -> Finding {
    let what = "Culvert does not read Ingresses: a controller of theirs goes on to serve it";
    let remedy = "a Gateway with a listener per host (spec.tls becomes its certificateRefs) and an HTTPRoute with hostnames and \
                  path matches say the same";
    document.finding(Code::Ingress, "kind", what, remedy)
}

fn annotations(document: &Document) -> Vec<Finding> {
    let annotations = document.value["metadata"]["annotations"].as_object();
    let names = annotations.into_iter().flatten().map(|(name, _)| name);
    let names = names.filter(|name| OTHERS.iter().any(|other| name.starts_with(other)));
    let told = names.map(|name| {
        let said = SAID.iter().find(|(word, _)| name.contains(word)).map(|(_, said)| *said);
        let what = format!("Culvert does not read {name}");
        let remedy = match said {
            Some(said) if said.starts_with(NOTHING) => said.to_owned(),
            Some(said) => format!("write {said}"),
            None => "see the filters of an HTTPRoute rule".to_owned(),
        };
        document.finding(Code::ForeignAnnotation, format!("metadata.annotations.{name}"), what, remedy)
    });
    told.collect()
}
