//! The new process: asks the one in charge.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use culvert_identity::Identity;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Charge;
use super::connection::{Broken, Connection};
use super::wire::{self, Ask, Kind, Label, MOST_PAGES, PROTOCOL, Tell, WireError};
use crate::identity::{CertificateLease, Certificates};
use crate::intercept::{Listeners, NetnsId};
use crate::state::model::{Interception, WorkloadUid};

/// For each word of the old process: its pods come to rest, and then its files, before some of them.
const WORD: Duration = Duration::from_secs(20);
/// For the first word. Who says nothing hangs, or is no node proxy.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// How often the old process is asked again while certificates are missing.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How often what is missing is said.
const SAY_AGAIN: Duration = Duration::from_secs(15);
/// How long an old process that refuses is asked again: another one may be taking over just now.
const REFUSED: Duration = Duration::from_secs(30);
/// A certificate that the CA has refused this often is not waited for, if the CA gives others.
const REFUSALS: u32 = 3;

/// There is nobody to take over from any more, and this is why.
#[derive(Debug)]
pub struct Lost(pub String);

/// A process in charge that speaks this protocol.
#[derive(Debug)]
pub struct Predecessor {
    path: PathBuf,
}

/// Asks who is in charge. `None` when nobody is, or nobody that could hand over; the log says which.
pub async fn find(path: &Path) -> Option<Predecessor> {
    let predecessor = Predecessor { path: path.to_owned() };
    let begun = Instant::now();
    loop {
        match predecessor.greet().await {
            Ok(_) => return Some(predecessor),
            Err(Broken::Io(error)) if is_nobody(&error) => return None,
            Err(Broken::Refused(reason)) if begun.elapsed() < REFUSED => {
                tracing::info!(reason, "the node proxy in charge does not hand over yet");
                sleep(ASK_AGAIN).await;
            }
            Err(error) => {
                tracing::warn!(%error, "the last node proxy does not hand over; starting without it");
                return None;
            }
        }
    }
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

impl Predecessor {
    async fn greet(&self) -> Result<Connection, Broken> {
        let connection = Connection::open(&self.path)?;
        let hello = Ask::Hello { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() };
        connection.send(&hello, &[], FIRST_WORD).await?;
        match connection.receive(FIRST_WORD).await?.0 {
            Tell::Welcome { version } => {
                tracing::debug!(version, "a node proxy is in charge");
                Ok(connection)
            }
            Tell::Refused { reason } => Err(Broken::Refused(reason)),
            _ => Err(Broken::OutOfTurn),
        }
    }

    /// Gets the certificates that the old process has in force, so that none is missing afterwards. As long as the CA
    /// gives none the old process stays in charge.
    ///
    /// # Errors
    /// When the old process has ended meanwhile or does not answer.
    pub async fn certificates(&self, certificates: &Certificates) -> Result<Vec<CertificateLease>, Lost> {
        let mut leases: HashMap<Identity, CertificateLease> = HashMap::new();
        let mut said: Option<Instant> = None;
        loop {
            let wanted = self.identities().await.map_err(|error| Lost(error.to_string()))?;
            leases.retain(|identity, _| wanted.contains(identity));
            for identity in &wanted {
                leases.entry(identity.clone()).or_insert_with(|| certificates.keep(identity));
            }
            let missing = missing(&wanted, certificates);
            if missing.is_empty() {
                return Ok(leases.into_values().collect());
            }
            if said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
                said = Some(Instant::now());
                tracing::info!(
                    ?missing,
                    "the old node proxy stays in charge until these certificates are here"
                );
            }
            let mut changed = certificates.changed();
            let all_here = async {
                while !self::missing(&wanted, certificates).is_empty() {
                    if changed.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            };
            let _ = timeout(ASK_AGAIN, all_here).await;
        }
    }

    async fn identities(&self) -> Result<Vec<Identity>, Broken> {
        let connection = self.greet().await?;
        connection.send(&Ask::Identities, &[], WORD).await?;
        let mut all = Vec::new();
        for _ in 0..MOST_PAGES {
            match connection.receive(WORD).await?.0 {
                Tell::Identities { identities, more } => {
                    for identity in identities {
                        let parsed: Identity = identity
                            .parse()
                            .map_err(|_| WireError::Parse(format!("{identity:?} is no identity")))?;
                        all.push(parsed);
                    }
                    if !more {
                        return Ok(all);
                    }
                }
                Tell::Refused { reason } => return Err(Broken::Refused(reason)),
                _ => return Err(Broken::OutOfTurn),
            }
        }
        Err(WireError::Pages.into())
    }

    /// Asks for the sockets. The old process is at rest until they are confirmed, or what is returned is dropped.
    ///
    /// # Errors
    /// When the old process does not give them.
    pub async fn take(&self) -> Result<(Taking, Inheritance), Lost> {
        let taken = async {
            let connection = self.greet().await?;
            connection.send(&Ask::Sockets, &[], WORD).await?;
            let inheritance = receive_sockets(&connection).await?;
            Ok::<_, Broken>((Taking { connection }, inheritance))
        };
        taken.await.map_err(|error| Lost(error.to_string()))
    }
}

async fn receive_sockets(connection: &Connection) -> Result<Inheritance, Broken> {
    let mut all = Inheritance::default();
    for _ in 0..MOST_PAGES {
        let (tell, descriptors) = connection.receive(WORD).await?;
        match tell {
            Tell::Sockets { sockets, more } => {
                for (label, descriptor) in wire::join(sockets, descriptors)? {
                    all.add(label, descriptor);
                }
                if !more {
                    return Ok(all);
                }
            }
            Tell::Refused { reason } => return Err(Broken::Refused(reason)),
            _ => return Err(Broken::OutOfTurn),
        }
    }
    Err(WireError::Pages.into())
}

fn missing<'i>(wanted: &'i [Identity], certificates: &Certificates) -> Vec<&'i Identity> {
    let statuses = certificates.statuses();
    let gives = wanted.iter().any(|identity| certificates.current(identity).is_some());
    let is_refused = |identity: &Identity| {
        gives && statuses.iter().any(|status| status.identity == *identity && status.failures >= REFUSALS)
    };
    wanted
        .iter()
        .filter(|identity| certificates.current(identity).is_none() && !is_refused(identity))
        .collect()
}

