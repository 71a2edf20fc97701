//! What filters do to requests and responses. The data path and `culvert explain` call the same functions.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, Method, StatusCode};

use crate::cors::Preflight;
use crate::error::FilterKind;
use crate::model::{
    Filter, HeaderEdit, Mirror, PathEdit, PathMatch, Redirect, RedirectStatus, Rewrite, Scheme,
};
use crate::path::push_escape;

/// The parts of a request that filters read and change.
#[derive(Debug)]
pub struct FilteredRequest<'a> {
    /// Never changed.
    pub method: &'a Method,
    /// How the client spoke to the parent.
    pub scheme: Scheme,
    /// The listener's, or the port of the Service.
    pub port: u16,
    /// As [`crate::host::Host`] gives it; empty if the request names none. Changed by a rewrite, and then to be sent
    /// as it stands here, without a port.
    pub host: Cow<'a, str>,
    /// In normal form.
    pub path: Cow<'a, str>,
    /// Never changed.
    pub query: Option<&'a str>,
    pub headers: &'a mut HeaderMap,
}

/// The answer of a redirect filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirection {
    pub status: StatusCode,
    pub location: HeaderValue,
}

/// An answer that filters give in a backend's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Redirection(Redirection),
    Preflight(Preflight),
}

/// Applies the filters for requests of a rule or of a backend in the order given. `matched` is the path that the rule
/// matched with, for replacements of its prefix. After a redirect the rest no longer counts. A preflight is answered wherever
/// the filter stands: it is not the request that the others are for, and no browser follows a redirect of one. `mirrors` is
/// shown each mirror by its place among the filters, with the request as it stands there: copies are what the filters
/// before them made.
pub fn apply_to_request(
    filters: &[Filter],
    matched: &PathMatch,
    request: &mut FilteredRequest<'_>,
    mut mirrors: impl FnMut(usize, &Mirror, &FilteredRequest<'_>),
) -> Option<Answer> {
    let preflight = filters.iter().find_map(|filter| match filter {
        Filter::Cors(cors) => cors.preflight(request.method, request.headers),
        _ => None,
    });
    if let Some(preflight) = preflight {
        return Some(Answer::Preflight(preflight));
    }
    for (index, filter) in filters.iter().enumerate() {
        match filter {
            Filter::Mirror(mirror) => mirrors(index, mirror, request),
            Filter::RequestHeaders(edit) => edit.apply(request.headers),
            Filter::ResponseHeaders(_) | Filter::Cors(_) => {}
            Filter::Rewrite(rewrite) => rewrite.apply(matched, request),
            Filter::Redirect(redirect) => {
                let location = redirect.location(matched, request);
                return Some(Answer::Redirection(Redirection { status: redirect.status.code(), location }));
            }
        }
    }
    None
}

/// Applies the filters for responses in the order given. `origin` is the request's, as it came.
pub fn apply_to_response(filters: &[Filter], origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    for filter in filters {
        match filter {
            Filter::ResponseHeaders(edit) => edit.apply(headers),
            Filter::Cors(cors) => cors.apply(origin, headers),
            Filter::RequestHeaders(_) | Filter::Redirect(_) | Filter::Rewrite(_) | Filter::Mirror(_) => {}
        }
    }
}

/// Lets a page read what a proxy answers itself in a backend's place; other filters are for responses of backends.
pub fn apply_to_own_answer(filters: &[Filter], origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    for filter in filters {
        if let Filter::Cors(cors) = filter {
            cors.apply(origin, headers);
        }
    }
}

pub(crate) fn filter_kind(filter: &Filter) -> FilterKind {
    match filter {
        Filter::RequestHeaders(_) => FilterKind::RequestHeaderModifier,
        Filter::ResponseHeaders(_) => FilterKind::ResponseHeaderModifier,
        Filter::Redirect(_) => FilterKind::RequestRedirect,
        Filter::Rewrite(_) => FilterKind::UrlRewrite,
        Filter::Mirror(_) => FilterKind::RequestMirror,
        Filter::Cors(_) => FilterKind::Cors,
    }
}

impl HeaderEdit {
    /// `set` replaces all lines of a header, `add` appends a line, `remove` takes all away (`HTTPHeaderFilter`).
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

impl Rewrite {
    fn apply(&self, matched: &PathMatch, request: &mut FilteredRequest<'_>) {
        if let Some(hostname) = &self.hostname {
            request.host = Cow::Owned(hostname.to_string());
        }
        if let Some(edit) = &self.path {
            request.path = Cow::Owned(rewrite_path(edit, matched, &request.path));
        }
    }
}

impl RedirectStatus {
    pub fn code(self) -> StatusCode {
        match self {
            RedirectStatus::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
            RedirectStatus::Found => StatusCode::FOUND,
            RedirectStatus::SeeOther => StatusCode::SEE_OTHER,
            RedirectStatus::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
            RedirectStatus::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
        }
    }
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    pub(crate) fn well_known_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

impl Redirect {
    /// The value of `Location` (`HTTPRequestRedirectFilter`): scheme, host and path of the request where the filter says
    /// nothing. The port is the filter's, else the well-known one of a scheme that the filter names, else the parent's;
    /// it is left out if it is the scheme's own. The query stays. Without any host the reference is relative.
    pub fn location(&self, matched: &PathMatch, request: &FilteredRequest<'_>) -> HeaderValue {
        let scheme = self.scheme.unwrap_or(request.scheme);
        let host = self.hostname.as_deref().unwrap_or(&request.host);
        let port = self.port.or_else(|| self.scheme.map(Scheme::well_known_port)).unwrap_or(request.port);
        let path = match &self.path {
            Some(edit) => Cow::Owned(rewrite_path(edit, matched, &request.path)),
            None => Cow::Borrowed(&*request.path),
        };
        let mut location = String::new();
        if !host.is_empty() {
            location = format!("{}://{host}", scheme.as_str());
            if port != scheme.well_known_port() {
                location.push_str(&format!(":{port}"));
            }
        }
        location.push_str(&path);
        if let Some(query) = request.query {
            location.push('?');
            location.push_str(query);
        }
        visible(&location)
    }
}

/// A path after `edit`, as the table in `HTTPPathModifier` says: the prefix is replaced by whole elements, a slash at the
/// end of prefix or replacement does not count, the result is never empty and has no `//`. `path` must be in normal
/// form; it stays as it is where there is no matched prefix to replace.
pub fn rewrite_path(edit: &PathEdit, matched: &PathMatch, path: &str) -> String {
    let without_slash = |text: &str| text.strip_suffix('/').unwrap_or(text).to_owned();
    let rewritten = match (edit, matched) {
        (PathEdit::ReplaceFull(full), _) => full.to_string(),
        (PathEdit::ReplacePrefix(replacement), PathMatch::Prefix(prefix)) => {
            match path.strip_prefix(without_slash(prefix).as_str()) {
                Some(rest) if rest.is_empty() || rest.starts_with('/') => without_slash(replacement) + rest,
                _ => path.to_owned(),
            }
        }
        (PathEdit::ReplacePrefix(_), _) => path.to_owned(),
    };
    if rewritten.is_empty() { "/".to_owned() } else { rewritten }
}

/// A header value of visible ASCII: a query may carry other bytes, which are escaped.
fn visible(text: &str) -> HeaderValue {
    let mut value = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() { value.push(char::from(byte)) } else { push_escape(&mut value, byte) }
    }
    HeaderValue::from_str(&value).expect("visible ASCII is a header value")
}
