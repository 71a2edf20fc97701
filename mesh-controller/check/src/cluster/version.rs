//! Versions as far as they are compared: major and minor number.

/// `v1.36.3+k3s1`, `6.18.5-arch1` or `1.2`; None where it does not begin with two numbers.
pub fn numbers(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().trim_start_matches('v').splitn(3, '.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?;
    let end = minor.find(|of: char| !of.is_ascii_digit()).unwrap_or(minor.len());
    Some((major, minor[..end].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn what_comes_after_the_numbers_does_not_matter() {
        assert_eq!(numbers("v1.36.3+k3s1"), Some((1, 36)));
        assert_eq!(numbers("6.18-rc1"), Some((6, 18)));
        assert_eq!(numbers("5.4.0-150-generic"), Some((5, 4)));
        assert_eq!(numbers("1.27+"), Some((1, 27)));
        for wrong in ["", "v1", "latest", "v.1"] {
            assert_eq!(numbers(wrong), None, "{wrong}");
        }
    }
}
