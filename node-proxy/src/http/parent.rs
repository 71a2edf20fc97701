//! What the requests of a connection are addressed to, and so whose routes decide about them.

use std::sync::Arc;

use crate::outbound::Outbound;
use crate::state::model::{Service, ServiceKey};
use crate::telemetry::ConnectionMeta;

/// The routes of the two never mix: a request that came in by a Gateway goes to its backend's endpoints, past the routes
/// that the backend has as a Service.
#[derive(Clone, Debug)]
pub enum Parent {
    /// The Service that was called at the connection's port. Without routes its requests go to its endpoints.
    Service(Arc<Service>),
    /// The Gateway (`namespace/name`) whose pod was called at the connection's port; the host of each request says which of
    /// the port's listeners it is for. Without a route there is no answer but 404.
    Gateway(Arc<str>),
}

impl Parent {
    /// The Service that the client dialled.
    pub fn service(&self) -> Option<&ServiceKey> {
        match self {
            Self::Service(service) => Some(&service.key),
            Self::Gateway(_) => None,
        }
    }

    /// What is known of a request that reached no endpoint. A Gateway is where its requests start, not where they go.
    pub(crate) fn meta(&self, outbound: &Outbound) -> ConnectionMeta {
        match self {
            Self::Service(service) => ConnectionMeta { service: Some(service.clone()), ..outbound.meta() },
            Self::Gateway(_) => ConnectionMeta { destination: None, ..outbound.meta() },
        }
    }
}
