//! What can be asked of a supervisor, and its answers. One request per connection; what follows it is said there.

use culvert_objects::{Manifest, manifest};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

use crate::sandbox::components::Action;
use crate::sandbox::network::LinkState;

/// A file of manifests as the client read it, so that messages can name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    pub path: PathBuf,
    pub text: String,
}

impl SourceFile {
    /// All files as one manifest, with what is wrong in them.
    #[must_use]
    pub fn parse_all(files: &[Self]) -> Manifest {
        let mut all = Manifest::default();
        files.iter().for_each(|file| all.append(manifest::parse(&file.text, &file.path)));
        all
    }
}

/// Where a command runs or a log is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Pod {
        namespace: String,
        name: String,
        container: Option<String>,
    },
    /// The network namespace of a node, of the control plane or of the fabric.
    Node(String),
    /// `ca`, `controller` or `node-proxy/NODE` (logs only).
    Component(String),
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Ends the sandbox when this connection closes. Answered when the sandbox is up.
    Hold,
    /// The sandbox outlives the connection that held it.
    Release,
    Apply {
        files: Vec<SourceFile>,
    },
    Delete {
        files: Vec<SourceFile>,
    },
    DeleteOne {
        kind: String,
        namespace: Option<String>,
        name: String,
    },
    Get {
        kind: String,
        namespace: Option<String>,
        name: Option<String>,
    },
    /// Every object, with the statuses that the mesh wrote, as a list.
    Objects,
    /// With the share of connections that are not encrypted, if asked for.
    Status {
        plaintext: bool,
    },
    /// Answered when every pod is ready and every labelled one enrolled, or with what is not after so many seconds.
    Wait {
        seconds: u64,
    },
    /// The three streams come along; [`Response::Running`] follows, then [`Response::Exited`]. [`Request::Signal`] may
    /// be sent meanwhile. Closing the connection kills the command.
    Exec {
        place: Place,
        command: Vec<String>,
        environment: Vec<(String, String)>,
        directory: Option<PathBuf>,
    },
    /// A signal by number to the command of an `Exec` on the same connection.
    Signal {
        number: i32,
    },
    /// Bytes follow, then [`Response::Done`]; with `follow` until the connection closes. The last `tail` lines only, if
    /// given.
    Logs {
        place: Place,
        tail: Option<usize>,
        follow: bool,
    },
    /// Bytes follow, a JSON object per line for each request: those in the logs of node proxies, then [`Response::Done`];
    /// with `follow` those that end after [`Response::Running`], until the connection closes.
    Requests {
        follow: bool,
    },
    Link {
        node: String,
        state: LinkState,
    },
    Component {
        name: String,
        action: Action,
    },
    /// Ends the sandbox. Answered when pods and components have ended.
    Down,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Response {
    Done,
    /// For people and for programs.
    Report {
        text: String,
        value: Value,
    },
    Running,
    Exited {
        code: i32,
    },
    /// What, where and the remedy.
    Failed {
        message: String,
    },
}

impl Response {
    /// A failure with that text.
    #[must_use]
    pub fn failed(message: impl ToString) -> Self {
        Self::Failed { message: message.to_string() }
    }
}
