//! Matches: paths in their normal form, values and expressions checked.

use std::collections::HashSet;
use std::sync::Arc;

use crate::conditions::{Conditions, HeaderTest, PathTest, QueryTest, ValueTest};
use crate::error::{At, CompileError, PathProblem};
use crate::model::{Carries, HeaderMatch, Match, PathMatch, QueryMatch, RouteKind, ValueMatch};
use crate::path;
use crate::pattern::{Pattern, Values};
use crate::text::LONGEST_VALUE;

const LONGEST_PATH: usize = 1024;

pub(super) fn compile(
    kind: RouteKind,
    matches: &mut [Match],
    at: &At<'_>,
) -> Result<Vec<Conditions>, CompileError> {
    if matches.is_empty() {
        return Err(CompileError::NoMatch { at: at.field("matches").to_string() });
    }
    let compile = |(index, item)| conditions(kind, item, &at.item("matches", index));
    matches.iter_mut().enumerate().map(compile).collect()
}

fn conditions(kind: RouteKind, item: &mut Match, at: &At<'_>) -> Result<Conditions, CompileError> {
    let grpc = matches!(item.path, PathMatch::Grpc { .. });
    let http_only = item.method.is_some() || !item.query.is_empty();
    let of_connections = kind.carries() != Carries::Requests;
    if grpc != (kind == RouteKind::Grpc)
        || (grpc && http_only)
        || (of_connections && *item != Match::everything(kind))
    {
        return Err(CompileError::MatchOfOtherKind { at: at.to_string(), kind });
    }
    Ok(Conditions {
        path: path_test(&mut item.path, at)?,
        method: item.method.clone(),
        headers: header_tests(&item.headers, at)?,
        query: query_tests(&item.query, at)?,
    })
}

fn path_test(path: &mut PathMatch, at: &At<'_>) -> Result<PathTest, CompileError> {
    let value_at = at.field("path");
    let value_at = value_at.field("value");
    Ok(match path {
        PathMatch::Exact(value) => {
            *value = normal_path(value, &value_at)?;
            PathTest::Exact(Arc::clone(value))
        }
        PathMatch::Prefix(value) => {
            *value = normal_path(value, &value_at)?;
            PathTest::Prefix(value.strip_suffix('/').unwrap_or(value).into())
        }
        PathMatch::Regex(value) => PathTest::Regex(pattern(value, Values::Ascii, &value_at)?),
        PathMatch::Grpc { service, method } => {
            let at = at.field("method");
            let test = |value: &Option<ValueMatch>, field, is_name: fn(&str) -> bool| {
                value.as_ref().map(|value| grpc_test(value, &at.field(field), is_name)).transpose()
            };
            PathTest::Grpc {
                service: test(service, "service", is_service_name)?,
                method: test(method, "method", is_identifier)?,
            }
        }
    })
}

fn normal_path(value: &str, at: &At<'_>) -> Result<Arc<str>, CompileError> {
    let refuse = |problem| CompileError::Path { at: at.to_string(), value: value.to_owned(), problem };
    if value.to_ascii_uppercase().contains("%2F") {
        return Err(refuse(PathProblem::EncodedSlash));
    }
    check_path(value).map_err(refuse)
}

/// A path as requests have it, in normal form; what is merged or resolved in requests is refused, because the author
/// may mean what it says.
pub(super) fn check_path(value: &str) -> Result<Arc<str>, PathProblem> {
    if value.len() > LONGEST_PATH {
        return Err(PathProblem::TooLong);
    }
    if !value.starts_with('/') {
        return Err(PathProblem::NotAbsolute);
    }
    if value.contains(['#', '?']) {
        return Err(PathProblem::QueryOrFragment);
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/%".contains(c);
    if let Some(character) = value.chars().find(|c| !allowed(*c)) {
        return Err(PathProblem::Character(character));
    }
    let escaped = path::normalize_escapes(value).map_err(|error| match error {
        path::PathError::Nul { .. } => PathProblem::Nul,
        _ => PathProblem::BadEscape,
    })?;
    if escaped.contains("//") {
        return Err(PathProblem::DoubleSlash);
    }
    if path::segments(&escaped).any(|segment| matches!(segment, "." | "..")) {
        return Err(PathProblem::DotSegment);
    }
    Ok(escaped.into())
}

fn header_tests(headers: &[HeaderMatch], at: &At<'_>) -> Result<Vec<HeaderTest>, CompileError> {
    let mut seen = HashSet::new();
    let mut tests = Vec::with_capacity(headers.len());
    for (entry, header) in headers.iter().enumerate() {
        let at = at.item("headers", entry);
        let value = value_test(&header.value, Values::Any, &at.field("value"))?;
        if seen.insert(&header.name) {
            tests.push(HeaderTest { name: header.name.clone(), value, entry });
        }
    }
    Ok(tests)
}

fn query_tests(query: &[QueryMatch], at: &At<'_>) -> Result<Vec<QueryTest>, CompileError> {
    let mut seen = HashSet::new();
    let mut tests = Vec::with_capacity(query.len());
    for (entry, parameter) in query.iter().enumerate() {
        let at = at.item("queryParams", entry);
        if parameter.name.is_empty() {
            return Err(CompileError::QueryName { at: at.field("name").to_string() });
        }
        let value = value_test(&parameter.value, Values::Any, &at.field("value"))?;
        if seen.insert(&parameter.name) {
            tests.push(QueryTest { name: Arc::clone(&parameter.name), value, entry });
        }
    }
    Ok(tests)
}

fn value_test(value: &ValueMatch, values: Values, at: &At<'_>) -> Result<ValueTest, CompileError> {
    check_length(value.text(), at)?;
    Ok(match value {
        ValueMatch::Exact(text) => ValueTest::Exact(Arc::clone(text)),
        ValueMatch::Regex(text) => ValueTest::Regex(pattern(text, values, at)?),
    })
}

fn grpc_test(value: &ValueMatch, at: &At<'_>, is_name: fn(&str) -> bool) -> Result<ValueTest, CompileError> {
    match value {
        ValueMatch::Exact(text) if !is_name(text) => {
            Err(CompileError::GrpcName { at: at.to_string(), value: text.to_string() })
        }
        _ => value_test(value, Values::Ascii, at),
    }
}

fn is_service_name(name: &str) -> bool {
    name.strip_prefix('.').unwrap_or(name).split('.').all(is_identifier)
}

fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn pattern(value: &str, values: Values, at: &At<'_>) -> Result<Pattern, CompileError> {
    check_length(value, at)?;
    Pattern::compile(value, values).map_err(|error| CompileError::Regex {
        at: at.to_string(),
        value: value.to_owned(),
        error,
    })
}

fn check_length(value: &str, at: &At<'_>) -> Result<(), CompileError> {
    if value.len() > LONGEST_VALUE {
        return Err(CompileError::TooLong { at: at.to_string(), length: value.len(), limit: LONGEST_VALUE });
    }
    Ok(())
}
