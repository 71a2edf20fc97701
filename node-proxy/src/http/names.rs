//! The names that a request is known by in logs and traces.

use http::header::{HeaderMap, HeaderName, HeaderValue};

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The value that a client gave, or a new one.
pub fn named(headers: &mut HeaderMap, name: HeaderName, new: impl Fn() -> String) -> HeaderValue {
    if let Some(given) = headers.get(&name).filter(|given| !given.is_empty()) {
        return given.clone();
    }
    let value = HeaderValue::from_str(&new()).unwrap_or_else(|_| HeaderValue::from_static("0"));
    headers.insert(name, value.clone());
    value
}

/// A new trace, not sampled (W3C Trace Context); all-zero ids are invalid.
pub fn new_traceparent() -> String {
    format!("00-{:032x}-{:016x}-00", rand::random::<u128>().max(1), rand::random::<u64>().max(1))
}
