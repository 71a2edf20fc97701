//! Bytes as hexadecimal digits, and as text with escapes.

use anyhow::Context;

/// White space between digits is skipped.
///
/// # Errors
/// When something is not a digit, or the last byte has but one.
pub(crate) fn decode(text: &str) -> anyhow::Result<Vec<u8>> {
    let digits: Vec<char> = text.chars().filter(|digit| !digit.is_whitespace()).collect();
    anyhow::ensure!(digits.len().is_multiple_of(2), "odd number of digits");
    digits
        .chunks(2)
        .map(|pair| {
            let pair: String = pair.iter().collect();
            u8::from_str_radix(&pair, 16).with_context(|| format!("{pair:?} is not hexadecimal"))
        })
        .collect()
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Text with `\r`, `\n`, `\t`, `\0`, `\\` and `\xHH` for bytes that cannot be typed.
///
/// # Errors
/// When a backslash is followed by something else.
pub(crate) fn unescape(text: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((plain, escape)) = rest.split_once('\\') {
        bytes.extend_from_slice(plain.as_bytes());
        let letter = escape.chars().next().context("a backslash ends the text")?;
        rest = &escape[letter.len_utf8()..];
        match letter {
            'r' => bytes.push(b'\r'),
            'n' => bytes.push(b'\n'),
            't' => bytes.push(b'\t'),
            '0' => bytes.push(0),
            '\\' => bytes.push(b'\\'),
            'x' => {
                let digits = rest.get(..2).context("\\x needs two digits")?;
                bytes.extend(decode(digits)?);
                rest = &rest[2..];
            }
            other => anyhow::bail!("\\{other} is no escape"),
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_with_spaces() {
        assert_eq!(decode("16 03 01").unwrap(), [0x16, 3, 1]);
        assert_eq!(encode(&[0x16, 3]), "1603");
        assert!(decode("1").is_err());
        assert!(decode("zz").is_err());
    }

    #[test]
    fn escapes_are_bytes() {
        assert_eq!(unescape(r"a\r\n\x00\xff\\b").unwrap(), b"a\r\n\x00\xff\\b");
        assert!(unescape(r"\q").is_err() && unescape(r"\x1").is_err() && unescape("\\").is_err());
    }
}
