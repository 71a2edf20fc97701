//! What somebody probably meant to write.

/// The one of `known` that differs from `written` by case, separators or a slip or two; None if nothing is near, or it is
/// there as written.
pub fn nearest<'k>(written: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let plain = |text: &str| text.to_lowercase().replace(['-', '_'], "");
    let wanted = plain(written);
    // A short word is near to too many others.
    let most = match written.chars().count() {
        0..=2 => return None,
        3..=4 => 1,
        _ => 2,
    };
    let mut best: Option<(usize, &str)> = None;
    for known in known {
        if known == written {
            return None;
        }
        let other = plain(known);
        let distance = strsim::damerau_levenshtein(&wanted, &other);
        let of_plural = wanted.strip_suffix('s') == Some(&other) || other.strip_suffix('s') == Some(&wanted);
        let distance = if of_plural { 0 } else { distance };
        if distance <= most && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, known));
        }
    }
    best.map(|(_, known)| known)
}

/// `, did you mean X?`, or nothing.
pub fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|word| format!("; did you mean {word}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_near_and_other_words_are_not() {
        let known = ["backendRefs", "matches", "filters", "name", "timeouts", "hostnames"];
        let cases = [
            ("backendRef", Some("backendRefs")),
            ("backend_refs", Some("backendRefs")),
            ("backendrefs", Some("backendRefs")),
            ("mathces", Some("matches")),
            ("hostname", Some("hostnames")),
            ("filter", Some("filters")),
            ("name", None),
            ("rateLimit", None),
            ("retry", None),
            ("x", None),
        ];
        for (written, meant) in cases {
            assert_eq!(nearest(written, known), meant, "{written}");
        }
    }
}
