//! Fields and values that look right, are found in articles and in other systems, and do not exist in the Gateway API: each with
//! the real way to say it.

use serde_json::Value;

use crate::api;
use crate::code::Code;
use crate::context::{Context, Document};
use crate::finding::Finding;
use crate::words::nearest;

const RATE_LIMIT: &str = "the Gateway API has no rate limit; what bounds a client is Culvert's settings limits.connections and \
                          limits.requests, per workload (docs/settings.md)";
const BACKEND_TLS: &str = "a BackendTLSPolicy in the Service's namespace, with targetRefs to it and validation, says how a backend \
                           is spoken to in TLS (there is no way to skip the check); between pods of the mesh it is mutual TLS \
                           without a word";
const CLIENT_CERTIFICATES: &str = "client certificates are asked for in the Gateway's spec.tls.frontend.default.validation \
                                   (caCertificateRefs), or perPort";
const ACCESS_LOG: &str = "MeshConfig's accessLog.filter: all (or failures, none) says what is logged, accessLog.format how \
                          (docs/settings.md)";
const TRACING: &str = "the Gateway API has no tracing; Culvert passes traceparent on and makes one where there is none, the sampling is \
                       the applications'";
const TLS: &str = "TLS ends at the Gateway's listener: listeners[].tls with certificateRefs; towards backends it is a BackendTLSPolicy";
const RETRY: &str = "rules[].retry with attempts, codes and backoff";
const TIMEOUT: &str = "rules[].timeouts with request (of all tries) and backendRequest (of one)";
const PATH_MATCH: &str = "matches[].path with type: PathPrefix (or Exact, RegularExpression) and value";

/// A field: kinds it is written in (empty: any route), what its path ends with, items without their numbers, and the real way.
struct Instead {
    kinds: &'static [&'static str],
    path: &'static str,
    way: &'static str,
}

const fn route(path: &'static str, way: &'static str) -> Instead {
    Instead { kinds: &["HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute", "UDPRoute"], path, way }
}

const fn gateway(path: &'static str, way: &'static str) -> Instead {
    Instead { kinds: &["Gateway", "ListenerSet"], path, way }
}

