//! Routes and listeners in words: one line per match, filter and backend.

use culvert_api::mesh as pb;
use pb::route::Parent;
use serde_json::{Value, json};

use super::{trimmed, word};

/// A listener of a Gateway.
pub fn listener(listener: &pb::Listener) -> Value {
    trimmed(json!({
        "gateway": listener.gateway,
        "name": listener.name,
        "port": listener.port,
        "hostname": listener.hostname,
        "protocol": word(listener.protocol().as_str_name(), "LISTENER_PROTOCOL_"),
    }))
}

/// A route at one parent.
pub fn route(route: &pb::Route) -> Value {
    let (parent, ports, clients) = match &route.parent {
        Some(Parent::Service(parent)) => {
            let clients = match parent.consumer_namespace.as_str() {
                "" => "all".to_owned(),
                namespace => format!("of namespace {namespace}"),
            };
            (format!("Service {}", parent.service), parent.ports.clone(), clients)
        }
        Some(Parent::Listener(listener)) => (format!("Listener {listener}"), Vec::new(), String::new()),
        None => (String::new(), Vec::new(), String::new()),
    };
    trimmed(json!({
        "parent": parent,
        "ports": ports,
        "clients": clients,
        "created": route.created,
        "hostnames": route.hostnames,
        "rules": route.rules.iter().map(|of| rule(of, route.kind())).collect::<Vec<_>>(),
    }))
}

fn rule(rule: &pb::RouteRule, kind: pb::RouteKind) -> Value {
    // A rule about connections matches nothing in them, and those that it does not carry are reset.
    let is_of_connections = matches!(kind, pb::RouteKind::Tls | pb::RouteKind::Tcp);
    let matches = rule.matches.iter().filter(|_| !is_of_connections);
    let invalid = if is_of_connections { "reset" } else { "500" };
    json!({
        "name": rule.name,
        "matches": matches.map(one_match).collect::<Vec<_>>(),
        "filters": rule.filters.iter().map(filter).collect::<Vec<_>>(),
        "backends": rule.backends.iter().map(|of| backend(of, invalid)).collect::<Vec<_>>(),
        "refuse": rule.refuse,
        "requestTimeoutMs": rule.request_timeout_ms,
        "backendRequestTimeoutMs": rule.backend_request_timeout_ms,
        "retry": rule.retry.as_ref().map(retry).unwrap_or_default(),
        "session": rule.session.as_ref().map(session).unwrap_or_default(),
    })
}

fn retry(of: &pb::Retry) -> String {
    let codes: Vec<String> = of.codes.iter().map(ToString::to_string).collect();
    let codes = if codes.is_empty() { String::new() } else { format!(" after {}", codes.join(" ")) };
    format!("{} times, {} ms apart{codes}", of.attempts, of.backoff_ms)
}

pub fn session(of: &pb::SessionPersistence) -> String {
    use pb::session_persistence::Carrier;
    let by = match &of.carrier {
        Some(Carrier::Cookie(cookie)) => {
            let lifetime = match cookie.lifetime() {
                pb::CookieLifetime::Session => "",
                pb::CookieLifetime::Permanent => "permanent ",
            };
            let path = if cookie.without_path { " without path" } else { "" };
            format!("{lifetime}cookie {}{path}", cookie.name)
        }
        Some(Carrier::Header(name)) => format!("header {name}"),
        None => "nothing".to_owned(),
    };
    match of.absolute_timeout_ms {
        0 => by,
        ms => format!("{by}, at most {ms} ms"),
    }
}

fn one_match(of: &pb::RouteMatch) -> String {
    use pb::route_match::Path;
    let mut words = vec![match &of.path {
        Some(Path::Exact(path)) => format!("path = {path}"),
        Some(Path::Prefix(path)) => format!("path below {path}"),
        Some(Path::Regex(pattern)) => format!("path ~ {pattern}"),
        Some(Path::Grpc(grpc)) => {
            format!("call {} / {}", part(grpc.service.as_ref()), part(grpc.method.as_ref()))
        }
        None => "nothing".to_owned(),
    }];
    words.extend((!of.method.is_empty()).then(|| format!("method {}", of.method)));
    words.extend(
        of.headers.iter().map(|header| format!("header {} {}", header.name, part(header.value.as_ref()))),
    );
    words.extend(of.query.iter().map(|query| format!("query {} {}", query.name, part(query.value.as_ref()))));
    words.join(", ")
}

