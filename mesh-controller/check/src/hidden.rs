//! Which matches of a table can never win, and which one is in their way.
//!
//! For each match a request is made that it fits and that says nothing more: whatever the match leaves open has a value that no
//! other match names. The table itself is asked who wins it. If it is the match, nothing hides it, and the request is the
//! proof. If it is another, it is looked at whether that one matches every request that the first does; then it hides it.
//!
//! Paths (exact and prefix), methods, and exact values of headers and query parameters are decided always: what matches a
//! request with a fresh value at every open place asks for nothing beyond what the first match asks for. Expressions are decided
//! where [`culvert_routing::language`] decides them, also that one matches all that another does; the rest is left alone, never
//! guessed.

use std::collections::HashSet;

use culvert_routing::language::{Examples, Of, below, covers as covers_language, exactly, examples, matches};
use culvert_routing::model::{Hostname, Match, PathMatch, RouteKind, ValueMatch};
use culvert_routing::request::is_grpc;
use culvert_routing::table::Candidate;
use culvert_routing::{RequestView, RouteTable};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Version};

/// No match names these.
const LABEL: &str = "culvert-check";
const HOST: &str = "culvert-check.invalid";
const METHOD: &str = "CULVERT-CHECK";
const IDENTIFIER: &str = "Culvert_Check";

/// A request that a match fits.
#[derive(Clone, Debug)]
pub struct Witness {
    pub method: Method,
    pub host: String,
    pub path: String,
    pub query: Option<String>,
    pub headers: HeaderMap,
    pub grpc: bool,
}

impl Witness {
    pub fn view(&self) -> RequestView<'_> {
        RequestView {
            method: &self.method,
            host: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            grpc: self.grpc,
        }
    }
}

/// What can be said of a match among all others of its table.
pub enum Verdict<'t> {
    /// It wins this request.
    Wins(Box<Witness>),
    HiddenBy(Candidate<'t>),
    /// No request fits it, and why.
    Impossible(String),
    Undecided,
}

/// A verdict on every match of a table, in order of precedence.
pub fn judge(table: &RouteTable) -> Vec<(Candidate<'_>, Verdict<'_>)> {
    table.candidates().map(|candidate| (candidate, verdict(table, &candidate))).collect()
}

fn verdict<'t>(table: &'t RouteTable, candidate: &Candidate<'t>) -> Verdict<'t> {
    let kind = candidate.rule().key().kind;
    let witnesses = match witnesses(kind, candidate.hostname(), candidate.matched()) {
        Ok(witnesses) => witnesses,
        Err(why) => return Verdict::Impossible(why),
    };
    for witness in witnesses {
        let view = witness.view();
        let Some(selected) = table.select(&view) else { continue };
        if std::ptr::eq(selected.matched, candidate.matched()) {
            return Verdict::Wins(Box::new(witness));
        }
        let Some(winner) = table.candidates().find(|other| other.check(&view).is_ok()) else { continue };
        if candidate.check(&view).is_ok() && covers(&winner, candidate) {
            return Verdict::HiddenBy(winner);
        }
    }
    Verdict::Undecided
}

// === a request for a match ===

/// # Errors
/// Why no request fits.
fn witnesses(kind: RouteKind, hostname: Option<&Hostname>, of: &Match) -> Result<Vec<Witness>, String> {
    let host = match hostname {
        None => HOST.to_owned(),
        Some(Hostname::Exact(name)) => name.to_string(),
        Some(Hostname::Wildcard(suffix)) => format!("{LABEL}.{suffix}"),
    };
    let fresh = || Method::from_bytes(METHOD.as_bytes()).unwrap_or(Method::PATCH);
    let method = match kind {
        RouteKind::Grpc => Method::POST,
        RouteKind::Http | RouteKind::Tls | RouteKind::Tcp => of.method.clone().unwrap_or_else(fresh),
    };
    if of.method == Some(Method::CONNECT) {
        return Err("a request of method CONNECT is answered 405 before any route is asked".to_owned());
    }
    let mut headers = header_values(of);
    if kind == RouteKind::Grpc && !headers.contains_key(CONTENT_TYPE) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    }
    let grpc = kind == RouteKind::Grpc && is_grpc(Version::HTTP_2, &headers);
    let query = query(of);
    let witness = |path| Witness {
        method: method.clone(),
        host: host.clone(),
        path,
        query: query.clone(),
        headers: headers.clone(),
        grpc,
    };
    Ok(paths(&of.path)?.into_iter().map(witness).collect())
}

fn paths(of: &PathMatch) -> Result<Vec<String>, String> {
    Ok(match of {
        PathMatch::Exact(path) => vec![path.to_string()],
        PathMatch::Prefix(prefix) => {
            let prefix = prefix.trim_end_matches('/');
            let whole = if prefix.is_empty() { "/" } else { prefix };
            vec![format!("{prefix}/{LABEL}"), whole.to_owned(), format!("{prefix}/{LABEL}/0~/")]
        }
        PathMatch::Regex(expression) => match examples(expression, Of::Paths) {
            Examples::Some(paths) => paths,
            Examples::Undecided => Vec::new(),
            Examples::None => {
                return Err(format!(
                    "no path fits the expression {expression:?}: paths are looked at in normal form, starting with a slash, \
                     without query, spaces, empty segments and segments of dots"
                ));
            }
        },
        PathMatch::Grpc { service, method } => {
            for part in [service, method].into_iter().flatten() {
                if let ValueMatch::Regex(expression) = part
                    && examples(expression, Of::Names) == Examples::None
                {
                    return Err(format!(
                        "no service and no method fits the expression {expression:?}: each is one segment of the path"
                    ));
                }
            }
            let part = |of: &Option<ValueMatch>| match of {
                None => Some(IDENTIFIER.to_owned()),
                Some(value) => of_value(value, Of::Names),
            };
            part(service)
                .zip(part(method))
                .map(|(service, method)| format!("/{service}/{method}"))
                .into_iter()
                .collect()
        }
    })
}

