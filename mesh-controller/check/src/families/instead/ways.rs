//! What is said another way: the words that people write, and the real way, with what this version of Culvert does not do of it.

const RATE_LIMIT: &str = "the Gateway API has no rate limit; what bounds a client is Culvert's settings limits.connections and \
                          limits.requests, per workload (docs/settings.md)";
const BACKEND_TLS: &str = "enrol the backend's namespace: between pods of the mesh, those of a Gateway too, it is mutual TLS without a \
                           word; what the API has for other backends, a BackendTLSPolicy beside the Service (with validation: there \
                           is no way to skip the check), this version of Culvert does not do (CV501), but a TLSRoute at the Service \
                           passes on unbroken what clients speak in TLS themselves";
const CLIENT_CERTIFICATES: &str = "between pods of the mesh both sides always show certificates, without a word; what the API has for \
                                   others, the Gateway's spec.tls.frontend.default.validation (caCertificateRefs) or perPort, this \
                                   version of Culvert does not do (CV501), but a TLSRoute at the Service passes TLS on unbroken to \
                                   pods that ask for certificates themselves";
const CERTIFICATES: &str = "TLS ends at a listener by protocol: HTTPS and tls.certificateRefs, a list of Secrets, which this version of \
                            Culvert does not do (CV501: it serves listeners of plain HTTP)";
const TLS: &str = "between pods of the mesh it is mutual TLS without a word; a TLSRoute at the Service passes on unbroken what clients \
                   speak in TLS themselves; TLS that ends at a Gateway's listener (tls.certificateRefs), or begins there towards \
                   backends (a BackendTLSPolicy), this version of Culvert does not do (CV501)";
const TLS_VERSION: &str = "there is nothing to set: between pods of the mesh it is TLS 1.3, and this version of Culvert ends no TLS at \
                           listeners (CV501)";
const ACCESS_LOG: &str = "MeshConfig's accessLog.filter: all (or failures, none) says what is logged, accessLog.format how \
                          (docs/settings.md)";
const TRACING: &str = "the Gateway API has no tracing; Culvert passes traceparent on and makes one where there is none, the sampling is \
                       the applications'";
const AUTH: &str = "check it in the application; what the API has, a filter of type ExternalAuth (experimental) that asks a service of \
                    yours, this version of Culvert does not do (CV501)";
const EJECTION: &str =
    "failing endpoints are passed over without a word; the settings ejection.* say when (docs/settings.md)";
const BALANCING: &str = "endpoints are chosen by latency and load without a word; the Service's trafficDistribution prefers near ones, \
                         rules[].sessionPersistence the same one";
const RETRY: &str = "an HTTPRoute's rules[].retry with attempts, codes and backoff";
const RETRY_BUDGET: &str =
    "an XBackendTrafficPolicy with retryConstraint.budget, for all who call the Service";
const TIMEOUT: &str =
    "an HTTPRoute's rules[].timeouts with request (of all tries) and backendRequest (of one)";
const ONLY_HTTP: &str = "only HTTPRoutes have it: write the route as an HTTPRoute, whose path for a method of gRPC is /SERVICE/METHOD";
const PATH_MATCH: &str = "matches[].path with type: PathPrefix (or Exact, RegularExpression) and value";
const NO_OPTIONS: &str = "take it away: only a listener's tls has options, and Culvert knows none";

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

const fn grpc(path: &'static str) -> Instead {
    Instead { kinds: &["GRPCRoute"], path, way: ONLY_HTTP }
}

/// Fields at one place.
const FIELDS: &[Instead] = &[
    grpc("spec.rules[].timeouts"),
    grpc("spec.rules[].retry"),
    grpc("filters[].cors"),
    grpc("filters[].externalAuth"),
    grpc("filters[].requestRedirect"),
    grpc("filters[].urlRewrite"),
    grpc("matches[].path"),
    grpc("matches[].queryParams"),
    route("spec.rules[].retries", RETRY),
    route("spec.rules[].retryPolicy", RETRY),
    route("spec.retry", RETRY),
    route("spec.retries", RETRY),
    route("retry.numRetries", "retry.attempts"),
    route("retry.retryOn", "retry.codes; connections that fail are tried again without them"),
    route("retry.perTryTimeout", "timeouts.backendRequest of the rule"),
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
    route("spec.gateways", "spec.parentRefs"),
    route("spec.parents", "spec.parentRefs"),
    route("spec.gatewayRef", "spec.parentRefs, a list"),
    route("spec.hosts", "spec.hostnames"),
    gateway("listeners[].certificateRefs", CERTIFICATES),
    gateway("tls.secretName", CERTIFICATES),
    gateway("tls.credentialName", CERTIFICATES),
    gateway("tls.certificateRef", CERTIFICATES),
    gateway("tls.frontendValidation", CLIENT_CERTIFICATES),
    gateway("tls.caCertificateRefs", CLIENT_CERTIFICATES),
    gateway("tls.minVersion", TLS_VERSION),
    gateway("tls.minProtocolVersion", TLS_VERSION),
    gateway("tls.cipherSuites", TLS_VERSION),
    gateway("spec.tls.mode", CERTIFICATES),
    gateway("spec.tls.certificateRefs", CERTIFICATES),
    gateway("spec.tls.options", CERTIFICATES),
    gateway("listeners[].hosts", "listeners[].hostname, one per listener"),
    gateway("listeners[].hostnames", "listeners[].hostname, one per listener"),
    gateway("listeners[].routes", "listeners[].allowedRoutes"),
    gateway("spec.servers", "spec.listeners"),
    gateway("spec.selector", "spec.gatewayClassName: the class says who serves it"),
    gateway("spec.replicas", "the Deployment that is made for the Gateway can be scaled"),
];

