//! What a route may not say besides its matches (the schema's CEL rules, and what cannot be honoured).

use std::collections::HashMap;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};

use super::{kind_allows, matches::check_path};
use crate::error::{At, CompileError, FilterKind, PathProblem, RewrittenPart};
use crate::filters::filter_kind;
use crate::hostname::{HostnameError, is_dns_name};
use crate::model::{
    Action, Carries, Filter, HeaderEdit, Hostname, Match, PathEdit, PathMatch, Redirect, Rewrite, RouteKind,
    Rule, Timeouts,
};

pub(super) fn hostnames(kind: RouteKind, hostnames: &[Hostname]) -> Result<(), CompileError> {
    if kind.carries() == Carries::Bytes && !hostnames.is_empty() {
        return Err(CompileError::NotOfConnections { at: At::Spec.field("hostnames").to_string(), kind });
    }
    for (index, hostname) in hostnames.iter().enumerate() {
        let (Hostname::Exact(name) | Hostname::Wildcard(name)) = hostname;
        precise_hostname(name, &At::Spec.item("hostnames", index))?;
    }
    Ok(())
}

fn precise_hostname(name: &str, at: &At<'_>) -> Result<(), CompileError> {
    if is_dns_name(name) {
        return Ok(());
    }
    let error = HostnameError::NotAName { hostname: name.to_owned() };
    Err(CompileError::Hostname { at: at.to_string(), error })
}

pub(super) fn rule_name(rules: &[Rule], index: usize) -> Result<(), CompileError> {
    let Some(name) = &rules[index].name else { return Ok(()) };
    match rules[..index].iter().position(|rule| rule.name.as_ref() == Some(name)) {
        None => Ok(()),
        Some(first) => {
            let at = At::Spec.item("rules", index).field("name").to_string();
            Err(CompileError::RuleName { at, name: name.to_string(), first })
        }
    }
}

/// A rule about connections says where they go, and nothing else.
pub(super) fn connections(kind: RouteKind, rule: &Rule, at: &At<'_>) -> Result<(), CompileError> {
    let field = if kind.carries() == Carries::Requests {
        return Ok(());
    } else if rule.timeouts != Timeouts::default() {
        "timeouts"
    } else if rule.retry.is_some() {
        "retry"
    } else if rule.session.is_some() {
        "sessionPersistence"
    } else {
        return Ok(());
    };
    Err(CompileError::NotOfConnections { at: at.field(field).to_string(), kind })
}

pub(super) fn timeouts(timeouts: &Timeouts, at: &At<'_>) -> Result<(), CompileError> {
    match (timeouts.backend_request, timeouts.request) {
        (Some(backend_request), Some(request)) if backend_request > request => {
            let at = at.field("timeouts").field("backendRequest").to_string();
            Err(CompileError::Timeouts { at, backend_request, request })
        }
        _ => Ok(()),
    }
}

/// The filters of a rule and of its backends, and how they go together.
pub(super) fn filters(kind: RouteKind, rule: &mut Rule, at: &At<'_>) -> Result<(), CompileError> {
    let Rule { matches, filters, action, .. } = rule;
    let of_rule = filter_list(kind, matches, filters, at)?;
    let Action::Forward(backends) = action else { return Ok(()) };
    if let (Some(redirect), false) = (&of_rule.redirect, backends.is_empty()) {
        return Err(CompileError::RedirectWithBackends { at: redirect.clone() });
    }
    for (index, backend) in backends.iter_mut().enumerate() {
        let at = at.item("backendRefs", index);
        let of_backend = filter_list(kind, matches, &mut backend.filters, &at)?;
        compatible(&of_rule, &of_backend)?;
    }
    Ok(())
}

/// Where the filters of one list are that others must go together with.
#[derive(Default)]
struct Places {
    redirect: Option<String>,
    rewrite: Option<String>,
    rewritten_hostname: Option<String>,
    rewritten_path: Option<String>,
}

fn compatible(of_rule: &Places, of_backend: &Places) -> Result<(), CompileError> {
    if let (Some(at), Some(other)) = (&of_backend.redirect, &of_rule.rewrite) {
        return Err(CompileError::RedirectWithRewrite { at: at.clone(), other: other.clone() });
    }
    let parts = [
        (RewrittenPart::Hostname, &of_rule.rewritten_hostname, &of_backend.rewritten_hostname),
        (RewrittenPart::Path, &of_rule.rewritten_path, &of_backend.rewritten_path),
    ];
    for (part, of_rule, of_backend) in parts {
        if let (Some(other), Some(at)) = (of_rule, of_backend) {
            return Err(CompileError::RewrittenTwice { at: at.clone(), part, other: other.clone() });
        }
    }
    Ok(())
}

