//! Wall-clock time: certificates live by it.

use std::time::SystemTime;

/// Where the time of day comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Clock {
    System,
    /// Moves with tokio's clock, which tests pause and advance.
    #[cfg(test)]
    Simulated {
        origin: SystemTime,
        start: tokio::time::Instant,
    },
}

impl Clock {
    #[cfg(test)]
    pub fn simulated() -> Self {
        Self::Simulated { origin: SystemTime::now(), start: tokio::time::Instant::now() }
    }

    pub fn now(&self) -> SystemTime {
        match self {
            Self::System => SystemTime::now(),
            #[cfg(test)]
            Self::Simulated { origin, start } => *origin + start.elapsed(),
        }
    }
}
