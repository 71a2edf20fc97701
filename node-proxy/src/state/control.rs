//! The controller's stream: opened again whenever it ends, resumed with what is held, answered with what was applied,
//! refused and enrolled.

use std::sync::Arc;
use std::time::Duration;

use culvert_api::mesh as wire;
use culvert_api::mesh::controller_message::Kind as FromController;
use culvert_api::mesh::mesh_control_client::MeshControlClient;
use culvert_api::mesh::proxy_message::Kind as FromProxy;
use culvert_identity::grpc::{self, ChannelError, TokenFile};
use culvert_identity::{Identity, TrustBundle};
use futures::StreamExt;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::enrolment::EnrolmentReporter;
use super::kept::Kept;
use super::listeners::ListenerReporter;
use super::publisher::Publisher;
use super::resources::Resources;
use super::snapshot::{Origin, Snapshots};
use super::status::ControlStatus;
use crate::handover::Charge;
use crate::identity::backoff;
use crate::pods::PodReports;
use crate::telemetry::{Outcome, Telemetry};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// From opening the stream to the controller's welcome.
const OPENING: Duration = Duration::from_secs(15);
/// Messages to the controller that may wait; pages of `Held` are not among them.
const QUEUE: usize = 64;
/// Pages are at most 1 MiB.
const LARGEST_MESSAGE: usize = 4 << 20;
/// Heartbeats when the controller does not say how often.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A stream without a word for this many heartbeats is dead.
const SILENT_HEARTBEATS: u32 = 3;

/// Why a stream ended.
#[derive(Debug, Error)]
enum StreamError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("own token: {0}")]
    Token(#[from] std::io::Error),
    #[error("the controller ended the stream with {code:?}: {message}", code = .0.code(), message = describe(.0))]
    Status(Box<tonic::Status>),
    #[error("the controller closed the stream")]
    Closed,
    #[error("no welcome within {OPENING:?}")]
    NoWelcome,
    #[error("the controller spoke of resources before its welcome")]
    NotWelcome,
    #[error("silent for {0:?}")]
    Silent(Duration),
    #[error("the controller does not read for {0:?}")]
    NotRead(Duration),
    #[error("the token proves node {theirs}, this proxy has served as {ours}")]
    OtherNode { ours: String, theirs: String },
}

