//! Reaches an endpoint: through a tunnel if it speaks HBONE, in plaintext only if it does not. What cannot be reached
//! is tried elsewhere, as long as no byte can have been delivered.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Outbound, Refusal};
use crate::balance::{Candidate, Carried, Family, InFlight, PickError, Wanted};
use crate::copy::TunnelStream;
use crate::identity::ActiveCertificate;
use crate::intercept::outbound_socket;
use crate::reason::Reason;
use crate::state::Snapshot;
use crate::state::model::{Enrolment, Service, Timeouts, TunnelProtocol, Workload, WorkloadUid};
use crate::telemetry::{ConnectionMeta, Direction, Failure, Outcome, Reporter, Security, WhyPlaintext};
use crate::tunnel::dial::{Opened, Target, dial};
use crate::tunnel::early::EarlyData;
use crate::tunnel::pool::{Key, Lease, may_try_new_tunnel};
use crate::tunnel::{TunnelError, headers};
use crate::worker::Context;
use crate::worker::pod::PodHere;
use crate::worker::socket::{CarriedSocket, connect};

/// Endpoints tried for one connection, at most.
pub(crate) const TRIES: usize = 3;

/// A way to the server.
pub(crate) enum Upstream {
    Tunnel(TunnelStream, Lease),
    Plain(CarriedSocket),
}

impl Upstream {
    /// Ends a connection on which nothing was sent.
    pub fn close(self) {
        match self {
            Self::Tunnel(mut stream, _) => {
                // Fails only for a stream that is gone already.
                let _ = stream.send.send_data(bytes::Bytes::new(), true);
            }
            Self::Plain(socket) => socket.finish(),
        }
    }

    /// Returns when the server has said something, or has closed.
    pub async fn speaks(&mut self) {
        match self {
            Self::Tunnel(stream, _) => stream.speaks().await,
            Self::Plain(socket) => {
                // An error is told again to whoever reads next.
                let _ = socket.readable().await;
            }
        }
    }
}

pub(crate) struct Connected {
    pub upstream: Upstream,
    pub meta: ConnectionMeta,
    /// Bytes of the client that were sent already.
    pub sent_early: usize,
    /// Apart, so that a connection's future stays small.
    pub in_flight: Option<Box<InFlight>>,
}

/// Why an endpoint was not reached, whether another may do better, and whether this one should be avoided for a while.
pub(crate) struct Missed {
    pub refusal: Refusal,
    pub may_try_another: bool,
    pub is_endpoints_fault: bool,
}

/// One attempt to reach one address of one workload.
struct Attempt<'a> {
    workload: &'a Arc<Workload>,
    /// Of the application.
    to: SocketAddr,
    service: Option<&'a Arc<Service>>,
    timeouts: Timeouts,
    deadline: Instant,
    early: &'a EarlyData<'a>,
}

/// Why an attempt failed, whether another endpoint may do better, and whether this one should be avoided for a while.
struct AttemptError {
    failure: Failure,
    may_try_another: bool,
    is_endpoints_fault: bool,
}

impl From<TunnelError> for AttemptError {
    fn from(error: TunnelError) -> Self {
        Self {
            may_try_another: error.may_try_another(),
            is_endpoints_fault: error.is_endpoints_fault(),
            failure: Failure::new(error.reason(), error),
        }
    }
}

impl AttemptError {
    fn plain(to: SocketAddr, error: &io::Error) -> Self {
        let failure = Failure::new(Reason::Connect, format!("connecting to {to}: {error}"));
        Self { failure, may_try_another: true, is_endpoints_fault: true }
    }

    /// It may have delivered what it was told.
    fn told(to: SocketAddr, error: &io::Error) -> Self {
        Self { may_try_another: false, ..Self::plain(to, error) }
    }

    fn undecided(workload: &Workload) -> Self {
        let message = format!("node {} has not said whether it captures {}", workload.node, workload.name);
        Self {
            failure: Failure::new(Reason::UnknownDestination, message),
            may_try_another: true,
            is_endpoints_fault: true,
        }
    }

