//! Retries against the oracle.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of integration tests for code outside tests")]

use std::num::NonZeroU32;
use std::time::Duration;

use culvert_routing::retry::{Outcome, Retry};
use culvert_routing_oracle::retry::{Attempt, Policy, play};
use http::StatusCode;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

fn retry(codes: &[u16], attempts: u32, backoff: Duration) -> Retry {
    let codes = codes.iter().map(|code| StatusCode::from_u16(*code).unwrap()).collect();
    Retry { codes, attempts: NonZeroU32::new(attempts).unwrap(), backoff }
}

fn any_attempt() -> impl Strategy<Value = Attempt> {
    prop_oneof![
        select(&[200, 404, 429, 500, 502, 503, 504]).prop_map(Attempt::Status),
        Just(Attempt::ConnectionError),
        Just(Attempt::BackendTimeout),
        Just(Attempt::RequestTimeout),
    ]
}

proptest! {
    #[test]
    fn as_many_attempts_are_made_as_the_oracle_makes(
        codes in subsequence(vec![429, 500, 502, 503, 504], 0..=5),
        attempts in 1..5_usize,
        coming in vec(any_attempt(), 6),
        body_fits in any::<bool>(),
        budget in vec(any::<bool>(), 6),
    ) {
        let of = retry(&codes, u32::try_from(attempts).unwrap(), Duration::ZERO);
        let expected = play(&Policy { codes, attempts }, &coming, body_fits, &budget);
        let mut made = 0;
        let found = loop {
            let outcome = coming[made];
            let judged = match outcome {
                Attempt::Status(code) => Outcome::Response(StatusCode::from_u16(code).unwrap()),
                Attempt::ConnectionError | Attempt::BackendTimeout => Outcome::Lost,
                Attempt::RequestTimeout => Outcome::Final,
            };
            made += 1;
            if !of.wants(judged, u32::try_from(made - 1).unwrap()) || !body_fits {
                break (made, outcome);
            }
            if !budget[made - 1] {
                break (made, Attempt::Status(503));
            }
        };
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_pause_is_never_shorter_than_the_backoff_and_grows(millis in 0..5_000_u64, retries in 0..40_u32, dice in 0.0..=1.0_f64) {
        let backoff = Duration::from_millis(millis);
        let of = retry(&[], 1, backoff);
        let pause = of.pause(retries, dice);
        prop_assert!(pause >= backoff);
        prop_assert!(pause <= backoff.max(Duration::from_secs(1)).mul_f64(1.5) + Duration::from_millis(1));
        prop_assert!(of.pause(retries + 1, dice) >= pause);
        prop_assert!(of.pause(retries, 1.0) >= of.pause(retries, 0.0));
    }
}