const FIELDS: &[Instead] = &[
    route("backendRefs[].tls", BACKEND_TLS),
    route("spec.tls", TLS),
    route("spec.rules[].tls", TLS),
    route("filters[].requestRateLimit", RATE_LIMIT),
    route("filters[].rateLimit", RATE_LIMIT),
    route("spec.rules[].rateLimit", RATE_LIMIT),
    route("spec.rateLimit", RATE_LIMIT),
    route("spec.rules[].retries", RETRY),
    route("spec.rules[].retryPolicy", RETRY),
    route("spec.retry", RETRY),
    route("spec.retries", RETRY),
    route("retry.numRetries", "retry.attempts"),
    route("retry.retryOn", "retry.codes; connections that fail are tried again without them"),
    route("retry.perTryTimeout", "timeouts.backendRequest of the rule"),
    route("spec.rules[].timeout", TIMEOUT),
    route("spec.timeout", TIMEOUT),
    route("spec.timeouts", TIMEOUT),
    route("timeouts.backend", "timeouts.backendRequest"),
    route("timeouts.response", "timeouts.request, which ends with the last byte of the response"),
    route(
        "timeouts.idle",
        "there is none per route; MeshConfig has timeouts.connectionIdle and timeouts.bodyIdle",
    ),
    route("spec.rules[].cors", "a filter of type CORS with the field cors"),
    route("spec.rules[].corsPolicy", "a filter of type CORS with the field cors"),
    route("spec.rules[].mirror", "a filter of type RequestMirror with requestMirror.backendRef and percent"),
    route("requestMirror.percentage", "requestMirror.percent, or fraction"),
    route("requestMirror.backend", "requestMirror.backendRef"),
    route("spec.rules[].redirect", "a filter of type RequestRedirect with the field requestRedirect"),
    route("spec.rules[].rewrite", "a filter of type URLRewrite with the field urlRewrite"),
    route("spec.rules[].headers", "filters of type RequestHeaderModifier and ResponseHeaderModifier"),
    route("spec.rules[].sessionAffinity", "rules[].sessionPersistence"),
    route("sessionPersistence.idleTimeout", "absoluteTimeout; idleTimeout left the API in v1.6"),
    route("sessionPersistence.cookie", "sessionName and cookieConfig.lifetimeType, in the shape of v1.6"),
    route("sessionPersistence.header", "sessionName with type: Header, in the shape of v1.6"),
    route("spec.sessionAffinity", "rules[].sessionPersistence"),
    route("spec.rules[].host", "spec.hostnames (at a Gateway)"),
    route(
        "spec.rules[].http",
        "rules[].matches and rules[].backendRefs themselves: the form of an Ingress has a level more",
    ),
    route("spec.rules[].match", "rules[].matches, a list"),
    route("spec.rules[].route", "rules[].backendRefs"),
    route("spec.rules[].forwardTo", "rules[].backendRefs"),
    route("spec.rules[].backends", "rules[].backendRefs"),
    route("spec.rules[].weight", "backendRefs[].weight"),
    route("spec.rules[].delegate", "attach both routes to the same parent; the more specific match wins"),
    route("matches[].uri", PATH_MATCH),
    route("matches[].prefix", PATH_MATCH),
    route("matches[].pathType", PATH_MATCH),
    route("matches[].host", "spec.hostnames (at a Gateway)"),
    route("matches[].queryParameters", "matches[].queryParams"),
    route("matches[].methods", "matches[].method, one per match; several are several matches"),
    route("backendRefs[].serviceName", "backendRefs[].name"),
    route("backendRefs[].servicePort", "backendRefs[].port"),
    route("backendRefs[].service", "backendRefs[].name, namespace and port themselves"),
    route("backendRefs[].targetPort", "backendRefs[].port, a port of the Service and not of the pods"),
    route("backendRefs[].timeout", TIMEOUT),
    route("spec.gateways", "spec.parentRefs"),
    route("spec.parents", "spec.parentRefs"),
    route("spec.gatewayRef", "spec.parentRefs, a list"),
    route("spec.hosts", "spec.hostnames"),
    route("spec.accessLog", ACCESS_LOG),
    route("spec.tracing", TRACING),
    gateway("listeners[].options", "listeners have no options: TLS has tls.options, and Culvert knows none"),
    gateway("listeners[].accessLog", ACCESS_LOG),
    gateway("spec.accessLog", ACCESS_LOG),
    gateway("listeners[].tracing", TRACING),
    gateway("spec.tracing", TRACING),
    gateway("listeners[].certificateRefs", "listeners[].tls.certificateRefs"),
    gateway("tls.secretName", "tls.certificateRefs: [{name: ...}]"),
    gateway("tls.credentialName", "tls.certificateRefs: [{name: ...}]"),
    gateway("tls.certificateRef", "tls.certificateRefs, a list"),
    gateway("tls.clientValidation", CLIENT_CERTIFICATES),
    gateway("tls.frontendValidation", CLIENT_CERTIFICATES),
    gateway("tls.caCertificateRefs", CLIENT_CERTIFICATES),
    gateway("tls.clientAuth", CLIENT_CERTIFICATES),
    gateway(
        "tls.minVersion",
        "Culvert speaks TLS 1.2 and 1.3 at listeners, and 1.3 between pods; there is nothing to set",
    ),
    gateway("listeners[].hosts", "listeners[].hostname, one per listener"),
    gateway("listeners[].hostnames", "listeners[].hostname, one per listener"),
    gateway("listeners[].routes", "listeners[].allowedRoutes"),
    gateway("spec.servers", "spec.listeners"),
    gateway("spec.selector", "spec.gatewayClassName: the class says who serves it"),
    gateway("spec.replicas", "the Deployment that is made for the Gateway can be scaled"),
    gateway("spec.rateLimit", RATE_LIMIT),
];

/// Words in the keys of options, and the real way.
const OPTIONS: &[(&str, &str)] = &[
    ("auth", CLIENT_CERTIFICATES),
    ("client", CLIENT_CERTIFICATES),
    ("mtls", CLIENT_CERTIFICATES),
    ("log", ACCESS_LOG),
    ("trac", TRACING),
    ("sampl", TRACING),
    ("rate", RATE_LIMIT),
    ("backend", BACKEND_TLS),
];

