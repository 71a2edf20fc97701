//! Whether one match of a rule matches a request.

use crate::{Kind, Match, Path, Request, Value, WholeMatch};

/// All parts must match. A GRPCRoute is about gRPC calls only.
pub fn matches(kind: Kind, item: &Match, request: &Request, regex: WholeMatch<'_>) -> bool {
    if kind == Kind::Grpc && !is_grpc(request) {
        return false;
    }
    if !path_matches(&item.path, &request.path, regex) {
        return false;
    }
    if item.method.as_ref().is_some_and(|method| *method != request.method) {
        return false;
    }
    for (index, (name, value)) in item.headers.iter().enumerate() {
        // "only the first entry with an equivalent name MUST be considered"
        if item.headers[..index].iter().any(|(earlier, _)| earlier.eq_ignore_ascii_case(name)) {
            continue;
        }
        match header(request, name) {
            Some(actual) if value_matches(value, &actual, regex) => {}
            _ => return false,
        }
    }
    for (index, (name, value)) in item.query.iter().enumerate() {
        if item.query[..index].iter().any(|(earlier, _)| earlier == name) {
            continue;
        }
        match parameter(request, name) {
            Some(actual) if value_matches(value, &actual, regex) => {}
            _ => return false,
        }
    }
    true
}

/// How many entries of a list count: those of an equivalent name after the first are ignored.
pub fn counted(names: &[String]) -> usize {
    let mut seen: Vec<&String> = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen.len()
}

/// HTTP/2 with `content-type: application/grpc`, or that and `+format` or parameters.
pub fn is_grpc(request: &Request) -> bool {
    let Some(content_type) =
        request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"))
    else {
        return false;
    };
    let value = content_type.1.to_lowercase();
    let starts = ["application/grpc+", "application/grpc;", "application/grpc "];
    request.http2 && (value == "application/grpc" || starts.iter().any(|start| value.starts_with(start)))
}

fn path_matches(wanted: &Path, path: &str, regex: WholeMatch<'_>) -> bool {
    match wanted {
        Path::Exact(exact) => path == exact,
        Path::Prefix(prefix) => {
            // "Matching is done on a path element by element basis [...] a trailing / is ignored."
            let wanted: Vec<&str> = prefix.split('/').filter(|element| !element.is_empty()).collect();
            let actual: Vec<&str> = path.trim_start_matches('/').split('/').collect();
            wanted.len() <= actual.len() && (0..wanted.len()).all(|index| wanted[index] == actual[index])
        }
        Path::Regex(expression) => regex(expression, path),
        Path::Grpc { service: None, method: None } => true,
        Path::Grpc { service, method } => {
            let parts: Vec<&str> = path.split('/').collect();
            if parts.len() != 3 || !parts[0].is_empty() || parts[1].is_empty() || parts[2].is_empty() {
                return false;
            }
            let fits = |wanted: &Option<Value>, actual: &str| match wanted {
                Some(value) => value_matches(value, actual, regex),
                None => true,
            };
            fits(service, parts[1]) && fits(method, parts[2])
        }
    }
}

fn value_matches(wanted: &Value, actual: &str, regex: WholeMatch<'_>) -> bool {
    match wanted {
        Value::Exact(exact) => actual == exact,
        Value::Regex(expression) => regex(expression, actual),
    }
}

/// Several lines of one header are one value (RFC 9110, 5.2).
fn header(request: &Request, name: &str) -> Option<String> {
    let lines: Vec<&str> = request
        .headers
        .iter()
        .filter(|(candidate, _)| candidate.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
        .collect();
    if lines.is_empty() { None } else { Some(lines.join(",")) }
}

/// The first value of a repeated parameter; `%XX` stands for a byte (RFC 7230, 2.7.3).
fn parameter(request: &Request, name: &str) -> Option<String> {
    for part in request.query.as_deref()?.split('&') {
        let (candidate, value) = match part.find('=') {
            Some(at) => (&part[..at], &part[at + 1..]),
            None => (part, ""),
        };
        if decode(candidate) == name {
            return Some(decode(value));
        }
    }
    None
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let digits =
            text.get(at + 1..at + 3).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                decoded.push(byte);
                at += 3;
            }
            _ => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
