//! What routes decide about a request: which rule takes it, and which Service its backend is. Pure; `culvert explain` asks
//! the same functions.

use std::sync::Arc;

use culvert_routing::model::Target;
use culvert_routing::{RequestView, Selected};
use http::Version as HttpVersion;

use crate::outbound::protocol::Version;
use crate::reason::Reason;
use crate::state::model::{AppProtocol, Listener, Service};
use crate::state::{RouteGroup, Snapshot};
use crate::telemetry::Failure;

/// The rule that takes the request; `None` when no route applies to the client.
///
/// # Errors
/// `RouteNotFound` when routes apply and none of their rules matches; `RouteUnsupported` when one of the routes could not
/// be read.
pub fn select<'t>(
    group: Option<&'t RouteGroup>,
    request: &RequestView<'_>,
) -> Result<Option<Selected<'t>>, Failure> {
    match group {
        None => Ok(None),
        Some(RouteGroup::Unusable(_, why)) => {
            Err(Failure::new(Reason::RouteUnsupported, format!("a route of this port: {why}")))
        }
        Some(RouteGroup::Table(table)) => match table.select(request) {
            Some(selected) => Ok(Some(selected)),
            None => {
                let message = format!("no rule matches {} {}", request.method, request.path);
                Err(Failure::new(Reason::RouteNotFound, message))
            }
        },
    }
}

/// The listener of a Gateway's port that takes requests for a host (lower case, without port and trailing dot).
///
/// # Errors
/// `RouteNotFound` when none does.
pub fn listener<'s>(
    snapshot: &'s Snapshot,
    gateway: &str,
    port: u16,
    host: &str,
) -> Result<&'s Arc<Listener>, Failure> {
    let listener = snapshot.gateway(gateway).and_then(|gateway| gateway.select(port, host));
    listener.ok_or_else(|| {
        let message = format!("no listener of Gateway {gateway} takes {host:?} on port {port}");
        Failure::new(Reason::RouteNotFound, message)
    })
}

/// The rule of a listener's routes that takes the request. There is no other listener to fall back to, and no Service whose
/// endpoints would be meant.
///
/// # Errors
/// As [`select`]; also `RouteNotFound` when the listener has no routes.
pub fn select_at<'s>(
    snapshot: &'s Snapshot,
    listener: &Listener,
    request: &RequestView<'_>,
) -> Result<Selected<'s>, Failure> {
    let selected = select(snapshot.listener_routes(&listener.name), request)?;
    selected.ok_or_else(|| {
        Failure::new(Reason::RouteNotFound, format!("listener {} has no routes", listener.name))
    })
}

/// The Service that a backend or a mirror names, as it is now, and its port.
///
/// # Errors
/// `InvalidBackend` when the reference cannot be followed, or there is no such Service or port.
pub fn backend_service(snapshot: &Snapshot, target: &Target) -> Result<(Arc<Service>, u16), Failure> {
    let (namespace, name, port) = match target {
        Target::Service { namespace, name, port } => (namespace, name, *port),
        Target::Invalid(why) => return Err(Failure::new(Reason::InvalidBackend, why)),
    };
    let service = snapshot.service_named(namespace, name);
    let known = service.filter(|service| service.ports.iter().any(|known| known.port == port));
    match known {
        Some(service) => Ok((service.clone(), port)),
        None => Err(Failure::new(
            Reason::InvalidBackend,
            format!("there is no {namespace}/{name} with port {port}"),
        )),
    }
}

/// What an endpoint of the port is spoken to in: what the Service declares, else what the client speaks.
pub fn endpoint_version(service: &Service, port: u16, client: Version) -> Version {
    let declared = service.ports.iter().find(|known| known.port == port).map(|known| known.app_protocol);
    match declared {
        Some(AppProtocol::Http2 | AppProtocol::Grpc) => Version::Http2,
        _ => client,
    }
}

/// The same for a request that came.
pub fn version_towards(service: &Service, port: u16, client: HttpVersion) -> Version {
    let client = match client {
        HttpVersion::HTTP_2 => Version::Http2,
        _ => Version::Http1,
    };
    endpoint_version(service, port, client)
}
