//! Connections to the pod: through a tunnel or in plaintext, checked, and carried to the application from the
//! client's own address.

pub mod grpc_probe;
pub mod hbone;
pub mod http_probe;
pub mod node_addresses;
pub mod plaintext;
mod probe;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use culvert_identity::Identity;
use tokio::time::Instant;

use crate::intercept::{application_socket, is_port_taken, source_ports};
use crate::limits::ConnectionLimitReached;
use crate::pods::Pod;
use crate::reason::Reason;
use crate::state::model::{Interception, Timeouts, Workload};
use crate::telemetry::{ConnectionMeta, Failure, Reporter, Security, WhyPlaintext};
use crate::tunnel::server::Refused;
use crate::worker::Context;
use crate::worker::pod::PodHere;
use crate::worker::socket::{CarriedSocket, connect};

/// Hold while the pod's own settings are not known.
const DEFAULT_TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(5),
    tls_handshake: Duration::from_secs(5),
    tunnel_handshake: Duration::from_secs(5),
    unknown_destination: Duration::from_secs(1),
    half_closed_idle: Duration::from_secs(300),
    drain: Duration::from_secs(30),
    request_head: Duration::from_secs(10),
    body_idle: Duration::from_secs(60),
    connection_idle: Duration::from_secs(3600),
};

/// The timeouts in force for a workload of this node.
pub fn timeouts(workload: &Workload) -> Timeouts {
    workload.own.as_ref().map_or(DEFAULT_TIMEOUTS, |own| own.settings.timeouts)
}

fn is_proxy_port(port: u16, i: &Interception) -> bool {
    [i.outbound_port, i.inbound_port, i.hbone_port].contains(&port)
}

/// Connects to the application under the client's address. Never under another: who the client is matters to it.
async fn connect_application(
    pod: &Pod,
    client: IpAddr,
    application: SocketAddr,
    after: Duration,
) -> Result<CarriedSocket, Failure> {
    let deadline = Instant::now() + after;
    let refused = |error| {
        Failure::new(Reason::Connect, format!("connecting to the application on {application}: {error}"))
    };
    for port in source_ports() {
        let address = SocketAddr::new(client, port);
        let socket = match application_socket(&pod.netns, address, &pod.interception) {
            Ok(socket) => socket,
            Err(error) if is_port_taken(&error) => continue,
            Err(error) => {
                let message = format!("no socket in the pod's namespace under address {client}: {error}");
                return Err(Failure::new(Reason::Local, message));
            }
        };
        match connect(socket, application, deadline).await {
            Err(error) if is_port_taken(&error) => {}
            connected => return connected.map(CarriedSocket::new).map_err(refused),
        }
    }
    let message = format!("no source port is free for another connection from {client} to {application}");
    Err(Failure::new(Reason::Local, message))
}

/// Who is where, for one inbound connection.
struct Parties {
    client: SocketAddr,
    /// Proven.
    identity: Option<Identity>,
    destination: SocketAddr,
    /// Where the tunnel arrived.
    hbone: Option<SocketAddr>,
    security: Security,
}

fn meta(context: &Context, own: Arc<Workload>, parties: Parties) -> ConnectionMeta {
    let Parties { client, identity, destination, hbone, security } = parties;
    let source = context.shared.snapshots.load().workload_by_address(client.ip()).cloned();
    // An address does not name a workload against what was proven.
    let source = source.filter(|source| identity.is_none() || source.identity == identity);
    ConnectionMeta {
        reporter: Reporter::Destination,
        source,
        source_addr: client,
        source_identity: identity,
        destination_identity: own.identity.clone(),
        destination: Some(own),
        destination_addr: destination,
        hbone_addr: hbone,
        service: None,
        routed: None,
        security,
    }
}

/// Accounts for a connection that the workload's limit leaves no place for.
pub fn refuse_over_limit(
    context: &Context,
    pod: &PodHere,
    socket: &CarriedSocket,
    client: SocketAddr,
    limit: ConnectionLimitReached,
) {
    let Ok(destination) = socket.original_destination() else { return };
    let security = Security::Plaintext(WhyPlaintext::SourceOutsideMesh);
    let parties = Parties { client, identity: None, destination, hbone: None, security };
    let meta = meta(context, pod.pod.workload.load_full(), parties);
    context.shared.telemetry.refused(meta, Reason::WorkloadLimit, &limit);
}

/// Accounts for a connection to 15008 that did not become a tunnel.
pub(crate) fn refuse_tunnel(
    context: &Context,
    pod: &PodHere,
    client: SocketAddr,
    local: SocketAddr,
    refused: &Refused,
) {
    let security = Security::Plaintext(WhyPlaintext::SourceOutsideMesh);
    let parties = Parties { client, identity: None, destination: local, hbone: Some(local), security };
    let meta = meta(context, pod.pod.workload.load_full(), parties);
    context.shared.telemetry.refused(meta, refused.reason(), refused);
}
