//! One stream: the introduction, then batches one way and reports the other, until one side falls silent.

mod batch;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use culvert_api::mesh::controller_message::Kind as Out;
use culvert_api::mesh::proxy_message::Kind as In;
use culvert_api::mesh::{self as pb, ControllerMessage, ProxyMessage};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tonic::{Status, Streaming};

use super::difference::Held;
use crate::hub::{Event, Handle, StreamId};
use crate::metrics::Metrics;
use crate::snapshot::{Key, is_hbone_version};
use batch::{Marks, lock};

/// Between heartbeats, in both directions.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// A stream silent for this long is dead; so is one that takes nothing for this long.
const SILENCE: Duration = Duration::from_secs(30);
/// For hello, everything held, and subscribe.
const INTRODUCTION: Duration = Duration::from_secs(30);
/// However long its token is valid.
const LONGEST_STREAM: Duration = Duration::from_secs(30 * 24 * 3600);
/// What a proxy may say that it holds: ten times what a controller of this size serves.
const MOST_HELD: usize = 1_000_000;

pub struct Session {
    pub id: StreamId,
    pub node: String,
    /// When the token that opened the stream expires; the stream ends then.
    pub until: SystemTime,
    pub hub: Handle,
    pub metrics: Metrics,
    pub outgoing: mpsc::Sender<Result<ControllerMessage, Status>>,
}

/// Why a session ends.
enum End {
    /// The proxy closed the stream, or its connection is gone.
    Gone(String),
    /// The proxy is told why.
    Told(Status),
}

impl Session {
    pub async fn run(self, mut incoming: Streaming<ProxyMessage>) {
        let end = self.serve(&mut incoming).await;
        let (node, stream) = (&self.node, self.id);
        match end {
            End::Gone(reason) => tracing::info!(node, stream, reason, "stream closed by the node proxy"),
            End::Told(status) => {
                tracing::warn!(node, stream, reason = status.message(), "stream ended");
                // A proxy that takes nothing cannot be told either; dropping the sender ends the stream.
                let _ = self.outgoing.try_send(Err(status));
            }
        }
        // The hub ends only with the process.
        let _ = self.hub.events.send(Event::Closed { stream: self.id }).await;
    }

    async fn serve(&self, incoming: &mut Streaming<ProxyMessage>) -> End {
        let lifetime = self.until.duration_since(SystemTime::now()).unwrap_or_default();
        let expires = Instant::now() + lifetime.min(LONGEST_STREAM);
        let introduction = timeout(INTRODUCTION, self.introduction(incoming)).await;
        let held = match introduction {
            Ok(Ok(held)) => held,
            Ok(Err(end)) => return end,
            Err(_) => return told(Status::deadline_exceeded("the introduction took too long")),
        };
        let marks = Arc::new(Mutex::new(Marks::default()));
        tokio::select! {
            end = self.read(incoming, &marks) => end,
            end = self.write(held, &marks) => end,
            () = tokio::time::sleep_until(expires) => {
                told(Status::unauthenticated("the token has expired; open a new stream with a new one"))
            }
        }
    }