    fn socket(error: &io::Error) -> Self {
        let failure = Failure::new(Reason::Local, format!("no socket in the pod's namespace: {error}"));
        Self { failure, may_try_another: false, is_endpoints_fault: false }
    }
}

/// Whether what keeps a connection from being made is the endpoint's own fault.
pub(crate) fn is_unreached(reason: Reason) -> bool {
    matches!(reason, Reason::Connect | Reason::TlsHandshake | Reason::PeerIdentity | Reason::Tunnel)
}

fn total(timeouts: Timeouts) -> Duration {
    timeouts.connect + timeouts.tls_handshake + timeouts.tunnel_handshake
}

/// Why bytes to a workload that does not speak HBONE are not protected.
pub fn why_plaintext(source: &Workload, destination: &Workload) -> WhyPlaintext {
    let is_leaving =
        |workload: &Workload| workload.own.as_ref().is_some_and(|own| own.enrolment == Enrolment::Leaving);
    if destination.host_network {
        WhyPlaintext::HostNetwork
    } else if destination.identity.is_none() {
        WhyPlaintext::DestinationOutsideMesh
    } else if is_leaving(destination) || (source.uid == destination.uid && is_leaving(source)) {
        WhyPlaintext::Leaving
    } else {
        WhyPlaintext::DestinationNotEnrolled
    }
}

impl Outbound {
    pub(super) async fn connect_to_service(
        &self,
        service: &Arc<Service>,
        port: u16,
        snapshot: &Snapshot,
        early: &EarlyData<'_>,
    ) -> Result<Connected, Refusal> {
        let wanted = Wanted {
            service,
            port,
            family: Family::of(self.destination.ip()),
            client: self.client.ip(),
            zone: &self.source.zone,
            carried: Carried::Connections,
            ejection: self.ejection(),
        };
        let end = self.connect_deadline();
        let mut tried: Vec<Candidate> = Vec::new();
        let mut last: Option<Refusal> = None;
        while tried.len() < TRIES && Instant::now() < end {
            let candidate =
                match self.context.balancer.pick(snapshot.endpoints(&service.key), &wanted, &tried) {
                    Ok(candidate) => candidate,
                    Err(error) => return Err(last.unwrap_or_else(|| self.not_picked(&error))),
                };
            let mut in_flight = Box::new(candidate.begin());
            let started = Instant::now();
            match self.reach(&candidate, service, end, early).await {
                Ok(connected) => {
                    in_flight.connected(started.elapsed());
                    return Ok(Connected { in_flight: Some(in_flight), ..connected });
                }
                Err(missed) => {
                    if missed.is_endpoints_fault && is_unreached(missed.refusal.failure.reason) {
                        in_flight.unreached();
                    }
                    if !missed.may_try_another {
                        return Err(missed.refusal);
                    }
                    last = Some(missed.refusal);
                }
            }
            tried.push(candidate);
        }
        Err(last.unwrap_or_else(|| self.refusal(Reason::Connect, "no endpoint could be tried in time")))
    }

    /// Until when endpoints are tried for something that begins now.
    pub(crate) fn connect_deadline(&self) -> Instant {
        Instant::now() + total(self.timeouts())
    }

    /// Connects to one endpoint of a Service. One that does not answer leaves time before `end` for another, and is
    /// avoided for a while.
    pub(crate) async fn reach(
        &self,
        candidate: &Candidate,
        service: &Arc<Service>,
        end: Instant,
        early: &EarlyData<'_>,
    ) -> Result<Connected, Missed> {
        let started = Instant::now();
        let workload = self.decided(&candidate.workload, candidate.address).await;
        let attempt = Attempt {
            workload: &workload,
            to: SocketAddr::new(candidate.address, candidate.target_port),
            service: Some(service),
            timeouts: self.timeouts(),
            deadline: end.min(started + total(self.timeouts()) / TRIES as u32),
            early,
        };
        let result = self.attempt(&attempt).await;
        let meta = self.attempt_meta(&attempt);
        match result {
            Ok(upstream) => Ok(Connected { upstream, meta, sent_early: early.length(), in_flight: None }),
            Err(error) => {
                if error.is_endpoints_fault {
                    candidate.load.failed();
                }
                let AttemptError { failure, may_try_another, is_endpoints_fault } = error;
                let refusal = Refusal { meta: Box::new(meta), failure };
                Err(Missed { refusal, may_try_another, is_endpoints_fault })
            }
        }
    }

