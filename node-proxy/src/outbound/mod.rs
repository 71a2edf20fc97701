//! Connections that the pod's applications open: where were they going, which endpoint, how to reach it, and carry.

mod connect;
pub mod decide;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use crate::copy::{Copy, Direction, Side, socket_error};
use crate::limits::ConnectionLimitReached;
use crate::reason::Reason;
use crate::state::Snapshot;
use crate::state::model::{OutboundPolicy, OwnWorkload, Timeouts, Workload};
use crate::telemetry::{ConnectionMeta, Failure, Reporter, Security, WhyPlaintext};
use crate::worker::Context;
use crate::worker::pod::PodHere;
use crate::worker::socket::CarriedSocket;
use connect::{Connected, Upstream};
use decide::{Action, Facts, Known};

/// One captured connection.
struct Outbound {
    context: Rc<Context>,
    pod: Rc<PodHere>,
    source: Arc<Workload>,
    own: Arc<OwnWorkload>,
    client: SocketAddr,
    destination: SocketAddr,
}

/// Why a connection was refused, and what is known of it.
struct Refusal {
    meta: Box<ConnectionMeta>,
    failure: Failure,
}

/// Serves a captured connection until it ends. Whatever fails, the client sees a reset.
pub async fn serve(context: Rc<Context>, pod: Rc<PodHere>, socket: CarriedSocket, client: SocketAddr) {
    let Ok(destination) = socket.original_destination() else { return };
    let source = pod.pod.workload.load_full();
    let Some(own) = source.own.clone() else {
        let meta = unknown(&context, &pod, source, client, destination);
        return context.shared.telemetry.refused(
            meta,
            Reason::Local,
            &"the pod's own workload has no settings",
        );
    };
    let outbound = Outbound { context, pod, source, own, client, destination };
    let _carrying = outbound.pod.state.carry();
    match Box::pin(outbound.connect_for(&socket)).await {
        Ok(connected) => outbound.carry(socket, connected).await,
        Err(Refusal { meta, failure }) => {
            outbound.context.shared.telemetry.refused(*meta, failure.reason, &failure.message);
        }
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
    let meta = unknown(context, pod, pod.pod.workload.load_full(), client, destination);
    context.shared.telemetry.refused(meta, Reason::WorkloadLimit, &limit);
}

/// What is known before anything is decided.
fn unknown(
    context: &Context,
    pod: &PodHere,
    source: Arc<Workload>,
    client: SocketAddr,
    destination: SocketAddr,
) -> ConnectionMeta {
    let known = Known::of(&context.shared.snapshots.load(), destination.ip());
    let (workload, service, why) = match known {
        Known::Service(service) => (None, Some(service), WhyPlaintext::NothingSent),
        Known::Workload(workload) => (Some(workload), None, WhyPlaintext::NothingSent),
        Known::ClusterRange => (None, None, WhyPlaintext::NothingSent),
        Known::Outside => (None, None, WhyPlaintext::DestinationOutsideMesh),
    };
    debug_assert_eq!(pod.pod.uid, source.uid);
    ConnectionMeta {
        reporter: Reporter::Source,
        source_identity: source.identity.clone(),
        source: Some(source),
        source_addr: client,
        destination: workload,
        destination_addr: destination,
        hbone_addr: None,
        destination_identity: None,
        service,
        security: Security::Plaintext(why),
    }
}

impl Outbound {
    fn timeouts(&self) -> Timeouts {
        self.own.settings.timeouts
    }

    fn policy(&self) -> OutboundPolicy {
        self.own.settings.outbound_policy
    }

    fn meta(&self) -> ConnectionMeta {
        unknown(&self.context, &self.pod, self.source.clone(), self.client, self.destination)
    }

    fn refusal(&self, reason: Reason, message: impl std::fmt::Display) -> Refusal {
        Refusal { meta: Box::new(self.meta()), failure: Failure::new(reason, message) }
    }

    /// Connects, unless the client gives up first.
    async fn connect_for(&self, client: &CarriedSocket) -> Result<Connected, Refusal> {
        tokio::select! {
            biased;
            connected = self.connect() => connected,
            error = socket_error(client) => {
                let message = format!("the client gave up before it was connected: {error}");
                Err(self.refusal(Reason::PeerReset, message))
            }
        }
    }

    async fn connect(&self) -> Result<Connected, Refusal> {
        let (action, snapshot) = self.decide().await;
        let destination = self.destination;
        match action {
            Action::Balance(service) => self.connect_to_service(&service, &snapshot).await,
            Action::Forward(workload) => self.connect_to_workload(workload).await,
            Action::PassThrough => self.pass_through().await,
            Action::Hold => {
                let message = format!(
                    "{} is in the cluster's ranges but neither a workload's nor a Service's",
                    destination.ip()
                );
                Err(self.refusal(Reason::UnknownDestination, message))
            }
            Action::Refuse(reason @ Reason::NoServicePort) => {
                Err(self.refusal(reason, format!("the Service does not have port {}", destination.port())))
            }
            Action::Refuse(reason @ Reason::OutboundPolicy) => {
                Err(self.refusal(reason, format!("registry-only refuses {destination}")))
            }
            Action::Refuse(reason) => Err(self.refusal(reason, format!("{destination} is refused"))),
        }
    }

    /// Decides on the snapshot in force; while the address is unknown and may become known, on those that follow.
    async fn decide(&self) -> (Action, Arc<Snapshot>) {
        let facts = Facts {
            destination: self.destination,
            own_addresses: &self.pod.pod.addresses,
            interception: &self.pod.pod.interception,
            policy: self.policy(),
        };
        let decide_now = || {
            let snapshot = self.context.shared.snapshots.load_full();
            (decide::decide(Known::of(&snapshot, self.destination.ip()), facts), snapshot)
        };
        let decided = decide_now();
        if !matches!(decided.0, Action::Hold) {
            return decided;
        }
        let deadline = Instant::now() + self.timeouts().unknown_destination;
        // Subscribed before the address is looked up again, so that no change is missed.
        let mut changed = self.context.shared.snapshots.changed();
        loop {
            let decided = decide_now();
            if !matches!(decided.0, Action::Hold) {
                return decided;
            }
            match tokio::time::timeout_at(deadline, changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return decided,
            }
        }
    }

    async fn carry(&self, socket: CarriedSocket, connected: Connected) {
        let Connected { upstream, meta, in_flight: _in_flight } = connected;
        let record = self.context.shared.telemetry.open(meta);
        let count = |direction, bytes| match direction {
            Direction::ToServer => record.received(bytes),
            Direction::ToClient => record.sent(bytes),
        };
        let copy = Copy::new(&self.pod.pod.limits, self.timeouts().half_closed_idle, &count);
        let result = match upstream {
            Upstream::Tunnel(stream, _lease) => copy.tunnelled(socket, Side::Client, stream).await,
            Upstream::Plain(server) => copy.between(socket, server).await,
        };
        record.close(result.map_err(|error| Failure::new(error.reason(), error)));
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use crate::state::model::Interception;

    pub fn interception() -> Interception {
        Interception {
            mark_mask: 0xfff,
            proxy_mark: 0x539,
            outbound_mark: 0x111,
            reply_mark: 0x112,
            inbound_mark: 0x113,
            route_table: 100,
            rule_priority: 32764,
            outbound_port: 15001,
            inbound_port: 15006,
            hbone_port: 15008,
        }
    }
}
