//! What every process does around its work.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Resolves when the process is told to end (SIGTERM or SIGINT). Listen early: until then a signal kills outright.
///
/// # Errors
/// When a handler cannot be installed.
pub fn terminated() -> io::Result<impl Future<Output = &'static str> + Send> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        }
    })
}
