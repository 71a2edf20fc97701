//! Filters, of rules and of backends.
//!
//! A type that this version does not do, or one without its field, makes the rule refuse (`HTTPRouteFilter`: a filter must not
//! be skipped). Which filters go together, and what their values may be, is checked when the route is compiled.

use std::sync::Arc;

use culvert_objects::types::{
    HeaderLine, HeaderModifier, PathModifier, RequestMirror, RequestRedirect, RouteFilter, UrlRewrite,
};
use culvert_routing::model::{
    Filter, HeaderEdit, PathEdit, Redirect, RedirectStatus, Rewrite, Scheme, Share,
};
use http::{HeaderName, HeaderValue};

use super::reader::{At, Reader};
use super::{DraftFilter, DraftMirror, DraftRef, cors};

/// Which filters a kind of route has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// HTTPRoute.
    All,
    /// GRPCRoute: its schema has no redirects, no rewrites and no CORS.
    OfCalls,
    /// TLSRoute, TCPRoute.
    Nothing,
}

/// The filters that could be read, in the order written.
pub fn read(filters: &[RouteFilter], allowed: Allowed, at: At<'_>, reader: &mut Reader) -> Vec<DraftFilter> {
    let mut read = Vec::with_capacity(filters.len());
    for (index, filter) in filters.iter().enumerate() {
        let at = at.item(index);
        if !is_whole(filter, allowed, at, reader) {
            continue;
        }
        if let Some(of) = &filter.request_mirror {
            read.extend(mirror(of, index, at.field("requestMirror"), reader).map(DraftFilter::Mirror));
        } else {
            read.extend(one(filter, at, reader).map(DraftFilter::Ready));
        }
    }
    read
}

/// Whether a filter is of a known type and has the field of that type, and no other.
fn is_whole(filter: &RouteFilter, allowed: Allowed, at: At<'_>, reader: &mut Reader) -> bool {
    let kind = &filter.kind;
    if allowed == Allowed::Nothing {
        reader.unsupported(
            at,
            "routes about connections have no filters: use an HTTPRoute where the port carries HTTP",
        );
        return false;
    }
    let known = match (kind.as_str(), allowed) {
        ("RequestHeaderModifier" | "ResponseHeaderModifier" | "RequestMirror", _) => true,
        ("RequestRedirect" | "URLRewrite" | "CORS", allowed) => allowed == Allowed::All,
        _ => false,
    };
    if !known {
        reader.unsupported(
            at.field("type"),
            format!("this version of Culvert does not do the filter {kind:?}"),
        );
        return false;
    }
    reader.unknown(at, &filter.rest);
    let fields = [
        ("RequestHeaderModifier", "requestHeaderModifier", filter.request_header_modifier.is_some()),
        ("ResponseHeaderModifier", "responseHeaderModifier", filter.response_header_modifier.is_some()),
        ("RequestRedirect", "requestRedirect", filter.request_redirect.is_some()),
        ("URLRewrite", "urlRewrite", filter.url_rewrite.is_some()),
        ("RequestMirror", "requestMirror", filter.request_mirror.is_some()),
        ("CORS", "cors", filter.cors.is_some()),
    ];
    let before = reader.faults.len();
    for (of, field, is_set) in fields {
        match (of == kind, is_set) {
            (true, false) => reader.unsupported(at.field(field), format!("missing, expected for a {kind}")),
            (false, true) => reader.unsupported(at.field(field), format!("set on a {kind}")),
            _ => {}
        }
    }
    reader.faults.len() == before
}

/// A filter that names no backend; of its fields one is set.
fn one(filter: &RouteFilter, at: At<'_>, reader: &mut Reader) -> Option<Filter> {
    if let Some(edit) = &filter.request_header_modifier {
        return Some(Filter::RequestHeaders(headers(edit, at.field("requestHeaderModifier"), reader)));
    }
    if let Some(edit) = &filter.response_header_modifier {
        return Some(Filter::ResponseHeaders(headers(edit, at.field("responseHeaderModifier"), reader)));
    }
    if let Some(edit) = &filter.request_redirect {
        return Some(Filter::Redirect(redirect(edit, at.field("requestRedirect"), reader)));
    }
    if let Some(of) = &filter.cors {
        return Some(Filter::Cors(cors::read(of, at.field("cors"), reader)));
    }
    filter.url_rewrite.as_ref().map(|edit| Filter::Rewrite(rewrite(edit, at.field("urlRewrite"), reader)))
}

