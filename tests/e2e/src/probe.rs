//! One small exchange, to see whether a pod is reached and how.

use crate::mesh::{Mesh, Pod};
use serde_json::Value;

impl Mesh {
    /// A word to a TCP echo and back, within seconds.
    #[track_caller]
    pub fn send(&self, from: &Pod, target: &str) -> Value {
        self.echo(from, &["tcp", "send", target, "--data", "word", "--timeout", "4000"])
    }

    /// The same with the link of `node1` recorded: whether it arrived, and whether it was readable.
    #[track_caller]
    pub fn on_the_link(&self, from: &Pod, target: &str) -> (bool, bool) {
        let token = format!("token-{:032x}", rand::random::<u128>());
        let recording = self.record("node1");
        let report = self.echo(from, &["tcp", "send", target, "--data", &token, "--timeout", "4000"]);
        (report["ok"] == true, !recording.finish(&token).token_seen.is_empty())
    }
}