/// Words in the names of fields that are nowhere in the API, wherever they are written; and in the keys of options.
const WORDS: &[(&str, &str)] = &[
    ("ratelimit", RATE_LIMIT),
    ("requestspersecond", RATE_LIMIT),
    ("throttl", RATE_LIMIT),
    ("retrybudget", RETRY_BUDGET),
    ("pertry", TIMEOUT),
    ("timeout", TIMEOUT),
    ("deadline", TIMEOUT),
    ("accesslog", ACCESS_LOG),
    ("logging", ACCESS_LOG),
    ("logs", ACCESS_LOG),
    ("trac", TRACING),
    ("sampl", TRACING),
    ("telemetry", TRACING),
    ("backendtls", BACKEND_TLS),
    ("tlsbackend", BACKEND_TLS),
    ("upstreamtls", BACKEND_TLS),
    ("backendprotocol", "appProtocol of the Service's port"),
    ("client", CLIENT_CERTIFICATES),
    ("mtls", CLIENT_CERTIFICATES),
    ("mutual", CLIENT_CERTIFICATES),
    ("frontendvalidation", CLIENT_CERTIFICATES),
    ("skipverify", BACKEND_TLS),
    ("circuitbreak", EJECTION),
    ("outlier", EJECTION),
    ("healthcheck", EJECTION),
    ("loadbalanc", BALANCING),
    ("lbpolicy", BALANCING),
    ("jwt", AUTH),
    ("oidc", AUTH),
    ("basicauth", AUTH),
    ("externalauth", AUTH),
    ("extauth", AUTH),
    ("authorization", AUTH),
    ("authentication", AUTH),
];

/// Words in the keys of options alone.
const OPTIONS: &[(&str, &str)] = &[
    ("auth", CLIENT_CERTIFICATES),
    ("log", ACCESS_LOG),
    ("rate", RATE_LIMIT),
    ("backend", BACKEND_TLS),
    ("verify", BACKEND_TLS),
    ("version", TLS_VERSION),
    ("cipher", TLS_VERSION),
];

/// Words in types of filters, and the real way.
const FILTERS: &[(&str, &str)] = &[
    ("ratelimit", RATE_LIMIT),
    ("retry", RETRY),
    ("timeout", TIMEOUT),
    ("accesslog", ACCESS_LOG),
    ("logging", ACCESS_LOG),
    ("trac", TRACING),
    ("sampl", TRACING),
    ("jwt", AUTH),
    ("oidc", AUTH),
    ("mtls", CLIENT_CERTIFICATES),
    ("client", CLIENT_CERTIFICATES),
    ("tls", TLS),
    ("auth", AUTH),
    ("stripprefix", "type: URLRewrite with path: {type: ReplacePrefixMatch, replacePrefixMatch: /}"),
    ("rewrite", "type: URLRewrite"),
    ("redirect", "type: RequestRedirect"),
    ("mirror", "type: RequestMirror"),
    ("cors", "type: CORS"),
    ("requestheader", "type: RequestHeaderModifier"),
    ("responseheader", "type: ResponseHeaderModifier"),
    ("header", "type: RequestHeaderModifier or ResponseHeaderModifier"),
    ("delegat", "attach both routes to the same parent; the more specific match wins"),
];

/// The real way of a field that the schema does not have; `plain` is its path without the numbers of items.
pub(super) fn of_field(kind: &str, plain: &str) -> Option<&'static str> {
    let (around, name) = plain.rsplit_once('.')?;
    let is = |of: &&Instead| {
        let ends = plain.strip_suffix(of.path).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        ends && of.kinds.contains(&kind)
    };
    if let Some(instead) = FIELDS.iter().find(is) {
        return Some(instead.way);
    }
    let name = plainly(name);
    if name == "tls" {
        let is_backend = ["backendRefs[]", "backendRef", "backends[]", "backend"]
            .iter()
            .any(|backend| around.strip_suffix(backend).is_some_and(|rest| rest.ends_with('.')));
        return Some(if is_backend { BACKEND_TLS } else { TLS });
    }
    WORDS.iter().find(|(word, _)| name.contains(word)).map(|(_, way)| *way)
}

/// The real way of a key of options.
pub(super) fn of_option(key: &str) -> Option<&'static str> {
    let name = plainly(key.rsplit('/').next().unwrap_or(key));
    // What it is about first: an option for the backend may be about its timeouts, and one for logs about a client.
    let words = WORDS.iter().filter(|(word, _)| *word != "client").chain(OPTIONS);
    let last = WORDS.iter().filter(|(word, _)| *word == "client");
    words.chain(last).find(|(word, _)| name.contains(word)).map(|(_, way)| *way)
}

/// What is said of options where nothing has them.
pub(super) fn of_options_nowhere(key: Option<&str>) -> &'static str {
    key.and_then(of_option).unwrap_or(NO_OPTIONS)
}

/// The real way of a type of filter.
pub(super) fn of_filter(kind: &str) -> Option<&'static str> {
    let plain = plainly(kind);
    FILTERS.iter().find(|(word, _)| plain.contains(word)).map(|(_, way)| *way)
}

fn plainly(name: &str) -> String {
    name.to_lowercase().replace(['-', '_', '.'], "")
}
