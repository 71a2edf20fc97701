//! When a request is sent again (`HTTPRouteRetry`, GEP-1731), and after which pause. Pure: the caller counts, waits and throws
//! the dice.

use std::num::NonZeroU32;
use std::time::Duration;

use http::StatusCode;

/// Of a rule that does not say how often.
pub const DEFAULT_ATTEMPTS: NonZeroU32 = NonZeroU32::new(2).expect("2 is not 0");
/// Of a rule that does not say how long to wait.
pub const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);
/// The pause doubles up to this, or stays as it is where the rule asks for more.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a rule says of requests that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Statuses of responses that are not passed on while there are attempts left.
    pub codes: Vec<StatusCode>,
    /// How often a request is sent again, at most.
    pub attempts: NonZeroU32,
    /// The least time between two attempts.
    pub backoff: Duration,
}

/// What came of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The head of a response.
    Response(StatusCode),
    /// The connection was refused or lost before a response, or the attempt's own time was up.
    Lost,
    /// Anything that would come of the next attempt too, and the end of the whole request's time.
    Final,
}

impl Retry {
    /// Whether the outcome calls for another attempt after so many that were made again.
    pub fn wants(&self, outcome: Outcome, retries: u32) -> bool {
        let is_retryable = match outcome {
            Outcome::Response(status) => self.codes.contains(&status),
            Outcome::Lost => true,
            Outcome::Final => false,
        };
        is_retryable && retries < self.attempts.get()
    }

    /// How long to wait before the attempt that follows so many that were made again: never less than the backoff, twice as
    /// long each time, and up to half of it more, by `dice` from 0 to 1, so that clients do not come back together.
    pub fn pause(&self, retries: u32, dice: f64) -> Duration {
        let doubled = self.backoff.saturating_mul(1_u32.checked_shl(retries).unwrap_or(u32::MAX));
        let pause = doubled.min(LONGEST_PAUSE.max(self.backoff));
        pause.saturating_add(pause.mul_f64(dice.clamp(0.0, 1.0) / 2.0))
    }
}