    pub(super) async fn connect_to_workload(
        &self,
        workload: Arc<Workload>,
        early: &EarlyData<'_>,
    ) -> Result<Connected, Refusal> {
        let timeouts = self.timeouts();
        let workload = self.decided(&workload, self.destination.ip()).await;
        let attempt = Attempt {
            workload: &workload,
            to: self.destination,
            service: None,
            timeouts,
            deadline: Instant::now() + total(timeouts),
            early,
        };
        match self.attempt(&attempt).await {
            Ok(upstream) => {
                let meta = self.attempt_meta(&attempt);
                Ok(Connected { upstream, meta, sent_early: early.length(), in_flight: None })
            }
            Err(error) => {
                Err(Refusal { meta: Box::new(self.attempt_meta(&attempt)), failure: error.failure })
            }
        }
    }

    /// To an address outside the mesh, from the pod's own address.
    pub(super) async fn pass_through(&self) -> Result<Connected, Refusal> {
        let deadline = Instant::now() + self.timeouts().connect;
        let server = self.plain(self.destination, deadline, &EarlyData::none()).await;
        match server {
            Ok(upstream) => Ok(Connected { upstream, meta: self.meta(), sent_early: 0, in_flight: None }),
            Err(error) => Err(Refusal { meta: Box::new(self.meta()), failure: error.failure }),
        }
    }

    pub(crate) fn not_picked(&self, error: &PickError) -> Refusal {
        let reason = match error {
            PickError::NoPort { .. } => Reason::NoServicePort,
            PickError::NoEndpoint { .. } | PickError::Exhausted { .. } => Reason::NoEndpoint,
        };
        self.refusal(reason, error)
    }

    fn attempt_meta(&self, attempt: &Attempt<'_>) -> ConnectionMeta {
        let workload = attempt.workload;
        let is_hbone = workload.tunnel == TunnelProtocol::Hbone;
        let hbone_addr = SocketAddr::new(attempt.to.ip(), self.pod.pod.interception.hbone_port);
        ConnectionMeta {
            reporter: Reporter::Source,
            source: Some(self.source.clone()),
            source_addr: self.client,
            source_identity: self.source.identity.clone(),
            destination: Some(workload.clone()),
            destination_addr: attempt.to,
            hbone_addr: is_hbone.then_some(hbone_addr),
            destination_identity: workload.identity.clone().filter(|_| is_hbone),
            service: attempt.service.cloned(),
            routed: None,
            security: match workload.tunnel {
                TunnelProtocol::Hbone => Security::MutualTls,
                TunnelProtocol::Plaintext | TunnelProtocol::Undecided => {
                    Security::Plaintext(why_plaintext(&self.source, workload))
                }
            },
        }
    }

    /// The destination alone decides: one that speaks HBONE is reached by it or not at all.
    async fn attempt(&self, attempt: &Attempt<'_>) -> Result<Upstream, AttemptError> {
        match attempt.workload.tunnel {
            TunnelProtocol::Hbone => Ok(self.tunnel(attempt).await?),
            TunnelProtocol::Undecided => Err(AttemptError::undecided(attempt.workload)),
            TunnelProtocol::Plaintext => {
                let deadline = attempt.deadline.min(Instant::now() + attempt.timeouts.connect);
                self.plain(attempt.to, deadline, attempt.early).await
            }
        }
    }

