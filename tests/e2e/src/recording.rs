//! What was on an interface while something happened.

use crate::session::Session;
use culvert_cli::capture::{Summary, pcap};
use std::path::PathBuf;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// Runs from its start until [`Recording::finish`].
pub struct Recording {
    session: Session,
    path: PathBuf,
}

impl Recording {
    pub(crate) fn start(session: Session, path: PathBuf) -> Self {
        assert_eq!(session.next(PATIENCE)["event"], "capturing");
        Self { session, path }
    }

    /// Ends it and looks at what is in it.
    ///
    /// # Panics
    /// When it did not end well, or its file cannot be read.
    #[track_caller]
    pub fn finish(self, token: &str) -> Summary {
        self.session.end(PATIENCE);
        let frames =
            pcap::read(&self.path).unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
        Summary::of(&frames, token)
    }
}
