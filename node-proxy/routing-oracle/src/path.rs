//! The policy of `docs/routing.md` for request paths, one replacement after the other until nothing changes. *Ours.*

/// The normal form of a path; `None`: refused.
pub fn normalize(path: &str) -> Option<String> {
    if path == "*" {
        return Some(path.to_owned());
    }
    if path.is_empty() {
        return Some("/".to_owned());
    }
    let mut path = unify_escapes(path)?;
    if !path.starts_with('/') {
        return None;
    }
    while path.contains("//") {
        path = path.replacen("//", "/", 1);
    }
    loop {
        let before = path.clone();
        path = path.replacen("/./", "/", 1);
        if path.ends_with("/.") {
            path.pop();
        }
        path = without_parent_segment(&path)?;
        if path == before {
            return Some(path);
        }
    }
}

fn unify_escapes(path: &str) -> Option<String> {
    let mut result = String::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let escaped = byte == b'%';
        let value = if escaped {
            let digits = [bytes.next()?, bytes.next()?];
            if !digits.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
        } else {
            byte
        };
        let character = char::from(value);
        if value == 0 {
            return None;
        }
        if character.is_ascii_alphanumeric() || "-._~".contains(character) {
            result.push(character);
        } else if escaped {
            result.push_str(&format!("%{value:02X}"));
        } else if "/!$&'()*+,;=:@".contains(character) {
            result.push(character);
        } else if value <= 32 || value == 127 || "#?\\".contains(character) {
            return None;
        } else {
            result.push_str(&format!("%{value:02X}"));
        }
    }
    Some(result)
}

/// Takes the first `/segment/..` out; `None` if there is no segment.
fn without_parent_segment(path: &str) -> Option<String> {
    let elements: Vec<&str> = path.split('/').collect();
    let Some(at) = elements.iter().position(|element| *element == "..") else {
        return Some(path.to_owned());
    };
    // Elements of "." go first, so that what stands before is a segment; the first element is what is before the root.
    if elements.contains(&".") {
        return Some(path.to_owned());
    }
    if at < 2 {
        return None;
    }
    let mut left: Vec<&str> = elements[..at - 1].to_vec();
    left.extend_from_slice(&elements[at + 1..]);
    if at + 1 == elements.len() {
        left.push("");
    }
    Some(left.join("/"))
}