    async fn introduction(&self, incoming: &mut Streaming<ProxyMessage>) -> Result<Held, End> {
        let mut held = Held::new(self.node.clone());
        let mut hbone = Vec::new();
        let hello = match next(incoming).await? {
            In::Hello(hello) => hello,
            _ => return Err(told(Status::invalid_argument("a stream starts with hello"))),
        };
        loop {
            match next(incoming).await? {
                In::Held(page) => {
                    for resource in page.resources {
                        let Some(key) = resource.key.map(Key::from) else { continue };
                        if is_hbone_version(&resource.version) {
                            hbone.extend(key.workload_uid().map(str::to_owned));
                        }
                        held.hold(key, &resource.version);
                    }
                    if held.len() > MOST_HELD {
                        return Err(told(Status::resource_exhausted("no proxy holds that much")));
                    }
                }
                In::Subscribe(pb::Subscribe {}) => break,
                _ => return Err(told(Status::invalid_argument("expected what is held, or subscribe"))),
            }
        }
        let node = self.node.clone();
        tracing::info!(node, stream = self.id, instance = hello.instance, held = held.len(), "stream opened");
        self.tell(Event::Opened { stream: self.id, node: node.clone(), hello }).await?;
        if !hbone.is_empty() {
            let (published, known) = oneshot::channel();
            self.tell(Event::HoldsHbone { uids: hbone, published }).await?;
            // Only now does a snapshot say so; the first batch must not be made from an earlier one.
            let _ = known.await;
        }
        let welcome = pb::Welcome {
            node,
            controller_version: env!("CARGO_PKG_VERSION").to_owned(),
            heartbeat_seconds: u32::try_from(HEARTBEAT.as_secs()).unwrap_or(u32::MAX),
        };
        self.send(Out::Welcome(welcome)).await?;
        Ok(held)
    }

    async fn read(&self, incoming: &mut Streaming<ProxyMessage>, marks: &Mutex<Marks>) -> End {
        loop {
            let message = match timeout(SILENCE, next(incoming)).await {
                Ok(Ok(message)) => message,
                Ok(Err(end)) => return end,
                Err(_) => return told(Status::deadline_exceeded(format!("silent for {SILENCE:?}"))),
            };
            if let Err(end) = self.take(message, marks).await {
                return end;
            }
        }
    }

    async fn take(&self, message: In, marks: &Mutex<Marks>) -> Result<(), End> {
        let stream = self.id;
        match message {
            In::Applied(applied) => {
                let generation = lock(marks).applied(applied.sequence);
                self.tell(Event::Heartbeat { stream, version: applied.version }).await?;
                self.applied(generation).await
            }
            In::Refused(refused) => {
                let Some(key) = refused.key.map(Key::from) else { return Ok(()) };
                let (node, version, reason) = (&self.node, &refused.version, &refused.reason);
                tracing::warn!(node, resource = %key, version, reason, "resource refused");
                self.metrics.refused(node);
                lock(marks).refused.insert(key.clone());
                self.tell(Event::Refused { stream, key, reason: Some(refused.reason) }).await
            }
            In::Enrolment(report) => self.tell(Event::Report { node: self.node.clone(), report }).await,
            In::Listeners(report) => self.tell(Event::Listeners { node: self.node.clone(), report }).await,
            In::Heartbeat(heartbeat) => {
                self.tell(Event::Heartbeat { stream, version: heartbeat.version }).await
            }
            In::Hello(_) | In::Held(_) | In::Subscribe(_) => {
                Err(told(Status::invalid_argument("the introduction is over")))
            }
        }
    }

    /// The hub's events are bounded: while it is busy, the stream waits.
    async fn tell(&self, event: Event) -> Result<(), End> {
        let sent = self.hub.events.send(event).await;
        sent.map_err(|_| told(Status::unavailable("the controller is ending")))
    }

    async fn send(&self, kind: Out) -> Result<(), End> {
        match timeout(SILENCE, self.outgoing.send(Ok(ControllerMessage { kind: Some(kind) }))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone("it reads no more".to_owned())),
            Err(_) => Err(told(Status::deadline_exceeded(format!("took nothing for {SILENCE:?}")))),
        }
    }
}

fn told(status: Status) -> End {
    End::Told(status)
}

/// The next message that says something.
async fn next(incoming: &mut Streaming<ProxyMessage>) -> Result<In, End> {
    loop {
        match incoming.message().await {
            Ok(Some(ProxyMessage { kind: Some(kind) })) => return Ok(kind),
            // A kind of a later version.
            Ok(Some(ProxyMessage { kind: None })) => {}
            Ok(None) => return Err(End::Gone("end of stream".to_owned())),
            Err(status) => return Err(End::Gone(status.message().to_owned())),
        }
    }
}