/// Words in types of filters, and the real way.
const FILTERS: &[(&str, &str)] = &[
    ("ratelimit", RATE_LIMIT),
    ("retry", RETRY),
    ("timeout", TIMEOUT),
    ("accesslog", ACCESS_LOG),
    ("tracing", TRACING),
    ("jwt", "the Gateway API has ExternalAuth (experimental), which asks a service of yours"),
    ("auth", "the Gateway API has ExternalAuth (experimental), which asks a service of yours"),
    ("oidc", "the Gateway API has ExternalAuth (experimental), which asks a service of yours"),
    ("stripprefix", "type: URLRewrite with path: {type: ReplacePrefixMatch, replacePrefixMatch: /}"),
    ("rewrite", "type: URLRewrite"),
    ("redirect", "type: RequestRedirect"),
    ("mirror", "type: RequestMirror"),
    ("requestheader", "type: RequestHeaderModifier"),
    ("responseheader", "type: ResponseHeaderModifier"),
    ("header", "type: RequestHeaderModifier or ResponseHeaderModifier"),
    ("delegat", "attach both routes to the same parent; the more specific match wins"),
];

pub fn find(context: &Context) -> Vec<Finding> {
    let mut findings = Vec::new();
    for document in context.documents.iter().filter(|of| api::kinds().contains_key(&of.kind)) {
        walk(document, &document.value["spec"], "spec", "spec", &mut findings);
    }
    findings
}

/// `plain` is the path without the numbers of items.
fn walk(document: &Document, value: &Value, path: &str, plain: &str, findings: &mut Vec<Finding>) {
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                walk(document, item, &format!("{path}[{index}]"), &format!("{plain}[]"), findings);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                let (path, plain) = (format!("{path}.{name}"), format!("{plain}.{name}"));
                match told(document, value, &path, &plain) {
                    Some(finding) => findings.push(finding),
                    None if name == "options" => findings.extend(options(document, value, &path)),
                    None => walk(document, value, &path, &plain, findings),
                }
            }
        }
        _ => {}
    }
}

fn told(document: &Document, value: &Value, path: &str, plain: &str) -> Option<Finding> {
    let (_, name) = plain.rsplit_once('.')?;
    if plain.ends_with("filters[].type") {
        return filter(document, value.as_str()?, path);
    }
    let is = |of: &&Instead| {
        let ends = plain.strip_suffix(of.path).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        ends && of.kinds.contains(&document.kind.as_str())
    };
    let instead = FIELDS.iter().find(is)?;
    let mut way = instead.way.to_owned();
    if name == "options" {
        let said = value.as_object().into_iter().flatten().find_map(|(key, _)| option(key));
        way = said.map_or(way, str::to_owned);
    }
    let what = format!("the Gateway API has no field {name} here");
    Some(document.finding(Code::InventedField, path, what, way))
}

fn option(key: &str) -> Option<&'static str> {
    let name = key.rsplit('/').next().unwrap_or(key).to_lowercase();
    OPTIONS.iter().find(|(word, _)| name.contains(word)).map(|(_, way)| *way)
}

/// `tls.options` exists, and its keys are each implementation's own: Culvert has none, the API itself neither.
fn options(document: &Document, value: &Value, path: &str) -> Vec<Finding> {
    let keys = value.as_object().into_iter().flatten().map(|(key, _)| key);
    let told = keys.map(|key| {
        let whose = match key.split_once('/') {
            Some((group, _)) if group.ends_with("k8s.io") => "the Gateway API defines no option",
            _ => "Culvert knows no option",
        };
        let way = option(key).unwrap_or("take it away");
        document.finding(Code::InventedField, format!("{path}.{key}"), format!("{whose} {key}"), way)
    });
    told.collect()
}

fn filter(document: &Document, kind: &str, path: &str) -> Option<Finding> {
    let known: &[&str] = match document.kind.as_str() {
        "HTTPRoute" => &[
            "RequestHeaderModifier",
            "ResponseHeaderModifier",
            "RequestMirror",
            "RequestRedirect",
            "URLRewrite",
            "CORS",
            "ExtensionRef",
            "ExternalAuth",
        ],
        "GRPCRoute" => &["RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror", "ExtensionRef"],
        _ => return None,
    };
    if known.contains(&kind) {
        return None;
    }
    let plain = kind.to_lowercase().replace(['-', '_'], "");
    let near = nearest(kind, known.iter().copied()).map(|near| format!("type: {near}"));
    let said = || FILTERS.iter().find(|(word, _)| plain.contains(word)).map(|(_, way)| (*way).to_owned());
    let way = near.or_else(said).unwrap_or_else(|| format!("the types are {}", known.join(", ")));
    let what = format!("{}s have no filter of type {kind}", document.kind);
    Some(document.finding(Code::InventedField, path, what, way))
}
