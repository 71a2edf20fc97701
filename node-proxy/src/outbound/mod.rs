//! Connections that the pod's applications open: where were they going, which endpoint, how to reach it, and carry.

pub mod client_hello;
mod connect;
pub mod decide;
pub mod gateway;
mod hello;
mod look;
pub mod protocol;
pub mod routed;
mod undecided;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::copy::{Copy, Direction, Side, socket_error};
use crate::http;
use crate::http::Parent;
use crate::limits::ConnectionLimitReached;
use crate::reason::Reason;
use crate::state::Snapshot;
use crate::state::model::{
    Ejection, Limits, OutboundPolicy, OwnWorkload, Service, ServiceKey, Timeouts, Workload,
};
use crate::telemetry::{ConnectionMeta, Failure, Reporter, Security, WhyPlaintext};
use crate::tunnel::early::EarlyData;
use crate::worker::Context;
use crate::worker::pod::PodHere;
use crate::worker::socket::CarriedSocket;
pub use connect::why_plaintext;
pub(crate) use connect::{Connected, Missed, TRIES, Upstream, is_unreached};
use decide::{Action, Facts, Known};
use look::Seen;
use protocol::{Declared, Dial, First, Treatment, Version};

/// One connection to carry on from the pod: a captured one, or one that a Gateway's pod accepted.
pub(crate) struct Outbound {
    pub context: Rc<Context>,
    pub pod: Rc<PodHere>,
    pub source: Arc<Workload>,
    own: Arc<OwnWorkload>,
    pub client: SocketAddr,
    pub destination: SocketAddr,
    /// From then on it takes no new requests.
    pub drain: CancellationToken,
    /// What is left of it then is cut: at the end of the drain, or with the pod.
    pub cut: CancellationToken,
}

/// Why a connection or a request was refused, and what is known of it.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub meta: Box<ConnectionMeta>,
    pub failure: Failure,
}

/// What becomes of a connection.
enum Treated {
    /// One endpoint for all of it.
    Bytes(Box<Connected>),
    /// An endpoint for each of its requests.
    Requests(Parent, Version),
    /// The client closed before it had said anything.
    Over,
}

/// Serves a captured connection until it ends. Whatever fails, the client sees a reset.
pub async fn serve(context: Rc<Context>, pod: Rc<PodHere>, socket: CarriedSocket, client: SocketAddr) {
    let drain = pod.drain.clone();
    let cut = pod.cancel.clone();
    let Some(outbound) = Outbound::new(context, pod, &socket, client, drain, cut) else { return };
    let _carrying = outbound.pod.state.carry();
    let treated = Box::pin(outbound.unless_given_up(&socket, outbound.treat(&socket))).await;
    outbound.go_on(socket, treated).await;
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
        routed: None,
        security: Security::Plaintext(why),
    }
}

fn bytes(connected: Connected) -> Treated {
    Treated::Bytes(Box::new(connected))
}

/// The Service and port whose routes a client goes past when it calls a pod at its own address and this port.
pub fn routed_elsewhere(
    workload: &Workload,
    port: u16,
    snapshot: &Snapshot,
    client_namespace: &str,
) -> Option<(ServiceKey, u16)> {
    workload.memberships.iter().find_map(|membership| {
        let mut ports = membership.ports.iter().filter(|(_, target)| *target == port);
        let (service_port, _) = ports.find(|(service_port, _)| {
            let routes = snapshot.routes(&membership.service, *service_port);
            routes.is_some_and(|routes| routes.for_clients_in(client_namespace).is_some())
        })?;
        Some((membership.service.clone(), *service_port))
    })
}

impl Outbound {
    /// `None` when the socket is dead, or when the pod's own settings are not known, which is accounted for.
    fn new(
        context: Rc<Context>,
        pod: Rc<PodHere>,
        socket: &CarriedSocket,
        client: SocketAddr,
        drain: CancellationToken,
        cut: CancellationToken,
    ) -> Option<Self> {
        let destination = socket.original_destination().ok()?;
        let source = pod.pod.workload.load_full();
        let Some(own) = source.own.clone() else {
            let meta = unknown(&context, &pod, source, client, destination);
            let message = "the pod's own workload has no settings";
            context.shared.telemetry.refused(meta, Reason::Local, &message);
            return None;
        };
        Some(Self { context, pod, source, own, client, destination, drain, cut })
    }