/// The sockets are held by both processes.
#[derive(Debug)]
pub struct Taking {
    connection: Connection,
}

impl Taking {
    /// Takes over. `gone` is cancelled when the old process has ended.
    ///
    /// # Errors
    /// When the old process goes on after all; nothing that was taken may be used then.
    pub async fn confirm(self, gone: CancellationToken) -> Result<(), Lost> {
        let Taking { connection } = self;
        let lost = |error: Broken| Lost(error.to_string());
        if let Err(error) = connection.send(&Ask::Taken, &[], WORD).await {
            return match error {
                Broken::Io(_) => refusal_or_end(&connection).await.map(|()| gone.cancel()),
                error => Err(lost(error)),
            };
        }
        match connection.receive::<Tell>(WORD).await {
            Ok((Tell::Yours, _)) => {
                tokio::spawn(async move {
                    connection.closed().await;
                    tracing::info!("the last node proxy has ended");
                    gone.cancel();
                });
                Ok(())
            }
            Ok((Tell::Refused { reason }, _)) => Err(Lost(reason)),
            // It has ended, or hangs: what it will hear first is that it has given up.
            Ok(_) | Err(_) => {
                gone.cancel();
                Ok(())
            }
        }
    }
}

/// The old process closed the connection: it said why, or has ended.
async fn refusal_or_end(connection: &Connection) -> Result<(), Lost> {
    match connection.receive::<Tell>(WORD).await {
        Ok((Tell::Refused { reason }, _)) => Err(Lost(reason)),
        _ => Ok(()),
    }
}

