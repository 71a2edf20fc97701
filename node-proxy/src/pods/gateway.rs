//! The ports of a Gateway in one of its pods: opened as listeners come, closed as they go. Several listeners may share a
//! port, which is one socket then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::captured::Node;
use crate::intercept::{Netns, gateway_listeners};
use crate::state::GatewayListeners;
use crate::state::model::WorkloadUid;
use crate::worker::OpenPort;

/// What became of the ports that were wanted.
#[derive(Debug, Default)]
pub(super) struct GatewayPorts {
    ports: BTreeMap<u16, Port>,
}

#[derive(Debug)]
enum Port {
    Open {
        _open: OpenPort,
    },
    /// Why not; it is tried again.
    Failed(String),
}

impl GatewayPorts {
    /// Opens the ports that are wanted and not open yet.
    pub async fn open(
        &mut self,
        gateway: Option<&GatewayListeners>,
        node: &Node,
        uid: &WorkloadUid,
        netns: &Netns,
    ) {
        let Some(gateway) = gateway else { return };
        for (port, name) in gateway.ports() {
            if matches!(self.ports.get(&port), Some(Port::Open { .. })) {
                continue;
            }
            let inherited = node.inheritance.gateway_port(uid, port).map(Ok);
            let opened = match inherited.unwrap_or_else(|| gateway_listeners(netns, port)) {
                Ok(listeners) => {
                    let opened = node.workers.open_port(uid, name.clone(), listeners).await;
                    opened.map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            match opened {
                Ok(open) => {
                    tracing::info!(workload = %uid, port, gateway = %name, "a port of a Gateway is open");
                    self.ports.insert(port, Port::Open { _open: open });
                }
                Err(error) => self.failed(uid, port, error),
            }
        }
    }

    fn failed(&mut self, uid: &WorkloadUid, port: u16, error: String) {
        if !matches!(self.ports.get(&port), Some(Port::Failed(known)) if *known == error) {
            tracing::warn!(workload = %uid, port, error, "a port of a Gateway cannot be opened; trying again");
        }
        self.ports.insert(port, Port::Failed(error));
    }

    /// Closes the ports that are not wanted any more. Their connections take no new requests, and drain.
    pub fn close_others(&mut self, gateway: Option<&GatewayListeners>) {
        let wanted: BTreeSet<u16> =
            gateway.into_iter().flat_map(GatewayListeners::ports).map(|(port, _)| port).collect();
        self.ports.retain(|port, _| wanted.contains(port));
    }

    /// The ports that clients shall reach the proxy on: those that are wanted, also before they are open, so that clients
    /// wait. What another process of the pod listens on stays its own.
    pub fn steered(&self, gateway: Option<&GatewayListeners>) -> Vec<u16> {
        let wanted = gateway.into_iter().flat_map(GatewayListeners::ports).map(|(port, _)| port);
        wanted.filter(|port| !matches!(self.ports.get(port), Some(Port::Failed(_)))).collect()
    }

    /// Of each listener, why it is not open; nothing is said of those that were not tried yet. `in_force`: the ports that
    /// the rules let clients reach.
    pub fn states(
        &self,
        gateway: Option<&GatewayListeners>,
        in_force: &[u16],
    ) -> BTreeMap<Arc<str>, Option<String>> {
        let state = |port: u16| match self.ports.get(&port)? {
            Port::Failed(why) => Some(Some(why.clone())),
            Port::Open { .. } if in_force.contains(&port) => Some(None),
            Port::Open { .. } => {
                Some(Some("the interception rules do not let clients through to it yet".to_owned()))
            }
        };
        let listeners = gateway.into_iter().flat_map(GatewayListeners::iter);
        listeners.filter_map(|listener| Some((listener.name.clone(), state(listener.port)?))).collect()
    }
}
