//! The one form of a path that is matched, rewritten and sent on, so that no two spellings of a path are treated
//! differently here and at the backend.

use std::borrow::Cow;

/// Why a path is refused with 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path does not start with '/'")]
    NotAbsolute,
    #[error("'%' at byte {at} is not followed by two hexadecimal digits")]
    BadEscape { at: usize },
    #[error("the path contains a NUL at byte {at}")]
    Nul { at: usize },
    #[error("byte {byte:#04x} at {at} is not allowed in a path")]
    Forbidden { byte: u8, at: usize },
    #[error("'..' leads above the root")]
    AboveRoot,
}

/// Brings the path of a request (without `?` and query) to its normal form, which consists of unreserved characters,
/// sub-delimiters, `:`, `@`, `/` and escapes, and which it leaves as it is:
///
/// 1. `%XX` of an unreserved character becomes the character; other escapes stay, also `%2F` and `%5C`, with upper-case
///    digits (RFC 3986, 6.2.2). Bytes that must be escaped and are not (`"`, `<`, `{`, beyond ASCII) are escaped.
/// 2. `//` becomes `/`.
/// 3. The segments `.` and `..` are resolved (RFC 3986, 5.2.4), after the two steps before, so also `%2e%2e`.
///
/// An empty path is `/`. The `*` of `OPTIONS *` is left alone. A NUL, escaped or not, other control characters, space,
/// `#`, `?`, a backslash, an incomplete escape and `..` above the root are errors.
pub fn normalize(raw: &str) -> Result<Cow<'_, str>, PathError> {
    if raw == "*" || is_plain(raw.as_bytes()) {
        return Ok(Cow::Borrowed(raw));
    }
    if raw.is_empty() {
        return Ok(Cow::Borrowed("/"));
    }
    let escaped = normalize_escapes(raw)?;
    if !escaped.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    let path = resolve_segments(&escaped)?;
    Ok(if path == raw { Cow::Borrowed(raw) } else { Cow::Owned(path) })
}

/// The segments of a path in normal form: of `/` none, of `/a/` one `a` and an empty one.
pub(crate) fn segments(path: &str) -> impl Iterator<Item = &str> {
    let rest = path.strip_prefix('/').unwrap_or(path);
    (!rest.is_empty()).then(|| rest.split('/')).into_iter().flatten()
}

/// What a path may contain unescaped besides `/` (RFC 3986, `pchar`).
pub(crate) fn is_path_character(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,;=:@".contains(&byte)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Whether a path is in normal form at the first look: no escapes, and no segment starts with a dot.
fn is_plain(path: &[u8]) -> bool {
    let mut after_slash = false;
    for &byte in path {
        let fine = if after_slash {
            byte != b'.' && is_path_character(byte)
        } else {
            byte == b'/' || is_path_character(byte)
        };
        if !fine {
            return false;
        }
        after_slash = byte == b'/';
    }
    path.first() == Some(&b'/')
}

/// The first step of [`normalize`].
pub(crate) fn normalize_escapes(raw: &str) -> Result<String, PathError> {
    let bytes = raw.as_bytes();
    let mut out = String::with_capacity(raw.len() + 8);
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        match byte {
            b'%' => {
                let value = escaped_byte(&bytes[at..]).ok_or(PathError::BadEscape { at })?;
                match value {
                    0 => return Err(PathError::Nul { at }),
                    value if is_unreserved(value) => out.push(char::from(value)),
                    value => push_escape(&mut out, value),
                }
                at += 2;
            }
            b'/' => out.push('/'),
            byte if is_path_character(byte) => out.push(char::from(byte)),
            0 => return Err(PathError::Nul { at }),
            b'#' | b'?' | b'\\' | 0x01..=0x20 | 0x7f => return Err(PathError::Forbidden { byte, at }),
            byte => push_escape(&mut out, byte),
        }
        at += 1;
    }
    Ok(out)
}

/// The byte that `%XX` at the start of `text` stands for.
pub(crate) fn escaped_byte(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = *text else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

pub(crate) fn push_escape(out: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
}

fn resolve_segments(path: &str) -> Result<String, PathError> {
    let mut out = String::with_capacity(path.len());
    let mut ends_in_slash = true;
    for segment in segments(path) {
        ends_in_slash = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                let parent = out.rfind('/').ok_or(PathError::AboveRoot)?;
                out.truncate(parent);
            }
            segment => {
                out.push('/');
                out.push_str(segment);
            }
        }
    }
    if ends_in_slash {
        out.push('/');
    }
    Ok(out)
}