/// A value that a match takes, if one is known.
fn of_value(value: &ValueMatch, of: Of) -> Option<String> {
    match value {
        ValueMatch::Exact(text) => Some(text.to_string()),
        ValueMatch::Regex(expression) => match examples(expression, of) {
            Examples::Some(values) => values.into_iter().find(|value| !value.is_empty()),
            _ => None,
        },
    }
}

/// The first match of each name: the others do not count.
fn first_of_each<'m, T, N: std::hash::Hash + Eq>(
    all: &'m [T],
    name: impl Fn(&'m T) -> N,
) -> impl Iterator<Item = &'m T> {
    let mut seen = HashSet::new();
    all.iter().filter(move |of| seen.insert(name(of)))
}

fn header_values(of: &Match) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for header in first_of_each(&of.headers, |header| &header.name) {
        let value = of_value(&header.value, Of::Values).and_then(|value| HeaderValue::from_str(&value).ok());
        if let Some(value) = value {
            headers.insert(header.name.clone(), value);
        }
    }
    headers
}

fn query(of: &Match) -> Option<String> {
    let escaped = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    let parts: Vec<String> = first_of_each(&of.query, |parameter| &parameter.name)
        .filter_map(|of| {
            Some(format!("{}={}", escaped(&of.name), escaped(&of_value(&of.value, Of::Values)?)))
        })
        .collect();
    (!parts.is_empty()).then(|| parts.join("&"))
}

// === whether one match covers another ===

/// Whether `wide`, which goes first, surely matches everything that `narrow` does.
fn covers(wide: &Candidate<'_>, narrow: &Candidate<'_>) -> bool {
    let (of, by) = (narrow.matched(), wide.matched());
    let headers = || {
        first_of_each(&by.headers, |header| &header.name).all(|wanted| {
            let same = of.headers.iter().find(|header| header.name == wanted.name);
            same.is_some_and(|same| covers_value(&wanted.value, &same.value, Of::Values))
        })
    };
    let query = || {
        first_of_each(&by.query, |parameter| &parameter.name).all(|wanted| {
            let same = of.query.iter().find(|parameter| parameter.name == wanted.name);
            same.is_some_and(|same| covers_value(&wanted.value, &same.value, Of::Values))
        })
    };
    wide.rule().key().kind == narrow.rule().key().kind
        && covers_hostname(wide.hostname(), narrow.hostname())
        && (by.method.is_none() || by.method == of.method)
        && headers()
        && query()
        && covers_path(&by.path, &of.path)
}

fn covers_hostname(wide: Option<&Hostname>, narrow: Option<&Hostname>) -> bool {
    let is_below =
        |name: &str, suffix: &str| name.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'));
    match (wide, narrow) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wide), Some(narrow)) if wide == narrow => true,
        (Some(Hostname::Exact(_)), Some(_)) => false,
        (Some(Hostname::Wildcard(suffix)), Some(Hostname::Exact(name) | Hostname::Wildcard(name))) => {
            is_below(name, suffix)
        }
    }
}

fn covers_path(wide: &PathMatch, narrow: &PathMatch) -> bool {
    let is_below = |path: &str, prefix: &str| {
        let prefix = prefix.trim_end_matches('/');
        path.trim_end_matches('/') == prefix
            || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
    };
    let covers = |wide: &str, narrow: &str| covers_language(wide, narrow, Of::Paths) == Some(true);
    match (wide, narrow) {
        (PathMatch::Exact(wide), PathMatch::Exact(narrow)) => wide == narrow,
        (PathMatch::Prefix(wide), PathMatch::Exact(narrow) | PathMatch::Prefix(narrow)) => {
            is_below(narrow, wide)
        }
        (PathMatch::Regex(wide), PathMatch::Exact(narrow)) => matches(wide, narrow, Of::Paths),
        (PathMatch::Regex(wide), PathMatch::Prefix(narrow)) => covers(wide, &below(narrow)),
        (PathMatch::Regex(wide), PathMatch::Regex(narrow)) => wide == narrow || covers(wide, narrow),
        (PathMatch::Exact(wide), PathMatch::Regex(narrow)) => covers(&exactly(wide), narrow),
        (PathMatch::Prefix(wide), PathMatch::Regex(narrow)) => covers(&below(wide), narrow),
        (
            PathMatch::Grpc { service: wide_service, method: wide_method },
            PathMatch::Grpc { service, method },
        ) => {
            let part = |wide: &Option<ValueMatch>, narrow: &Option<ValueMatch>| match (wide, narrow) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(wide), Some(narrow)) => covers_value(wide, narrow, Of::Names),
            };
            part(wide_service, service) && part(wide_method, method)
        }
        _ => false,
    }
}

fn covers_value(wide: &ValueMatch, narrow: &ValueMatch, of: Of) -> bool {
    let covers = |wide: &str, narrow: &str| covers_language(wide, narrow, of) == Some(true);
    match (wide, narrow) {
        (ValueMatch::Exact(wide), ValueMatch::Exact(narrow)) => wide == narrow,
        (ValueMatch::Regex(wide), ValueMatch::Exact(narrow)) => matches(wide, narrow, of),
        (ValueMatch::Regex(wide), ValueMatch::Regex(narrow)) => wide == narrow || covers(wide, narrow),
        (ValueMatch::Exact(wide), ValueMatch::Regex(narrow)) => covers(&exactly(wide), narrow),
    }
}
