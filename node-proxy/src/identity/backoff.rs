//! Delays between attempts: doubled up to a limit, spread so that a crowd does not retry in step.

use std::time::Duration;

use rand::Rng;

/// The delay before attempt number `failures + 1`: `first` doubled with each failure, at most `longest`, then spread
/// by a fifth up and down.
pub(crate) fn delay(failures: u32, first: Duration, longest: Duration) -> Duration {
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest);
    doubled.mul_f64(rand::rng().random_range(0.8..1.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_and_are_spread() {
        let first = Duration::from_millis(500);
        let longest = Duration::from_secs(30);
        for (failures, expected) in [(1, 500), (2, 1000), (3, 2000), (7, 30_000), (1000, 30_000)] {
            let expected = Duration::from_millis(expected);
            for _ in 0..50 {
                let delay = delay(failures, first, longest);
                assert!(
                    delay >= expected.mul_f64(0.8) && delay <= expected.mul_f64(1.2),
                    "{failures}: {delay:?}"
                );
            }
        }
    }
}