impl From<tonic::Status> for StreamError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// A status made on this side hides its cause behind "transport error".
fn describe(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Where the controller is, and who it must be.
pub struct ControlSettings {
    /// `https://HOST:PORT`.
    pub url: String,
    pub controller: Identity,
    pub token: TokenFile,
    pub bundle: watch::Receiver<Arc<TrustBundle>>,
}

/// What the client feeds and reads.
pub struct ControlChannels {
    pub snapshots: Snapshots,
    pub telemetry: Telemetry,
    pub status: ControlStatus,
    /// Pods of this node. Nothing is reported before the first change: a proxy that has just started does not know yet
    /// which pods it has, and must not say that it has none.
    pub pods: watch::Receiver<PodReports>,
    pub kept: watch::Sender<Kept>,
    /// Only the process in charge reports; another one follows for the connections it still carries.
    pub charge: Charge,
}

/// Follows the controller.
pub struct ControlClient {
    client: MeshControlClient<Channel>,
    token: TokenFile,
    instance: String,
    resources: Resources,
    publisher: Publisher,
    status: ControlStatus,
    telemetry: Telemetry,
    enrolment: EnrolmentReporter,
    listeners: ListenerReporter,
    charge: Charge,
}

impl ControlClient {
    /// `resources`: what an earlier process kept, or nothing.
    ///
    /// # Errors
    /// When the URL is not one.
    pub fn new(
        settings: ControlSettings,
        channels: ControlChannels,
        resources: Resources,
    ) -> Result<Self, ChannelError> {
        let channel = grpc::channel(&settings.url, settings.controller, settings.bundle)?;
        Ok(Self::over(channel, settings.token, channels, resources))
    }

    pub(super) fn over(
        channel: Channel,
        token: TokenFile,
        channels: ControlChannels,
        resources: Resources,
    ) -> Self {
        let client = MeshControlClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
        Self {
            client,
            token,
            instance: format!("{:016x}", rand::random::<u64>()),
            resources,
            publisher: Publisher::new(channels.snapshots, channels.telemetry.clone(), channels.kept),
            status: channels.status,
            telemetry: channels.telemetry,
            listeners: ListenerReporter::new(channels.pods.clone()),
            enrolment: EnrolmentReporter::new(channels.pods),
            charge: channels.charge,
        }
    }

    /// Until cancelled. Never ends by itself: what was published stays in force while the controller is away.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut failures = 0;
        loop {
            let mut progress = Progress::None;
            let ended = cancel.run_until_cancelled(self.stream(&mut progress)).await;
            let Some(Err(error)) = ended else {
                self.publisher.publish();
                return;
            };
            failures = if progress == Progress::Complete { 1 } else { failures + 1 };
            let retry = backoff::delay(failures, FIRST_RETRY, LONGEST_RETRY);
            let retry_ms = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX);
            warn!(%error, failures, retry_ms, "controller's stream ended; what is in force stays");
            if progress == Progress::None {
                self.telemetry.control_connect(Outcome::Failure);
            }
            self.status.disconnected(&error.to_string());
            self.publisher.forget_marks();
            self.publisher.publish();
            if cancel.run_until_cancelled(tokio::time::sleep(retry)).await.is_none() {
                return;
            }
        }
    }

    /// One stream, from opening to its end.
    async fn stream(&mut self, progress: &mut Progress) -> Result<std::convert::Infallible, StreamError> {
        let (to_controller, queue) = mpsc::channel(QUEUE);
        let introduction = futures::stream::iter(self.introduction());
        let messages = introduction.chain(ReceiverStream::new(queue));
        let mut request = tonic::Request::new(messages);
        self.token.authorize(&mut request)?;
        let mut client = self.client.clone();
        let opening = async {
            let mut from_controller = client.follow(request).await?.into_inner();
            let first = from_controller.message().await?.ok_or(StreamError::Closed)?;
            Ok::<_, StreamError>((from_controller, first))
        };
        let (from_controller, first) =
            timeout(OPENING, opening).await.map_err(|_| StreamError::NoWelcome)??;
        let Some(FromController::Welcome(welcome)) = first.kind else { return Err(StreamError::NotWelcome) };
        let heartbeat = self.welcomed(&welcome)?;
        *progress = Progress::Welcome;
        self.resources.forget_refused();
        self.telemetry.control_connect(Outcome::Success);
        let mut session = Session { client: self, to_controller, heartbeat, progress };
        session.follow(from_controller).await
    }

    fn introduction(&self) -> Vec<wire::ProxyMessage> {
        let hello = wire::Hello {
            proxy_version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.instance.clone(),
        };
        std::iter::once(FromProxy::Hello(hello))
            .chain(self.resources.held().into_iter().map(FromProxy::Held))
            .chain([FromProxy::Subscribe(wire::Subscribe {})])
            .map(message)
            .collect()
    }

    /// Returns the time between two heartbeats.
    fn welcomed(&mut self, welcome: &wire::Welcome) -> Result<Duration, StreamError> {
        let ours = self.resources.node();
        if !ours.is_empty() && ours != welcome.node {
            return Err(StreamError::OtherNode { ours: ours.to_owned(), theirs: welcome.node.clone() });
        }
        self.resources.set_node(&welcome.node);
        self.status.connected(&welcome.node);
        self.status.heard();
        info!(
            node = welcome.node,
            controller_version = welcome.controller_version,
            "controller's stream is up"
        );
        Ok(match welcome.heartbeat_seconds {
            0 => HEARTBEAT,
            seconds => Duration::from_secs(seconds.into()),
        })
    }
}

