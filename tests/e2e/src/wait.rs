//! Waiting for a condition, never for a time.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How long anything that should happen soon may take on a busy machine with two cores.
pub const SOON: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

/// Polls until `attempt` gives a value.
///
/// # Panics
/// With `what` and the last thing that `attempt` said, when it takes longer than `patience`.
pub fn eventually<T, E: Display>(
    what: &str,
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if Instant::now() > deadline => {
                panic!("{what}: not within {} s: {error}", patience.as_secs_f32())
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Checks all the time that a condition stays true.
///
/// # Panics
/// As soon as it does not hold.
pub fn holds<E: Display>(what: &str, time: Duration, mut check: impl FnMut() -> Result<(), E>) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if let Err(error) = check() {
            panic!("{what}: no longer: {error}");
        }
        std::thread::sleep(POLL);
    }
}