/// The sockets of the old process. What nobody asks for stays open until it is forgotten: somebody may wait in it.
#[derive(Debug, Default)]
pub struct Inheritance {
    pods: Mutex<HashMap<WorkloadUid, PodSockets>>,
    pub enrolment: Option<OwnedFd>,
    pub hand_over: Option<OwnedFd>,
    pub admin: Option<(SocketAddr, TcpListener)>,
}

/// What a process comes after.
#[derive(Debug)]
pub struct Succession {
    pub charge: Charge,
    pub inheritance: Inheritance,
    /// Cancelled when the process before has ended.
    pub last_gone: CancellationToken,
}

impl Succession {
    /// Of a process without a predecessor.
    pub fn none() -> Self {
        let last_gone = CancellationToken::new();
        last_gone.cancel();
        Self { charge: Charge::held(), inheritance: Inheritance::default(), last_gone }
    }
}

/// The listening sockets of one pod.
#[derive(Debug)]
pub struct PodSockets {
    netns: NetnsId,
    sockets: Vec<(Kind, u16, TcpListener)>,
}

impl Inheritance {
    fn add(&mut self, label: Label, descriptor: OwnedFd) {
        match label {
            Label::Enrolment => self.enrolment = Some(descriptor),
            Label::HandOver => self.hand_over = Some(descriptor),
            Label::Admin { address } => self.admin = Some((address, descriptor.into())),
            Label::Pod { workload, netns, kind, port, .. } => {
                let uid = WorkloadUid(workload.as_str().into());
                let pods = self.pods.get_mut();
                let pod = pods.entry(uid).or_insert_with(|| PodSockets { netns, sockets: Vec::new() });
                if pod.netns == netns {
                    pod.sockets.push((kind, port, descriptor.into()));
                } else {
                    tracing::error!(
                        workload,
                        "one pod in two network namespaces: some of its sockets are dropped"
                    );
                }
            }
        }
    }

    /// Whether there are sockets of a pod that nobody has asked for.
    pub fn has(&self, uid: &WorkloadUid) -> bool {
        self.pods.lock().contains_key(uid)
    }

    /// The listeners of a pod, once. `None` when they are not all there, or of another namespace or other ports.
    pub fn listeners(&self, uid: &WorkloadUid, netns: NetnsId, i: &Interception) -> Option<Listeners> {
        let mut pods = self.pods.lock();
        let pod = pods.get_mut(uid)?;
        if pod.netns != netns {
            tracing::warn!(workload = %uid, "inherited listeners are of another network namespace of the pod");
            pods.remove(uid);
            return None;
        }
        let listeners = Listeners {
            outbound: pod.take(Kind::Outbound, i.outbound_port),
            inbound: pod.take(Kind::Inbound, i.inbound_port),
            hbone: pod.take(Kind::Hbone, i.hbone_port),
        };
        let all = [&listeners.outbound, &listeners.inbound, &listeners.hbone];
        all.iter().all(|of_kind| !of_kind.is_empty()).then_some(listeners)
    }

    /// A port of a Gateway in one of its pods, once.
    pub fn gateway_port(&self, uid: &WorkloadUid, port: u16) -> Option<Vec<TcpListener>> {
        let listeners = self.pods.lock().get_mut(uid)?.take(Kind::Gateway, port);
        (!listeners.is_empty()).then_some(listeners)
    }

    /// Closes what is left of a pod's.
    pub fn forget(&self, uid: &WorkloadUid) {
        self.pods.lock().remove(uid);
    }

    /// Closes what is left of pods that are not these.
    pub fn forget_others(&self, known: impl Fn(&WorkloadUid) -> bool) {
        self.pods.lock().retain(|uid, _| {
            let keep = known(uid);
            if !keep {
                tracing::info!(workload = %uid, "inherited listeners of a pod that is gone are closed");
            }
            keep
        });
    }
}

impl PodSockets {
    fn take(&mut self, kind: Kind, port: u16) -> Vec<TcpListener> {
        let is_that = |socket: &mut (Kind, u16, TcpListener)| socket.0 == kind && socket.1 == port;
        self.sockets.extract_if(.., is_that).map(|(_, _, listener)| listener).collect()
    }
}
