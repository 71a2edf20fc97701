//! Durations as the Gateway API writes them (GEP-2257).

use std::time::Duration;

/// # Errors
/// When the text is not one to four numbers of up to five digits, each with one of `h`, `m`, `s`, `ms`.
pub fn parse(text: &str) -> Result<Duration, String> {
    let fault = || format!("invalid value: {text:?}, expected a duration as 500ms, 10s or 1h30m (GEP-2257)");
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        let units = after.len() - after.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
        let (unit, after) = after.split_at(units);
        parts += 1;
        if !(1..=5).contains(&digits) || parts > 4 {
            return Err(fault());
        }
        let number: u32 = number.parse().map_err(|_| fault())?;
        let unit = match unit {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return Err(fault()),
        };
        total += unit * number;
        rest = after;
    }
    if parts == 0 { Err(fault()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_the_gep_writes_them() {
        let cases = [
            ("0s", Some(0)),
            ("0h0m0s", Some(0)),
            ("500ms", Some(500)),
            ("10s", Some(10_000)),
            ("1h30m", Some(5_400_000)),
            ("1h2m3s4ms", Some(3_723_004)),
            ("1m1m", Some(120_000)),
            ("99999h", Some(359_996_400_000)),
            ("", None),
            ("10", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            (" 1s", None),
            ("1s ", None),
            ("1d", None),
            ("1us", None),
            ("100000s", None),
            ("1h1m1s1ms1ms", None),
            ("1S", None),
        ];
        for (text, millis) in cases {
            assert_eq!(parse(text).ok(), millis.map(Duration::from_millis), "{text:?}");
        }
    }
}