    async fn plain(
        &self,
        to: SocketAddr,
        deadline: Instant,
        early: &EarlyData<'_>,
    ) -> Result<Upstream, AttemptError> {
        let pod = &self.pod.pod;
        let socket = outbound_socket(&pod.netns, to, &pod.interception)
            .map_err(|error| AttemptError::socket(&error))?;
        let stream = connect(socket, to, deadline).await.map_err(|error| AttemptError::plain(to, &error))?;
        let server = CarriedSocket::new(stream);
        // What another endpoint was told that then refused.
        match tokio::time::timeout_at(deadline, early.say_to(&server)).await {
            Ok(Ok(())) => Ok(Upstream::Plain(server)),
            Ok(Err(error)) => Err(AttemptError::told(to, &error)),
            Err(_) => Err(AttemptError::told(to, &io::ErrorKind::TimedOut.into())),
        }
    }

    async fn tunnel(&self, attempt: &Attempt<'_>) -> Result<Upstream, TunnelError> {
        let address = SocketAddr::new(attempt.to.ip(), self.pod.pod.interception.hbone_port);
        let identity = attempt.workload.identity.clone().ok_or(TunnelError::NoIdentity(address))?;
        let target = Target { address, identity };
        let certificate = self.certificate(attempt).await?;
        match self.stream(attempt, &target, &certificate).await {
            Err(error) if may_try_new_tunnel(&error) => self.stream(attempt, &target, &certificate).await,
            result => result,
        }
    }

    async fn certificate(&self, attempt: &Attempt<'_>) -> Result<Arc<ActiveCertificate>, TunnelError> {
        let certificates = &self.context.shared.certificates;
        let own = self.source.identity.as_ref().ok_or(TunnelError::NoIdentity(self.client))?;
        match certificates.current(own) {
            Some(certificate) => Ok(certificate),
            None => Ok(certificates.acquire(own, attempt.deadline).await?),
        }
    }

    /// Opens a stream of a pooled tunnel. A tunnel that has ended, or announced its end, is not asked again.
    async fn stream(
        &self,
        attempt: &Attempt<'_>,
        target: &Target,
        certificate: &Arc<ActiveCertificate>,
    ) -> Result<Upstream, TunnelError> {
        let key = Key {
            client: self.source.uid.clone(),
            destination: attempt.workload.uid.clone(),
            address: target.address,
            generation: certificate.generation,
        };
        let dial = || {
            let (context, pod) = (self.context.clone(), self.pod.clone());
            let destination = attempt.workload.uid.clone();
            open(context, pod, destination, target.clone(), certificate.clone(), attempt.timeouts)
        };
        let cancel = &self.pod.cancel;
        let lease = self.context.pool.lease(&key, attempt.deadline, cancel, dial).await?;
        self.context.shared.telemetry.pool_stream(lease.carrier);
        let service = attempt.service.map(|service| &**service);
        let request = headers::connect_request(attempt.to, self.client, &self.source, service);
        let left = attempt.deadline.saturating_duration_since(Instant::now());
        let after = attempt.timeouts.tunnel_handshake.min(left);
        match lease.connect(target.address, request, after, attempt.early).await {
            Ok((send, recv)) => {
                let stream = TunnelStream::new(send, recv, lease.window().clone());
                Ok(Upstream::Tunnel(stream, lease))
            }
            Err(error) => {
                if may_try_new_tunnel(&error) {
                    lease.retire();
                }
                Err(error)
            }
        }
    }
}

/// Runs on its own: it goes on for others who wait when this connection is given up.
async fn open(
    context: Rc<Context>,
    pod: Rc<PodHere>,
    destination: WorkloadUid,
    target: Target,
    certificate: Arc<ActiveCertificate>,
    timeouts: Timeouts,
) -> Result<Opened, TunnelError> {
    let telemetry = &context.shared.telemetry;
    let dialled = dial(&pod.pod, &certificate, &target, timeouts).await;
    let outcome = if dialled.is_ok() { Outcome::Success } else { Outcome::Failure };
    telemetry.handshake(Direction::Outbound, outcome);
    let opened = dialled?;
    let open = (telemetry.tunnel_opened(Direction::Outbound), pod.state.tunnel_out(&destination));
    let driver = async move {
        let _open = open;
        opened.driver.await
    };
    Ok(Opened { driver: Box::pin(driver), ..opened })
}
