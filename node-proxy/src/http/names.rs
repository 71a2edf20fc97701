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

/// A new request's name: 32 hexadecimal digits.
pub fn new_request_id() -> String {
    let mut id = String::with_capacity(32);
    push_hex(&mut id, &rand::random::<u128>().to_be_bytes());
    id
}

/// A new trace, not sampled (W3C Trace Context); all-zero ids are invalid.
pub fn new_traceparent() -> String {
    let mut trace = String::with_capacity(55);
    trace.push_str("00-");
    push_hex(&mut trace, &rand::random::<u128>().max(1).to_be_bytes());
    trace.push('-');
    push_hex(&mut trace, &rand::random::<u64>().max(1).to_be_bytes());
    trace.push_str("-00");
    trace
}

/// In lower case. Of every request: `format!` takes five times as long.
fn push_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)]);
        text.push(DIGITS[usize::from(byte & 0xf)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_digits_of_their_length() {
        let is_hex = |text: &str, length: usize| {
            text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        assert!(is_hex(&new_request_id(), 32));
        assert_ne!(new_request_id(), new_request_id());
        let trace = new_traceparent();
        let parts: Vec<&str> = trace.split('-').collect();
        assert_eq!((parts.len(), parts[0], parts[3]), (4, "00", "00"), "{trace}");
        assert!(is_hex(parts[1], 32) && is_hex(parts[2], 16), "{trace}");
        let mut text = String::new();
        push_hex(&mut text, &[0x00, 0x9f, 0xa0, 0xff]);
        assert_eq!(text, "009fa0ff");
    }
}
