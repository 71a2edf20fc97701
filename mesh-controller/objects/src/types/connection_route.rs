//! The rule of a TCPRoute or TLSRoute.

use serde::{Deserialize, Serialize};

use super::route::{BackendRef, Unknown};

/// One of `spec.rules`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionRouteRule {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
    #[serde(flatten)]
    pub rest: Unknown,
}