fn mirror(of: &RequestMirror, index: usize, at: At<'_>, reader: &mut Reader) -> Option<DraftMirror> {
    reader.unknown(at, &of.rest);
    reader.unknown(at.field("backendRef"), &of.backend_ref.rest);
    let share = match (of.percent, &of.fraction) {
        (None, None) => Some(Share::ALL),
        (Some(_), Some(_)) => {
            reader.unsupported(at, "has percent and fraction, expected one of the two");
            None
        }
        (Some(percent), None) => {
            let share = Share::new(percent, 100);
            if share.is_none() {
                let message = format!("invalid value: {percent}, expected a number from 0 to 100");
                reader.unsupported(at.field("percent"), message);
            }
            share
        }
        (None, Some(fraction)) => {
            reader.unknown(at.field("fraction"), &fraction.rest);
            let denominator = fraction.denominator.unwrap_or(100);
            let share = Share::new(fraction.numerator, denominator);
            if share.is_none() {
                let message =
                    format!("{} of {denominator}, expected at most all of at least 1", fraction.numerator);
                reader.unsupported(at.field("fraction"), message);
            }
            share
        }
    };
    let to = DraftRef::new(
        of.backend_ref.group.as_deref(),
        of.backend_ref.kind.as_deref(),
        of.backend_ref.namespace.as_deref(),
        &of.backend_ref.name,
        of.backend_ref.port,
    );
    Some(DraftMirror { to, share: share?, index })
}

fn headers(edit: &HeaderModifier, at: At<'_>, reader: &mut Reader) -> HeaderEdit {
    reader.unknown(at, &edit.rest);
    let remove = at.field("remove");
    HeaderEdit {
        set: lines(&edit.set, at.field("set"), reader),
        add: lines(&edit.add, at.field("add"), reader),
        remove: (edit.remove.iter().enumerate())
            .filter_map(|(index, name)| header_name(name, remove.item(index), reader))
            .collect(),
    }
}

fn lines(lines: &[HeaderLine], at: At<'_>, reader: &mut Reader) -> Vec<(HeaderName, HeaderValue)> {
    let mut read = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        let at = at.item(index);
        reader.unknown(at, &line.rest);
        let name = header_name(&line.name, at.field("name"), reader);
        let value = header_value(&line.value, at.field("value"), reader);
        read.extend(name.zip(value));
    }
    read
}

/// A name of a header (RFC 9110, section 5.1).
pub fn header_name(text: &str, at: At<'_>, reader: &mut Reader) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok();
    if name.is_none() {
        reader.unsupported(at, format!("invalid value: {text:?}, expected the name of a header"));
    }
    name
}

fn header_value(text: &str, at: At<'_>, reader: &mut Reader) -> Option<HeaderValue> {
    let value = HeaderValue::from_str(text).ok();
    if value.is_none() {
        reader.unsupported(at, format!("invalid value: {text:?}, expected visible ASCII characters"));
    }
    value
}

fn redirect(edit: &RequestRedirect, at: At<'_>, reader: &mut Reader) -> Redirect {
    reader.unknown(at, &edit.rest);
    let scheme = match edit.scheme.as_deref() {
        None => None,
        Some("http") => Some(Scheme::Http),
        Some("https") => Some(Scheme::Https),
        Some(other) => {
            let message = format!("invalid value: {other:?}, expected http or https");
            reader.unsupported(at.field("scheme"), message);
            None
        }
    };
    let status = match edit.status_code {
        None | Some(302) => RedirectStatus::Found,
        Some(301) => RedirectStatus::MovedPermanently,
        Some(303) => RedirectStatus::SeeOther,
        Some(307) => RedirectStatus::TemporaryRedirect,
        Some(308) => RedirectStatus::PermanentRedirect,
        Some(other) => {
            let message = format!("invalid value: {other}, expected 301, 302, 303, 307 or 308");
            reader.unsupported(at.field("statusCode"), message);
            RedirectStatus::Found
        }
    };
    Redirect {
        scheme,
        hostname: edit.hostname.as_deref().map(Arc::from),
        path: edit.path.as_ref().and_then(|path| path_edit(path, at.field("path"), reader)),
        port: edit.port,
        status,
    }
}

fn rewrite(edit: &UrlRewrite, at: At<'_>, reader: &mut Reader) -> Rewrite {
    reader.unknown(at, &edit.rest);
    Rewrite {
        hostname: edit.hostname.as_deref().map(Arc::from),
        path: edit.path.as_ref().and_then(|path| path_edit(path, at.field("path"), reader)),
    }
}

fn path_edit(path: &PathModifier, at: At<'_>, reader: &mut Reader) -> Option<PathEdit> {
    reader.unknown(at, &path.rest);
    let PathModifier { kind, replace_full_path, replace_prefix_match, rest: _ } = path;
    let (field, value, other, edit): (_, _, _, fn(Arc<str>) -> PathEdit) = match kind.as_str() {
        "ReplaceFullPath" => {
            (at.field("replaceFullPath"), replace_full_path, replace_prefix_match, PathEdit::ReplaceFull)
        }
        "ReplacePrefixMatch" => {
            (at.field("replacePrefixMatch"), replace_prefix_match, replace_full_path, PathEdit::ReplacePrefix)
        }
        other => {
            let message = format!("invalid value: {other:?}, expected ReplaceFullPath or ReplacePrefixMatch");
            reader.unsupported(at.field("type"), message);
            return None;
        }
    };
    if other.is_some() {
        reader.unsupported(at, format!("has the field of another type, expected only that of {kind}"));
    }
    let Some(value) = value else {
        reader.unsupported(field, format!("missing, expected for {kind}"));
        return None;
    };
    Some(edit(value.as_str().into()))
}
