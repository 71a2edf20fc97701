//! Heads of HTTP/1 requests, judged on the bytes as they came. hyper is lenient where senders and receivers have been seen to
//! disagree about where a request ends (it takes a bare LF for a line's end, drops a Content-Length beside a
//! Transfer-Encoding, takes `gzip, chunked`), and does not say so afterwards. So nothing reaches it that is not plain.

use thiserror::Error;

/// Header fields of one request, at most.
pub const MOST_FIELDS: usize = 100;

/// What `http::Uri` takes.
pub const LONGEST_TARGET: usize = 65_534;

/// What the bytes at the start of a request are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// The head is not complete, and may still become a good one.
    Partial,
    Complete(Head),
    Refused(BadHead),
}

/// A head that says what it says to every reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes up to and with the empty line.
    pub length: usize,
    pub body: Framing,
    /// What follows may be another protocol, if the answer agrees to it.
    pub may_switch: bool,
}

/// How the end of a body is found (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadHead {
    #[error("a line ends with a line feed alone")]
    BareLineFeed,
    #[error("the request line is not METHOD TARGET VERSION with single spaces")]
    RequestLine,
    #[error("the version is not HTTP/1.0 or HTTP/1.1")]
    Version,
    #[error("a byte in the request target is not allowed there")]
    TargetByte,
    #[error("the request target is neither a path, nor an http URL, nor * of OPTIONS")]
    TargetForm,
    #[error("the request target is longer than {LONGEST_TARGET} bytes")]
    TargetTooLong,
    #[error(
        "a header field's name is empty, has a byte that is not allowed, or white space before its colon"
    )]
    FieldName,
    #[error("a header field's value has a byte that is not allowed, or goes on in the next line")]
    FieldValue,
    #[error("more than {MOST_FIELDS} header fields")]
    TooManyFields,
    #[error("Content-Length and Transfer-Encoding together")]
    LengthAndEncoding,
    #[error("Content-Length is not a number")]
    Length,
    #[error("several Content-Length that differ")]
    Lengths,
    #[error("Transfer-Encoding is not just `chunked`")]
    Encoding,
    #[error("Transfer-Encoding in HTTP/1.0")]
    EncodingInOldVersion,
    #[error("no Host")]
    NoHost,
    #[error("several Host")]
    Hosts,
}

impl BadHead {
    /// Whether the head is refused for its size alone.
    pub fn is_size(self) -> bool {
        matches!(self, Self::TooManyFields | Self::TargetTooLong)
    }
}

/// Judges what was received from the start of a request on.
pub fn judge(received: &[u8]) -> Judged {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(received) {
        Ok(httparse::Status::Partial) => return partial(received),
        Ok(httparse::Status::Complete(length)) => length,
        Err(error) => return Judged::Refused(bad_syntax(received, error)),
    };
    if has_bare_line_feed(&received[..length]) {
        return Judged::Refused(BadHead::BareLineFeed);
    }
    match judge_parsed(&request) {
        Ok((body, may_switch)) => Judged::Complete(Head { length, body, may_switch }),
        Err(bad) => Judged::Refused(bad),
    }
}

/// A line feed alone is told at once: waiting for the rest would only say it later.
fn partial(received: &[u8]) -> Judged {
    if has_bare_line_feed(received) { Judged::Refused(BadHead::BareLineFeed) } else { Judged::Partial }
}

fn bad_syntax(received: &[u8], error: httparse::Error) -> BadHead {
    match error {
        httparse::Error::Token | httparse::Error::Status => BadHead::RequestLine,
        httparse::Error::Version => BadHead::Version,
        httparse::Error::HeaderName => BadHead::FieldName,
        httparse::Error::HeaderValue => BadHead::FieldValue,
        httparse::Error::TooManyHeaders => BadHead::TooManyFields,
        httparse::Error::NewLine if has_bare_line_feed(received) => BadHead::BareLineFeed,
        httparse::Error::NewLine => BadHead::RequestLine,
    }
}

fn has_bare_line_feed(bytes: &[u8]) -> bool {
    let mut before = 0;
    for byte in bytes {
        if *byte == b'\n' && before != b'\r' {
            return true;
        }
        before = *byte;
    }
    false
}

fn judge_parsed(request: &httparse::Request<'_, '_>) -> Result<(Framing, bool), BadHead> {
    let method = request.method.unwrap_or_default();
    let is_old = request.version == Some(0);
    judge_target(method, request.path.unwrap_or_default())?;
    let (mut length, mut is_chunked, mut hosts, mut switches) = (None, false, 0, method == "CONNECT");
    for field in request.headers.iter() {
        // The names differ in length, so that most fields are done after one comparison.
        match field.name.len() {
            4 if field.name.eq_ignore_ascii_case("host") => hosts += 1,
            7 if field.name.eq_ignore_ascii_case("upgrade") => switches |= !is_old,
            14 if field.name.eq_ignore_ascii_case("content-length") => {
                let this = number(field.value).ok_or(BadHead::Length)?;
                if length.is_some_and(|other| other != this) {
                    return Err(BadHead::Lengths);
                }
                length = Some(this);
            }
            17 if field.name.eq_ignore_ascii_case("transfer-encoding") => {
                if is_old {
                    return Err(BadHead::EncodingInOldVersion);
                }
                if is_chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(BadHead::Encoding);
                }
                is_chunked = true;
            }
            _ => {}
        }
    }
    match hosts {
        0 if !is_old => return Err(BadHead::NoHost),
        0 | 1 => {}
        _ => return Err(BadHead::Hosts),
    }
    let body = match (length, is_chunked) {
        (Some(_), true) => return Err(BadHead::LengthAndEncoding),
        (Some(0) | None, false) => Framing::None,
        (Some(length), false) => Framing::Length(length),
        (None, true) => Framing::Chunked,
    };
    Ok((body, switches && body == Framing::None))
}

/// Digits alone: no sign, no list, no space (RFC 9110, 8.6). `u64::MAX` and its neighbours are no lengths but traps.
fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn judge_target(method: &str, target: &str) -> Result<(), BadHead> {
    if target.len() > LONGEST_TARGET {
        return Err(BadHead::TargetTooLong);
    }
    // A fragment never is part of a request, and a backslash is a slash to some (WHATWG URL), not to others.
    if target.bytes().any(|byte| !byte.is_ascii_graphic() || matches!(byte, b'#' | b'\\')) {
        return Err(BadHead::TargetByte);
    }
    // Not in RFC 3986, but clients send them; what the parser of URIs does not take either is refused here.
    let is_odd = |byte| matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}');
    if target.bytes().any(is_odd) && target.parse::<http::Uri>().is_err() {
        return Err(BadHead::TargetByte);
    }
    let is_url = || target.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"));
    match method {
        // Refused later, by an answer that says so; what is no URI at all is refused here.
        "CONNECT" if target.parse::<http::Uri>().is_ok() => Ok(()),
        "OPTIONS" if target == "*" => Ok(()),
        _ if target.starts_with('/') => Ok(()),
        _ if is_url() && target.parse::<http::Uri>().is_ok() => Ok(()),
        _ => Err(BadHead::TargetForm),
    }
}

#[cfg(test)]
#[path = "head/tests.rs"]
mod tests;
