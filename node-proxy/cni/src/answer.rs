//! What the runtime is answered: a result, or an error in the form of the specification.

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

/// Why a call failed. The runtime shows the message in an Event of the pod, so it names who is missing and the remedy.
#[derive(Debug, Error)]
pub enum PluginError {
    #[error("version {0} of the network configuration is not supported")]
    Version(String),
    #[error("{0}")]
    Environment(String),
    #[error("the network configuration does not parse: {0}")]
    Decode(#[from] serde_json::Error),
    #[error("{0}")]
    Configuration(String),
    #[error(transparent)]
    NotYet(Box<NotYet>),
    #[error("the node proxy refused {pod}: {message}")]
    Refused { pod: String, message: String },
    #[error("{0}")]
    Io(String),
}

/// A pod that is wanted in the mesh and cannot be captured yet.
#[derive(Debug, Error)]
#[error(
    "{pod} is wanted in the mesh and must not start outside of it; {component}: {message}; {remedy}.{unasked} \
     To start it without the mesh: label it culvert.dev/mesh=disabled, or the node: `kubectl label node {node} \
     culvert.dev/mesh=released`"
)]
pub struct NotYet {
    pub pod: String,
    pub node: String,
    pub component: String,
    pub message: String,
    pub remedy: String,
    /// Why the pod's labels are not what decided, as a sentence; empty where they did.
    pub unasked: String,
}

impl PluginError {
    /// Specification, "Error": 1 to 99 are its own, from 100 on they are the plugin's.
    fn code(&self) -> u32 {
        match self {
            Self::Version(_) => 1,
            Self::Environment(_) => 4,
            Self::Io(_) => 5,
            Self::Decode(_) => 6,
            Self::Configuration(_) => 7,
            // "Try again later".
            Self::NotYet(_) => 11,
            Self::Refused { .. } => 100,
        }
    }

    /// As it is printed.
    #[must_use]
    pub fn to_json(&self, version: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Printed<'a> {
            cni_version: &'a str,
            code: u32,
            msg: String,
        }
        let printed = Printed { cni_version: version, code: self.code(), msg: format!("culvert: {self}") };
        serde_json::to_string(&printed).unwrap_or_default()
    }
}

/// What a successful call prints, if anything.
#[derive(Debug, PartialEq)]
pub enum Printed {
    Nothing,
    Json(Value),
}
