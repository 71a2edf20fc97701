//! Names and hashes as Kubernetes forms them: stable, lower case, without vowels.

use serde_json::Value;

/// Letters that spell no words.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// 64-bit FNV-1a: stable across runs and builds, which the standard library's hashes are not.
#[must_use]
pub fn fnv64<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        // The length of each part keeps ("a", "bc") and ("ab", "c") apart.
        for byte in part.iter().copied().chain((part.len() as u64).to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    // FNV's low bits mix poorly in short inputs that differ in their last byte only.
    hash ^ (hash >> 29)
}

/// `length` letters (at most 12) of a hash.
#[must_use]
pub fn letters(mut hash: u64, length: usize) -> String {
    let base = LETTERS.len() as u64;
    let mut text = String::with_capacity(length);
    for _ in 0..length {
        text.push(char::from(LETTERS[(hash % base) as usize]));
        hash /= base;
    }
    text
}

/// A hash as a uid, for objects that exist in name only.
#[must_use]
pub fn uid(parts: &[&str]) -> String {
    let bytes = || parts.iter().map(|part| part.as_bytes());
    let (high, low) = (fnv64(bytes()), fnv64(bytes().chain([&b"low"[..]])));
    let number = u128::from(high) << 64 | u128::from(low);
    uuid::Builder::from_random_bytes(number.to_be_bytes()).into_uuid().to_string()
}

/// The hash of a value that does not depend on the order of keys.
#[must_use]
pub fn value(value: &Value) -> u64 {
    let mut text = String::new();
    canonical(value, &mut text);
    fnv64([text.as_bytes()])
}

fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            text.push('{');
            for (key, value) in entries {
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                canonical(value, text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for item in items {
                canonical(item, text);
                text.push(',');
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_order_of_keys_does_not_matter() {
        assert_eq!(
            value(&json!({"a": 1, "b": [1, {"c": 2, "d": 3}]})),
            value(&json!({"b": [1, {"d": 3, "c": 2}], "a": 1}))
        );
        assert_ne!(value(&json!([1, 2])), value(&json!([2, 1])));
        assert_ne!(value(&json!({"a": {}})), value(&json!({"a": []})));
    }

    #[test]
    fn names_are_letters_and_uids_are_uids() {
        assert_eq!(letters(fnv64([&b"x"[..]]), 5).len(), 5);
        assert!(letters(u64::MAX, 12).bytes().all(|byte| LETTERS.contains(&byte)));
        assert!(uuid::Uuid::parse_str(&uid(&["a", "b"])).is_ok());
        assert_ne!(uid(&["a", "bc"]), uid(&["ab", "c"]));
    }
}
