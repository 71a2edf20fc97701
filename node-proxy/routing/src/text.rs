//! Values of headers and parameters as they are compared, put together without allocation.

use std::iter;

use http::header::GetAll;
use http::{HeaderMap, HeaderValue};

use crate::path::escaped_byte;

/// No exact value of a match is longer (`maxLength` of the routes' schema).
pub(crate) const LONGEST_VALUE: usize = 4096;

/// Calls `f` with the value of a header: several lines are one value, separated by commas (RFC 9110, 5.2).
/// Allocates only if there are several and they are longer than [`LONGEST_VALUE`] together.
pub(crate) fn with_header<R>(
    headers: &HeaderMap,
    name: &http::HeaderName,
    f: impl FnOnce(Option<&[u8]>) -> R,
) -> R {
    let values = headers.get_all(name);
    let mut lines = values.iter();
    match (lines.next(), lines.next()) {
        (None, _) => f(None),
        (Some(only), None) => f(Some(only.as_bytes())),
        (Some(_), Some(_)) => {
            let length = values.iter().map(|value| value.len() + 1).sum::<usize>() - 1;
            with_bytes(length, combined(&values), |value| f(Some(value)))
        }
    }
}

fn combined(values: &GetAll<'_, HeaderValue>) -> impl Iterator<Item = u8> {
    let lines = values.iter().map(|value| value.as_bytes().iter().copied());
    lines.flat_map(|line| iter::once(b',').chain(line)).skip(1)
}

/// Calls `f` with the value of the first parameter called `name`, its escapes decoded. Allocates only for a value with
/// escapes that is longer than [`LONGEST_VALUE`].
pub(crate) fn with_parameter<R>(query: Option<&str>, name: &[u8], f: impl FnOnce(Option<&[u8]>) -> R) -> R {
    match parameters(query).find(|(candidate, _)| decoded(candidate).eq(name.iter().copied())) {
        None => f(None),
        Some((_, value)) => with_decoded(value, |value| f(Some(value))),
    }
}

/// Names and values as they stand in the query.
pub(crate) fn parameters(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    let parts = query.into_iter().flat_map(|query| query.split('&')).filter(|part| !part.is_empty());
    parts.map(|part| part.split_once('=').unwrap_or((part, "")))
}

pub(crate) fn with_decoded<R>(text: &str, f: impl FnOnce(&[u8]) -> R) -> R {
    if !text.contains('%') {
        return f(text.as_bytes());
    }
    with_bytes(decoded(text).count(), decoded(text), f)
}

/// `%XX` as the byte it stands for, everything else as it is, also `+` and what is no escape.
fn decoded(text: &str) -> impl Iterator<Item = u8> {
    let mut rest = text.as_bytes();
    iter::from_fn(move || {
        let (&first, tail) = rest.split_first()?;
        match escaped_byte(rest) {
            Some(byte) => {
                rest = &rest[3..];
                Some(byte)
            }
            None => {
                rest = tail;
                Some(first)
            }
        }
    })
}

fn with_bytes<R>(length: usize, bytes: impl Iterator<Item = u8>, f: impl FnOnce(&[u8]) -> R) -> R {
    if length > LONGEST_VALUE {
        return f(&bytes.collect::<Vec<u8>>());
    }
    let mut buffer = [0; LONGEST_VALUE];
    for (place, byte) in buffer[..length].iter_mut().zip(bytes) {
        *place = byte;
    }
    f(&buffer[..length])
}