fn part(of: Option<&pb::ValueMatch>) -> String {
    use pb::value_match::Kind;
    match of.and_then(|of| of.kind.as_ref()) {
        Some(Kind::Exact(value)) => format!("= {value}"),
        Some(Kind::Regex(pattern)) => format!("~ {pattern}"),
        None => "any".to_owned(),
    }
}

fn filter(filter: &pb::RouteFilter) -> String {
    use pb::route_filter::Kind;
    match &filter.kind {
        Some(Kind::RequestHeaders(edit)) => format!("request: {}", header_edit(edit)),
        Some(Kind::ResponseHeaders(edit)) => format!("response: {}", header_edit(edit)),
        Some(Kind::Redirect(to)) => {
            let pb::Redirect { scheme, hostname, path, port, status } = to;
            let port = if *port == 0 { String::new() } else { format!(":{port}") };
            format!("redirect {status} to {scheme}://{hostname}{port} {}", path_edit(path.as_ref()))
                .trim()
                .to_owned()
        }
        Some(Kind::Rewrite(to)) => {
            format!("rewrite {} {}", to.hostname, path_edit(to.path.as_ref())).trim().to_owned()
        }
        Some(Kind::Mirror(of)) => mirror(of),
        Some(Kind::Cors(of)) => cors(of),
        None => "nothing".to_owned(),
    }
}

fn mirror(of: &pb::Mirror) -> String {
    use pb::mirror::Target;
    let target = match &of.target {
        Some(Target::Service(to)) => format!("{}:{}", to.service, to.port),
        Some(Target::Invalid(why)) => format!("nobody ({why})"),
        None => "nobody".to_owned(),
    };
    format!("mirror {} of {} to {target}", of.numerator, of.denominator)
}

fn cors(of: &pb::Cors) -> String {
    let list = |what: &str, list: &[String]| match list {
        [] => String::new(),
        list => format!(" {what} {}", list.join(" ")),
    };
    let credentials = if of.credentials { " with credentials" } else { "" };
    format!(
        "CORS{}{}{}{}{credentials} for {} s",
        list("origins", &of.origins),
        list("methods", &of.methods),
        list("headers", &of.headers),
        list("exposing", &of.exposed),
        of.max_age_seconds
    )
}

fn header_edit(edit: &pb::HeaderEdit) -> String {
    let lines = |verb: &str, lines: &[pb::Header]| {
        lines.iter().map(|line| format!("{verb} {}: {}", line.name, line.value)).collect::<Vec<_>>()
    };
    let removed = edit.remove.iter().map(|name| format!("remove {name}"));
    [lines("set", &edit.set), lines("add", &edit.add), removed.collect()].concat().join(", ")
}

fn path_edit(edit: Option<&pb::PathEdit>) -> String {
    use pb::path_edit::Kind;
    match edit.and_then(|edit| edit.kind.as_ref()) {
        Some(Kind::ReplaceFull(path)) => format!("path {path:?}"),
        Some(Kind::ReplacePrefix(path)) => format!("prefix {path:?}"),
        None => String::new(),
    }
}

/// `invalid`: what becomes of the share of one that cannot be called.
fn backend(backend: &pb::RouteBackend, invalid: &str) -> String {
    use pb::route_backend::Target;
    let target = match &backend.target {
        Some(Target::Service(to)) => format!("{}:{}", to.service, to.port),
        Some(Target::Invalid(why)) => format!("{invalid} ({why})"),
        None => "nothing".to_owned(),
    };
    let filters: Vec<String> = backend.filters.iter().map(filter).collect();
    let filters = if filters.is_empty() { String::new() } else { format!(" [{}]", filters.join("; ")) };
    format!("{} x {target}{filters}", backend.weight)
}
