//! Connections that a TCPRoute or TLSRoute takes: which rule, which backend by weight, and then an endpoint of it.

use std::sync::Arc;

use culvert_routing::model::Action;
use culvert_routing::{CompiledRule, RequestView};

use super::protocol::Declared;
use super::{Connected, Outbound, Refusal};
use crate::http::route::backend_service;
use crate::reason::Reason;
use crate::state::model::{Service, ServiceKey};
use crate::state::{RouteGroup, Snapshot};
use crate::telemetry::{Failure, RoutedConnection};
use crate::tunnel::early::EarlyData;
use crate::worker::socket::CarriedSocket;

/// The rule that takes a connection whose TLS asks for a server name, or that is not looked into. `culvert explain` asks it, too.
///
/// # Errors
/// `RouteNotFound` when routes apply and none of them is for the name; `RouteUnsupported` when one of the routes could not
/// be read, or the rule asks for what this version cannot do.
pub fn select<'t>(
    group: &'t RouteGroup,
    server_name: Option<&str>,
) -> Result<&'t Arc<CompiledRule>, Failure> {
    let table = match group {
        RouteGroup::Table(table) => table,
        RouteGroup::Unusable(_, why) => {
            return Err(Failure::new(Reason::RouteUnsupported, format!("a route of this port: {why}")));
        }
    };
    let selected = table.select(&RequestView::connection(server_name)).ok_or_else(|| {
        let asked = server_name.map_or("no server name".to_owned(), |name| format!("server name {name:?}"));
        Failure::new(Reason::RouteNotFound, format!("no route is for {asked}"))
    })?;
    Ok(selected.rule)
}

/// The rule's next backend by weight.
///
/// # Errors
/// As in a route for requests: `RouteUnsupported`, `NoBackend` or `InvalidBackend`.
pub fn pick(rule: &CompiledRule, snapshot: &Snapshot) -> Result<(Arc<Service>, u16), Failure> {
    if let Action::Refuse(why) = rule.action() {
        return Err(Failure::new(Reason::RouteUnsupported, why));
    }
    let Some((_, backend)) = rule.pick_backend() else {
        return Err(Failure::new(Reason::NoBackend, "the rule has no backend of a weight above 0"));
    };
    backend_service(snapshot, &backend.target)
}

impl Outbound {
    /// An endpoint for all bytes of a connection to a Service's port, as its routes about connections say.
    pub(super) async fn connect_bytes(
        &self,
        client: &CarriedSocket,
        declared: Declared,
        service: &Arc<Service>,
        snapshot: &Snapshot,
    ) -> Result<Connected, Refusal> {
        let port = self.destination.port();
        let server_name = match declared {
            Declared::TlsRoute => self.server_name(client).await?,
            Declared::Route | Declared::TcpRoute | Declared::Opaque | Declared::Http | Declared::Nothing => {
                None
            }
        };
        let routes = snapshot.routes(&service.key, port);
        let group = routes.and_then(|routes| routes.for_clients_in(&self.source.namespace));
        let early = EarlyData::of(client, &self.pod.pod.limits);
        let Some(group) = group else {
            return self.connect_to_service(service, port, snapshot, &early).await;
        };
        let mut routed =
            RoutedConnection { service: service.key.clone(), server_name, rule: None, backend: None };
        let result = self.connect_routed(group, &mut routed, snapshot, &early).await;
        let routed = Some(Arc::new(routed));
        match result {
            Ok(mut connected) => {
                connected.meta.routed = routed;
                Ok(connected)
            }
            Err(mut refusal) => {
                refusal.meta.routed = routed;
                Err(refusal)
            }
        }
    }

    async fn connect_routed(
        &self,
        group: &RouteGroup,
        routed: &mut RoutedConnection,
        snapshot: &Snapshot,
        early: &EarlyData<'_>,
    ) -> Result<Connected, Refusal> {
        let refusal = |failure: Failure| Refusal { meta: Box::new(self.meta()), failure };
        let rule = select(group, routed.server_name.as_deref()).map_err(refusal)?;
        routed.rule = Some(rule.clone());
        let (backend, port) = pick(rule, snapshot).map_err(refusal)?;
        routed.backend = Some((ServiceKey::clone(&backend.key), port));
        self.connect_to_service(&backend, port, snapshot, early).await
    }
}
