//! Matches and filters in words.

use culvert_routing::cors::Credentials;
use culvert_routing::model::{
    Cors, Filter, HeaderEdit, Hostname, Match, PathEdit, PathMatch, Redirect, Rewrite, Target, ValueMatch,
};
use http::{HeaderName, HeaderValue};

/// What a match asks for.
pub fn matching(hostname: Option<&Hostname>, matching: &Match) -> String {
    let mut parts: Vec<String> = Vec::new();
    parts.extend(hostname.map(|hostname| format!("host {hostname}")));
    parts.push(match &matching.path {
        PathMatch::Exact(path) => format!("path {path}"),
        PathMatch::Prefix(path) => format!("path prefix {path}"),
        PathMatch::Regex(path) => format!("path ~ {path}"),
        PathMatch::Grpc { service: None, method: None } => "any gRPC call".to_owned(),
        PathMatch::Grpc { service, method } => {
            let part = |what: &str, value: &Option<ValueMatch>| {
                value.as_ref().map(|value| format!("{what} {}", wanted(value)))
            };
            [part("service", service), part("method", method)]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(", ")
        }
    });
    parts.extend(matching.method.as_ref().map(|method| format!("method {method}")));
    parts.extend(
        matching.headers.iter().map(|header| format!("header {} {}", header.name, wanted(&header.value))),
    );
    parts.extend(matching.query.iter().map(|query| format!("query {} {}", query.name, wanted(&query.value))));
    parts.join(", ")
}

/// Which connections a TLSRoute takes under one of its hostnames.
pub fn server_name(hostname: Option<&Hostname>) -> String {
    hostname.map_or("any server name, or none".to_owned(), |name| format!("server name {name}"))
}

fn wanted(value: &ValueMatch) -> String {
    match value {
        ValueMatch::Exact(value) => format!("= {value}"),
        ValueMatch::Regex(value) => format!("~ {value}"),
    }
}

/// What a filter does.
pub fn filter(filter: &Filter) -> String {
    match filter {
        Filter::RequestHeaders(edit) => format!("request headers: {}", header_edit(edit)),
        Filter::ResponseHeaders(edit) => format!("response headers: {}", header_edit(edit)),
        Filter::Redirect(redirect) => self::redirect(redirect),
        Filter::Rewrite(rewrite) => self::rewrite(rewrite),
        Filter::Mirror(mirror) => {
            let percent = mirror.share.as_fraction() * 100.0;
            let nobody = if matches!(mirror.target, Target::Invalid(_)) { "nobody: " } else { "" };
            format!("mirror {percent} % to {nobody}{}", target(&mirror.target))
        }
        Filter::Cors(cors) => self::cors(cors),
    }
}

/// `namespace/name:port`, or why it cannot be followed.
pub fn target(target: &Target) -> String {
    match target {
        Target::Service { namespace, name, port } => format!("{namespace}/{name}:{port}"),
        Target::Invalid(why) => why.to_string(),
    }
}

fn cors(cors: &Cors) -> String {
    let list = |what: &str, texts: Vec<String>| match texts.is_empty() {
        true => String::new(),
        false => format!(", {what} {}", texts.join(" ")),
    };
    let origins = match cors.origins.texts() {
        none if none.is_empty() => "nobody".to_owned(),
        origins => origins.join(" "),
    };
    let credentials = match cors.credentials {
        Credentials::Allowed => ", with credentials",
        Credentials::Omitted => "",
    };
    format!(
        "CORS for {origins}{}{}{}{credentials}",
        list("methods", cors.methods.texts()),
        list("headers", cors.headers.texts()),
        list("exposing", cors.exposed.texts())
    )
}

fn header_edit(edit: &HeaderEdit) -> String {
    let pairs = |word: &str, pairs: &[(HeaderName, HeaderValue)]| {
        let one = |(name, value): &(HeaderName, HeaderValue)| {
            format!("{word} {name}: {}", String::from_utf8_lossy(value.as_bytes()))
        };
        pairs.iter().map(one).collect::<Vec<_>>()
    };
    let removed = edit.remove.iter().map(|name| format!("remove {name}")).collect();
    [pairs("set", &edit.set), pairs("add", &edit.add), removed].concat().join(", ")
}

fn redirect(redirect: &Redirect) -> String {
    let mut parts = vec![format!("redirect {}", redirect.status.code().as_u16())];
    parts.extend(redirect.scheme.map(|scheme| format!("scheme {}", scheme.as_str())));
    parts.extend(redirect.hostname.as_ref().map(|host| format!("host {host}")));
    parts.extend(redirect.port.map(|port| format!("port {port}")));
    parts.extend(redirect.path.as_ref().map(path_edit));
    parts.join(", ")
}

fn rewrite(rewrite: &Rewrite) -> String {
    let host = rewrite.hostname.as_ref().map(|host| format!("host {host}"));
    let parts: Vec<String> = host.into_iter().chain(rewrite.path.as_ref().map(path_edit)).collect();
    format!("rewrite {}", parts.join(", "))
}

fn path_edit(edit: &PathEdit) -> String {
    match edit {
        PathEdit::ReplaceFull(path) => format!("path {path:?}"),
        PathEdit::ReplacePrefix(path) => format!("prefix of the path to {path:?}"),
    }
}