/// How far a stream came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    None,
    Welcome,
    /// A complete state was received.
    Complete,
}

fn message(kind: FromProxy) -> wire::ProxyMessage {
    wire::ProxyMessage { kind: Some(kind) }
}

/// A stream that is up.
struct Session<'a> {
    client: &'a mut ControlClient,
    to_controller: mpsc::Sender<wire::ProxyMessage>,
    heartbeat: Duration,
    progress: &'a mut Progress,
}

impl Session<'_> {
    async fn follow(
        &mut self,
        mut from_controller: Streaming<wire::ControllerMessage>,
    ) -> Result<std::convert::Infallible, StreamError> {
        let silence = self.heartbeat * SILENT_HEARTBEATS;
        let mut heartbeats = tokio::time::interval_at(Instant::now() + self.heartbeat, self.heartbeat);
        heartbeats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut deadline = Instant::now() + silence;
        let charge = self.client.charge.clone();
        if !charge.is_given_up() {
            if let Some(report) = self.client.enrolment.complete() {
                self.send(FromProxy::Enrolment(report)).await?;
            }
            if let Some(report) = self.client.listeners.complete() {
                self.send(FromProxy::Listeners(report)).await?;
            }
        }
        loop {
            let due = self.client.publisher.due();
            tokio::select! {
                received = from_controller.message() => {
                    let received = received?.ok_or(StreamError::Closed)?;
                    deadline = Instant::now() + silence;
                    self.client.status.heard();
                    self.receive(received).await?;
                }
                () = tokio::time::sleep_until(due.unwrap_or(deadline)), if due.is_some() => self.publish().await?,
                report = self.client.enrolment.next(), if !charge.is_given_up() => self.send(FromProxy::Enrolment(report)).await?,
                report = self.client.listeners.next(), if !charge.is_given_up() => self.send(FromProxy::Listeners(report)).await?,
                _ = heartbeats.tick() => self.beat().await?,
                () = tokio::time::sleep_until(deadline) => return Err(StreamError::Silent(silence)),
            }
        }
    }

    async fn receive(&mut self, received: wire::ControllerMessage) -> Result<(), StreamError> {
        match received.kind {
            Some(FromController::Page(page)) => {
                for refused in self.client.resources.apply(page) {
                    self.send(FromProxy::Refused(refused)).await?;
                }
            }
            Some(FromController::Mark(mark)) => {
                match self.client.resources.freeze(Origin::Controller, &mark.version) {
                    Some((snapshot, kept)) => {
                        *self.progress = Progress::Complete;
                        self.client.publisher.offer(mark.sequence, snapshot, kept);
                    }
                    None => warn!(
                        "the controller's state has no mesh settings that can be accepted: not in force"
                    ),
                }
            }
            Some(FromController::Heartbeat(wire::ControllerHeartbeat { .. })) => {}
            // A second welcome changes nothing; kinds that this version does not know are for others.
            Some(FromController::Welcome(_)) | None => {}
        }
        Ok(())
    }

    async fn publish(&mut self) -> Result<(), StreamError> {
        for applied in self.client.publisher.publish() {
            self.send(FromProxy::Applied(applied)).await?;
        }
        Ok(())
    }

    async fn beat(&self) -> Result<(), StreamError> {
        let version = self.client.publisher.version();
        let refused = self.client.resources.refused_count();
        self.send(FromProxy::Heartbeat(wire::ProxyHeartbeat { version, refused })).await
    }

    async fn send(&self, kind: FromProxy) -> Result<(), StreamError> {
        let patience = self.heartbeat * SILENT_HEARTBEATS;
        match timeout(patience, self.to_controller.send(message(kind))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(StreamError::Closed),
            Err(_) => Err(StreamError::NotRead(patience)),
        }
    }
}

#[cfg(test)]
mod tests;
