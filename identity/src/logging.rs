//! Logs: one JSON object per line on the standard error, filtered as `tracing_subscriber::EnvFilter` understands,
//! changeable while the process runs.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Environment variable with the filter, for every process.
pub const FILTER_VARIABLE: &str = "CULVERT_LOG";
/// What is logged when nobody says otherwise.
pub const DEFAULT_FILTER: &str = "info";

/// Why logging could not be set up or changed.
#[derive(Debug, Error)]
pub enum LoggingError {
    #[error("{filter:?} is not a log filter: {detail}")]
    Filter { filter: String, detail: String },
    #[error("logging is set up already")]
    Twice,
    #[error("logging has ended")]
    Ended,
}

/// Changes what is logged. Cheap to clone.
#[derive(Clone)]
pub struct LogControl {
    handle: Arc<reload::Handle<EnvFilter, Registry>>,
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogControl")
    }
}

impl LogControl {
    /// # Errors
    /// When the filter does not parse; the old one stays.
    pub fn set(&self, filter: &str) -> Result<(), LoggingError> {
        self.handle.reload(parse(filter)?).map_err(|_| LoggingError::Ended)
    }

    /// The filter in force.
    pub fn current(&self) -> String {
        self.handle.with_current(ToString::to_string).unwrap_or_default()
    }
}

/// Sets up logging for the process. Call it once, first.
///
/// # Errors
/// When the filter does not parse or logging was set up before.
pub fn init(filter: &str) -> Result<LogControl, LoggingError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(std::io::stderr);
    // Not `try_init`: it would bridge the crate `log`, whose records name source files of the build machine.
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(filter).with(lines))
        .map_err(|_| LoggingError::Twice)?;
    Ok(LogControl { handle: Arc::new(handle) })
}

/// A control without a subscriber behind it.
#[cfg(any(test, feature = "testing"))]
pub fn control_for_tests(filter: &str) -> LogControl {
    let (layer, handle) = reload::Layer::new(EnvFilter::new(filter));
    // The handle works only while its layer lives.
    Box::leak(Box::new(layer));
    LogControl { handle: Arc::new(handle) }
}

fn parse(filter: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::try_new(filter)
        .map_err(|error| LoggingError::Filter { filter: filter.to_owned(), detail: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_changes_while_running_and_a_bad_one_does_not() {
        let control = init("info").unwrap();
        control.set("debug,h2=warn").unwrap();
        assert_eq!(control.current(), "h2=warn,debug");
        assert!(matches!(control.set("a=b=c"), Err(LoggingError::Filter { .. })));
        assert_eq!(control.current(), "h2=warn,debug");
        assert!(matches!(init("info"), Err(LoggingError::Twice)));
        control.set("off").unwrap();
    }
}