    /// Serves the connection as was decided.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async fn keeps its arguments twice, as long as a connection is open"
    )]
    fn go_on(self, socket: CarriedSocket, treated: Result<Treated, Refusal>) -> impl Future<Output = ()> {
        async move {
            match treated {
                Ok(Treated::Bytes(connected)) => self.carry(socket, connected).await,
                Ok(Treated::Requests(parent, version)) => {
                    Box::pin(http::serve(self, parent, version, socket)).await;
                }
                Ok(Treated::Over) => socket.finish(),
                Err(Refusal { meta, failure }) => {
                    self.context.shared.telemetry.refused(*meta, failure.reason, &failure.message);
                }
            }
        }
    }

    pub(crate) fn timeouts(&self) -> Timeouts {
        self.own.settings.timeouts
    }

    pub(crate) fn limits(&self) -> Limits {
        self.own.settings.limits
    }

    pub(crate) fn ejection(&self) -> Option<&Ejection> {
        self.own.settings.ejection.as_ref()
    }

    fn policy(&self) -> OutboundPolicy {
        self.own.settings.outbound_policy
    }

    pub(crate) fn meta(&self) -> ConnectionMeta {
        unknown(&self.context, &self.pod, self.source.clone(), self.client, self.destination)
    }

    pub(crate) fn refusal(&self, reason: Reason, message: impl std::fmt::Display) -> Refusal {
        Refusal { meta: Box::new(self.meta()), failure: Failure::new(reason, message) }
    }

    /// Decides and perhaps connects, unless the client gives up first.
    async fn unless_given_up(
        &self,
        client: &CarriedSocket,
        treating: impl Future<Output = Result<Treated, Refusal>>,
    ) -> Result<Treated, Refusal> {
        tokio::select! {
            biased;
            treated = treating => treated,
            error = socket_error(client) => {
                let message = format!("the client gave up before it was connected: {error}");
                Err(self.refusal(Reason::PeerReset, message))
            }
        }
    }

    async fn treat(&self, client: &CarriedSocket) -> Result<Treated, Refusal> {
        let (action, snapshot) = self.decide().await;
        let destination = self.destination;
        match action {
            Action::Balance(service) => self.balance(client, service, &snapshot).await,
            Action::Forward(workload) => {
                let namespace = &self.source.namespace;
                if routed_elsewhere(&workload, destination.port(), &snapshot, namespace).is_some() {
                    self.context.shared.telemetry.past_routes();
                }
                let early = EarlyData::of(client, &self.pod.pod.limits);
                self.connect_to_workload(workload, &early).await.map(bytes)
            }
            Action::PassThrough => self.pass_through().await.map(bytes),
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

    /// As the table in [`protocol`] says.
    async fn balance(
        &self,
        client: &CarriedSocket,
        service: Arc<Service>,
        snapshot: &Snapshot,
    ) -> Result<Treated, Refusal> {
        let port = self.destination.port();
        let (namespace, settings) = (&self.source.namespace, &self.own.settings);
        let declared = Declared::of_port(snapshot, &service, port, namespace, settings);
        let seen = match declared.dial() {
            Dial::WhenAsked => self.look(client, Some(self.timeouts().request_head)).await?,
            Dial::After(patience) => self.look(client, Some(patience)).await?,
            // What is there already decides without a connection that nobody needs.
            Dial::AtOnce if declared == Declared::Nothing => self.look(client, Some(Duration::ZERO)).await?,
            Dial::AtOnce => Seen::First(First::Silence),
        };
        let treatment = match seen {
            Seen::Closed if declared.dial() == Dial::WhenAsked => return Ok(Treated::Over),
            Seen::Closed => Treatment::Bytes,
            Seen::First(first) => protocol::treat(declared, first),
        };
        match treatment {
            Treatment::Requests(version) => Ok(Treated::Requests(Parent::Service(service), version)),
            Treatment::Bytes => {
                let connecting = self.connect_bytes(client, declared, &service, snapshot);
                Box::pin(connecting).await.map(bytes)
            }
            Treatment::Wait => {
                let mut connected =
                    self.connect_to_service(&service, port, snapshot, &EarlyData::none()).await?;
                let seen = tokio::select! {
                    biased;
                    seen = self.look(client, None) => seen?,
                    () = connected.upstream.speaks() => Seen::First(First::Server),
                };
                Ok(match seen {
                    Seen::First(first) => match protocol::treat(declared, first) {
                        // The connection that waited is closed in order: the server saw a client that said nothing.
                        Treatment::Requests(version) => {
                            connected.upstream.close();
                            Treated::Requests(Parent::Service(service), version)
                        }
                        Treatment::Bytes | Treatment::Wait | Treatment::Refuse(_) => bytes(connected),
                    },
                    Seen::Closed => bytes(connected),
                })
            }
            Treatment::Refuse(reason) => {
                let must = format_args!("port {port} of {} has a route for {}", service.key, declared.what());
                Err(self.not_carried(reason, must, declared.what()))
            }
        }
    }

    /// Why a connection that must carry something does not.
    fn not_carried(&self, reason: Reason, must: std::fmt::Arguments<'_>, what: &str) -> Refusal {
        match reason {
            Reason::ProtocolMismatch => {
                self.refusal(reason, format_args!("{must}, and these bytes are not {what}"))
            }
            _ => self.refusal(reason, format_args!("no {what} within {:?}", self.timeouts().request_head)),
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

    async fn carry(&self, socket: CarriedSocket, connected: Box<Connected>) {
        let Connected { upstream, meta, sent_early, mut in_flight } = *connected;
        let record = self.context.shared.telemetry.open(meta);
        if sent_early > 0 {
            record.received(sent_early as u64);
        }
        let has_answered = Cell::new(false);
        let count = |direction, bytes| match direction {
            Direction::ToServer => record.received(bytes),
            Direction::ToClient => {
                has_answered.set(true);
                record.sent(bytes);
            }
        };
        let copy = Copy::new(&self.pod.pod.limits, self.timeouts().half_closed_idle, &count);
        let result = match upstream {
            Upstream::Tunnel(stream, _lease) => copy.tunnelled(socket, Side::Client, stream).await,
            Upstream::Plain(server) => copy.between(socket, server).await,
        };
        if let Some(in_flight) = &mut in_flight {
            match &result {
                // A server that resets what it has answered may do so on purpose.
                Err(error) if error.is_servers() && !has_answered.get() => in_flight.broken(),
                Err(_) if !has_answered.get() => {}
                Ok(()) | Err(_) => in_flight.completed(),
            }
        }
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
