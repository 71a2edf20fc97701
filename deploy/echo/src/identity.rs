//! Who this pod is, as the environment says.

use serde::Serialize;

/// Taken from POD_NAME, POD_NAMESPACE, SERVICE_ACCOUNT and NODE_NAME; empty when unset.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PodIdentity {
    pub(crate) pod: String,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) node: String,
}

impl PodIdentity {
    pub(crate) fn from_env() -> Self {
        let var = |name| std::env::var(name).unwrap_or_default();
        Self {
            pod: Some(var("POD_NAME")).filter(|name| !name.is_empty()).unwrap_or_else(|| var("HOSTNAME")),
            namespace: var("POD_NAMESPACE"),
            service_account: var("SERVICE_ACCOUNT"),
            node: var("NODE_NAME"),
        }
    }
}
