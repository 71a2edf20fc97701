//! Manifests as bytes: UTF-8, or UTF-16 that begins with its byte order mark, as kubectl reads them.

use thiserror::Error;

/// Bytes that are no text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("is not {encoding} (byte {at})")]
pub struct NotText {
    pub encoding: &'static str,
    /// Of the first byte that does not fit, counted from 0.
    pub at: usize,
}

/// The text, without a byte order mark.
///
/// # Errors
/// Names the encoding, and the first byte that does not fit.
pub fn text(mut bytes: Vec<u8>) -> Result<String, NotText> {
    match bytes[..] {
        [0xef, 0xbb, 0xbf, ..] => utf8(bytes.split_off(3), 3),
        [0xfe, 0xff, ..] => utf16(&bytes[2..], u16::from_be_bytes, "UTF-16 (big endian)"),
        [0xff, 0xfe, ..] => utf16(&bytes[2..], u16::from_le_bytes, "UTF-16 (little endian)"),
        _ => utf8(bytes, 0),
    }
}

fn utf8(bytes: Vec<u8>, before: usize) -> Result<String, NotText> {
    String::from_utf8(bytes)
        .map_err(|error| NotText { encoding: "UTF-8", at: before + error.utf8_error().valid_up_to() })
}

fn utf16(bytes: &[u8], read: fn([u8; 2]) -> u16, encoding: &'static str) -> Result<String, NotText> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let mut text = String::with_capacity(pairs.len());
    // After the mark.
    let mut at = 2;
    for decoded in char::decode_utf16(pairs.iter().map(|pair| read(*pair))) {
        let decoded = decoded.map_err(|_| NotText { encoding, at })?;
        at += 2 * decoded.len_utf16();
        text.push(decoded);
    }
    if rest.is_empty() { Ok(text) } else { Err(NotText { encoding, at }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_tell_the_encoding_and_are_no_text() {
        let written = "name: gr\u{fc}\u{df}e \u{1f600}\n";
        let utf16 = |bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            "\u{feff}".encode_utf16().chain(written.encode_utf16()).flat_map(bytes).collect()
        };
        let encoded = [
            written.as_bytes().to_vec(),
            format!("\u{feff}{written}").into_bytes(),
            utf16(u16::to_be_bytes),
            utf16(u16::to_le_bytes),
        ];
        for bytes in encoded {
            assert_eq!(text(bytes).as_deref(), Ok(written));
        }
        assert_eq!(text(Vec::new()).as_deref(), Ok(""));
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let told = |bytes: &[u8]| text(bytes.to_vec()).unwrap_err().to_string();
        assert_eq!(told(b"ab\xfc"), "is not UTF-8 (byte 2)");
        assert_eq!(told(b"\xef\xbb\xbfab\xfc"), "is not UTF-8 (byte 5)");
        assert_eq!(told(b"\xff\xfea\0b"), "is not UTF-16 (little endian) (byte 4)");
        assert_eq!(told(b"\xfe\xff\0a\xd8\0"), "is not UTF-16 (big endian) (byte 4)");
    }
}
