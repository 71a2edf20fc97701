//! `HTTPRouteRetry`, played out attempt by attempt.

/// What each attempt would come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    Status(u16),
    /// "connection errors (disconnect, reset, timeout, TCP failure)".
    ConnectionError,
    /// "reach the configured BackendRequest timeout duration without a response".
    BackendTimeout,
    /// "If a Request timeout is configured [...] the entire duration MUST not exceed" it.
    RequestTimeout,
}

#[derive(Clone, Debug)]
pub struct Policy {
    pub codes: Vec<u16>,
    /// "the maximum number of times an individual request [...] should be retried".
    pub attempts: usize,
}

/// How many attempts are made of those that would come, and how the last one made ended. `body_fits` is *ours*: a body of more than
/// 64 KiB is not kept. `budget` says of each retry whether the budget has room for it: where it has not, "additional retries to
/// the backend MUST return a 503".
pub fn play(policy: &Policy, coming: &[Attempt], body_fits: bool, budget: &[bool]) -> (usize, Attempt) {
    let mut made = 0;
    loop {
        let outcome = coming[made];
        made += 1;
        let retryable = match outcome {
            Attempt::Status(code) => policy.codes.contains(&code),
            Attempt::ConnectionError | Attempt::BackendTimeout => true,
            Attempt::RequestTimeout => false,
        };
        if !retryable || made > policy.attempts || !body_fits {
            return (made, outcome);
        }
        if !budget[made - 1] {
            return (made, Attempt::Status(503));
        }
    }
}
