//! The root keys: made, kept, replaced, and used to sign.

mod issuing;
mod keeper;
mod provided;
mod secret;
mod shared;
mod state;
mod store;

use std::time::{Duration, SystemTime};

pub use issuing::{Issuing, RootSummary, SignError, Signed};
pub use keeper::{Keeper, KeeperError, Timing};
pub use provided::{Provided, ProvidedError};
pub use secret::{SecretError, SecretStore};
pub use shared::SharedKeeper;
pub use state::{RootError, RootPhase};
pub use store::{Store, StoreError, put_next_root};

/// Clocks of peers may be behind by this: certificates are valid from this long before they are signed, and an old
/// root stays in the bundle this much longer than what it signed.
pub const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// Whole seconds since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

#[cfg(test)]
mod tests;
