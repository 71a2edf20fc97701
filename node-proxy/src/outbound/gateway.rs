//! Connections from outside to a port of a Gateway. They are accepted in the namespace of one of the Gateway's pods, and
//! their requests go on as that pod's own: under its identity, from its address.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::look::Seen;
use super::protocol::{self, Declared, Treatment};
use super::{Outbound, Refusal, Treated};
use crate::http::Parent;
use crate::limits::ConnectionLimitReached;
use crate::reason::Reason;
use crate::telemetry::ConnectionMeta;
use crate::worker::Context;
use crate::worker::pod::PodHere;
use crate::worker::socket::CarriedSocket;

/// A port that is open in a pod of a Gateway.
#[derive(Clone, Debug)]
pub struct GatewayPort {
    /// `namespace/name`.
    pub gateway: Arc<str>,
    /// From then on connections take no new requests; what is left of them at the workload's drain deadline is cut, unless it
    /// is the process that drains.
    pub closed: CancellationToken,
}

/// Serves a connection until it ends.
pub async fn serve(
    context: Rc<Context>,
    pod: Rc<PodHere>,
    socket: CarriedSocket,
    client: SocketAddr,
    port: GatewayPort,
) {
    let GatewayPort { gateway, closed } = port;
    let cut = pod.cancel.child_token();
    let drained = closed.clone();
    let Some(outbound) = Outbound::new(context, pod, &socket, client, drained, cut.clone()) else { return };
    let drain = outbound.timeouts().drain;
    let process_drains = outbound.pod.drain.clone();
    let mut serving = Box::pin(async move {
        let _carrying = outbound.pod.state.carry();
        let treating = outbound.take_requests(&socket, gateway);
        let treated = outbound.unless_given_up(&socket, treating).await;
        outbound.go_on(socket, treated.map_err(at_edge)).await;
    });
    tokio::select! {
        () = &mut serving => return,
        () = closed.cancelled() => {}
    }
    // The process has a deadline of its own.
    if process_drains.is_cancelled() {
        return serving.await;
    }
    if tokio::time::timeout(drain, &mut serving).await.is_err() {
        // Said before what is under way is dropped.
        cut.cancel();
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
    let meta = super::unknown(context, pod, pod.pod.workload.load_full(), client, destination);
    let meta = ConnectionMeta { destination: None, ..meta };
    context.shared.telemetry.refused(meta, Reason::WorkloadLimit, &limit);
}

/// The pod is where such connections start, not where they go.
fn at_edge(mut refusal: Refusal) -> Refusal {
    refusal.meta.destination = None;
    refusal
}

impl Outbound {
    /// As the row of a port with routes in the table of [`protocol`]: HTTP/1 or HTTP/2, or nothing.
    async fn take_requests(&self, client: &CarriedSocket, gateway: Arc<str>) -> Result<Treated, Refusal> {
        let seen = self.look(client, Some(self.timeouts().request_head)).await?;
        let first = match seen {
            Seen::Closed => return Ok(Treated::Over),
            Seen::First(first) => first,
        };
        let reason = match protocol::treat(Declared::Route, first) {
            Treatment::Requests(version) => return Ok(Treated::Requests(Parent::Gateway(gateway), version)),
            Treatment::Refuse(reason) => reason,
            Treatment::Bytes | Treatment::Wait => Reason::ProtocolMismatch,
        };
        let port = self.destination.port();
        Err(self.not_carried(reason, format_args!("port {port} of Gateway {gateway} is for HTTP"), "HTTP"))
    }
}