fn filter_list(
    kind: RouteKind,
    matches: &[Match],
    filters: &mut [Filter],
    at: &At<'_>,
) -> Result<Places, CompileError> {
    let mut seen: Vec<(FilterKind, String)> = Vec::new();
    let mut places = Places::default();
    for (index, filter) in filters.iter_mut().enumerate() {
        let at = at.item("filters", index);
        kind_allows(kind, filter, &at)?;
        let filter_kind = filter_kind(filter);
        let first =
            seen.iter().find(|(kind, _)| *kind == filter_kind && filter_kind != FilterKind::RequestMirror);
        if let Some((_, first)) = first {
            let first = first.clone();
            return Err(CompileError::FilterRepeated { at: at.to_string(), filter: filter_kind, first });
        }
        seen.push((filter_kind, at.to_string()));
        match filter {
            Filter::RequestHeaders(edit) => header_edit(edit, &at.field("requestHeaderModifier"))?,
            Filter::ResponseHeaders(edit) => header_edit(edit, &at.field("responseHeaderModifier"))?,
            Filter::Redirect(redirect) => {
                check_redirect(redirect, matches, &at.field("requestRedirect"))?;
                places.redirect = Some(at.to_string());
            }
            Filter::Rewrite(rewrite) => {
                check_rewrite(rewrite, matches, &at.field("urlRewrite"))?;
                places.rewrite = Some(at.to_string());
                places.rewritten_hostname = rewrite.hostname.is_some().then(|| at.to_string());
                places.rewritten_path = rewrite.path.is_some().then(|| at.to_string());
            }
            // Their parts cannot hold a wrong value.
            Filter::Mirror(_) | Filter::Cors(_) => {}
        }
    }
    match (&places.redirect, &places.rewrite) {
        (Some(at), Some(other)) => {
            Err(CompileError::RedirectWithRewrite { at: at.clone(), other: other.clone() })
        }
        _ => Ok(places),
    }
}

/// Headers of one connection or of message framing: an edit of them would break the next hop, or let one message pass
/// for two. `host` has its own filter.
pub(crate) fn belongs_to_connection(header: &HeaderName) -> bool {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
    const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
    let names = [
        CONNECTION,
        CONTENT_LENGTH,
        HOST,
        HTTP2_SETTINGS,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    names.contains(header)
}

fn header_edit(edit: &HeaderEdit, at: &At<'_>) -> Result<(), CompileError> {
    let mut seen: HashMap<&HeaderName, String> = HashMap::new();
    let set = edit.set.iter().enumerate().map(|(index, (name, _))| ("set", index, name));
    let add = edit.add.iter().enumerate().map(|(index, (name, _))| ("add", index, name));
    let remove = edit.remove.iter().enumerate().map(|(index, name)| ("remove", index, name));
    for (list, index, header) in set.chain(add).chain(remove) {
        let at = at.item(list, index).to_string();
        if belongs_to_connection(header) {
            return Err(CompileError::ForbiddenHeader { at, header: header.clone() });
        }
        if let Some(first) = seen.insert(header, at.clone()) {
            return Err(CompileError::HeaderNamedTwice { at, header: header.clone(), first });
        }
    }
    Ok(())
}

fn check_redirect(redirect: &mut Redirect, matches: &[Match], at: &At<'_>) -> Result<(), CompileError> {
    if let Some(hostname) = &redirect.hostname {
        precise_hostname(hostname, &at.field("hostname"))?;
    }
    if redirect.port == Some(0) {
        return Err(CompileError::Port { at: at.field("port").to_string() });
    }
    path_edit(redirect.path.as_mut(), matches, at)
}

fn check_rewrite(rewrite: &mut Rewrite, matches: &[Match], at: &At<'_>) -> Result<(), CompileError> {
    if let Some(hostname) = &rewrite.hostname {
        precise_hostname(hostname, &at.field("hostname"))?;
    }
    path_edit(rewrite.path.as_mut(), matches, at)
}

fn path_edit(edit: Option<&mut PathEdit>, matches: &[Match], at: &At<'_>) -> Result<(), CompileError> {
    let (value, field) = match edit {
        None => return Ok(()),
        Some(PathEdit::ReplaceFull(value)) => (value, "replaceFullPath"),
        Some(PathEdit::ReplacePrefix(value)) => {
            if !matches!(matches, [Match { path: PathMatch::Prefix(_), .. }]) {
                return Err(CompileError::NoPrefixToReplace { at: at.field("path").to_string() });
            }
            (value, "replacePrefixMatch")
        }
    };
    if !value.is_empty() {
        let refuse = |problem: PathProblem| {
            let at = at.field("path").field(field).to_string();
            CompileError::Path { at, value: value.to_string(), problem }
        };
        *value = check_path(value).map_err(refuse)?;
    }
    Ok(())
}
