//! A worker's client tunnels: few per pair of workloads, shared by all connections between them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use h2::client::SendRequest;
use h2::{Reason as H2Reason, RecvStream, SendStream};
use http::{Request, StatusCode};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::TunnelError;
use super::dial::{Driver, Opened};
use super::early::EarlyData;
use super::window::Window;
use crate::state::model::WorkloadUid;
use crate::telemetry::Carrier;

/// Tunnels that lead from one workload to one other, at most.
pub const TUNNELS_PER_PAIR: usize = 8;
/// Streams in one tunnel before another is opened; fewer if the peer allows fewer. When there are as many tunnels as
/// there may be, each takes as many as the peer allows.
const STREAMS_PER_TUNNEL: usize = 1024;
/// A tunnel without streams is closed after this long.
const IDLE: Duration = Duration::from_secs(300);

/// What tunnels may be shared by. Workloads are named by uid, because addresses are reused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub client: WorkloadUid,
    pub destination: WorkloadUid,
    pub address: SocketAddr,
    /// Of the client's certificate.
    pub generation: u64,
}

/// The pool of one worker.
#[derive(Default)]
pub struct Pool {
    entries: RefCell<HashMap<Key, Rc<Entry>>>,
}

/// The tunnels of one key.
#[derive(Default)]
struct Entry {
    tunnels: RefCell<Vec<Rc<Tunnel>>>,
    dialing: Cell<bool>,
    failures: Cell<u64>,
    last_failure: RefCell<Option<TunnelError>>,
    waiting: Cell<usize>,
    /// Somebody gave a stream back, a tunnel was opened, or an attempt failed.
    changed: Notify,
}

struct Tunnel {
    sender: SendRequest<Bytes>,
    window: Rc<Window>,
    retire_at: Instant,
    streams: Cell<usize>,
    idle_since: Cell<Instant>,
    is_new: Cell<bool>,
}

impl Tunnel {
    /// False once the tunnel has ended or the peer has announced its end.
    fn takes_streams(&self, now: Instant) -> bool {
        now < self.retire_at && !matches!(self.sender.clone().ready().now_or_never(), Some(Err(_)))
    }

    fn has_room(&self) -> bool {
        self.is_allowed() && self.streams.get() < STREAMS_PER_TUNNEL
    }

    /// Whether the peer accepts another stream.
    fn is_allowed(&self) -> bool {
        self.streams.get() < self.sender.current_max_send_streams()
    }
}

/// The right to one stream of a tunnel; given back when dropped.
pub struct Lease {
    entry: Rc<Entry>,
    tunnel: Rc<Tunnel>,
    /// Whether the tunnel was opened for this stream.
    pub carrier: Carrier,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.tunnel.streams.set(self.tunnel.streams.get().saturating_sub(1));
        self.tunnel.idle_since.set(Instant::now());
        self.entry.changed.notify_one();
    }
}

impl Lease {
    pub fn window(&self) -> &Rc<Window> {
        &self.tunnel.window
    }

    /// Whether the tunnel would take another stream, by age and state: a stream that is kept for later use is given up
    /// when its tunnel is on its way out.
    pub fn is_in_use(&self, now: Instant) -> bool {
        now < self.tunnel.retire_at
            && self.entry.tunnels.borrow().iter().any(|tunnel| Rc::ptr_eq(tunnel, &self.tunnel))
    }

    /// The tunnel gets no new streams.
    pub fn retire(&self) {
        self.entry.tunnels.borrow_mut().retain(|tunnel| !Rc::ptr_eq(tunnel, &self.tunnel));
    }

    /// Sends a CONNECT request, and what the client says early, and waits for the 200.
    ///
    /// # Errors
    /// When the tunnel fails, the answer is late or another one. The stream is reset then. `Unanswered` when something was
    /// sent that may have been delivered.
    pub async fn connect(
        &self,
        to: SocketAddr,
        request: Request<()>,
        after: Duration,
        early: &EarlyData<'_>,
    ) -> Result<(SendStream<Bytes>, RecvStream), TunnelError> {
        let failed = |error| TunnelError::Http2 { to, error: Arc::new(error) };
        let sent = Cell::new(false);
        let exchange = async {
            let mut sender = self.tunnel.sender.clone().ready().await.map_err(failed)?;
            let (response, mut send) = sender.send_request(request, false).map_err(failed)?;
            Ok((early.until_answered(response, &mut send, &sent).await.map_err(failed)?, send))
        };
        let answered = match timeout(after, exchange).await {
            Ok(answered) => answered,
            Err(_) => Err(TunnelError::Http2Timeout { to, after }),
        };
        let (response, send) = answered.map_err(|error| match sent.get() && !is_unprocessed(&error) {
            true => TunnelError::Unanswered { to, error: Box::new(error) },
            false => error,
        })?;
        match response.status() {
            StatusCode::OK => Ok((send, response.into_body())),
            status => Err(TunnelError::Refused { to, status }),
        }
    }
}

/// Whether the peer has said that it did nothing with the stream (RFC 9113, 6.8 and 8.7).
fn is_unprocessed(error: &TunnelError) -> bool {
    let TunnelError::Http2 { error, .. } = error else { return false };
    error.is_remote() && (error.is_go_away() || error.reason() == Some(H2Reason::REFUSED_STREAM))
}

/// Whether a new tunnel to the same peer may do what this one could not: it had ended, or was about to.
pub fn may_try_new_tunnel(error: &TunnelError) -> bool {
    match error {
        TunnelError::Http2 { error, .. } => {
            error.is_go_away() || error.is_io() || error.reason() == Some(H2Reason::REFUSED_STREAM)
        }
        _ => false,
    }
}

impl Entry {
    /// A stream of a tunnel that has room.
    fn take(self: &Rc<Self>) -> Option<Lease> {
        let now = Instant::now();
        let mut tunnels = self.tunnels.borrow_mut();
        tunnels.retain(|tunnel| tunnel.takes_streams(now));
        let tunnel = match tunnels.iter().find(|tunnel| tunnel.has_room()) {
            Some(tunnel) => tunnel,
            None if tunnels.len() < TUNNELS_PER_PAIR => return None,
            // No more tunnels: those that there are take what the peer allows.
            None => tunnels
                .iter()
                .filter(|tunnel| tunnel.is_allowed())
                .min_by_key(|tunnel| tunnel.streams.get())?,
        };
        let tunnel = tunnel.clone();
        tunnel.streams.set(tunnel.streams.get() + 1);
        let carrier = if tunnel.is_new.take() { Carrier::New } else { Carrier::Reused };
        Some(Lease { entry: self.clone(), tunnel, carrier })
    }

    fn failed_since(&self, seen: u64) -> Option<TunnelError> {
        (self.failures.get() != seen).then(|| self.last_failure.borrow().clone()).flatten()
    }

    fn fail(&self, error: TunnelError) {
        self.failures.set(self.failures.get() + 1);
        *self.last_failure.borrow_mut() = Some(error);
    }

    fn is_unused(&self) -> bool {
        self.tunnels.borrow().is_empty() && self.waiting.get() == 0 && !self.dialing.get()
    }

    fn late(&self, to: SocketAddr) -> TunnelError {
        let tunnels = self.tunnels.borrow().len();
        if tunnels >= TUNNELS_PER_PAIR {
            return TunnelError::Full { to, tunnels };
        }
        let error = io::Error::new(io::ErrorKind::TimedOut, "no tunnel within the deadline");
        TunnelError::Connect { to, error: Arc::new(error) }
    }
}

struct Waiting<'a>(&'a Entry);

impl<'a> Waiting<'a> {
    fn new(entry: &'a Entry) -> Self {
        entry.waiting.set(entry.waiting.get() + 1);
        Self(entry)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

/// The one attempt under way of an entry. However it ends, those who wait are told.
struct Attempt(Rc<Entry>);

impl Attempt {
    fn start(entry: &Rc<Entry>) -> Self {
        entry.dialing.set(true);
        Self(entry.clone())
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.0.dialing.set(false);
        self.0.changed.notify_waiters();
    }
}

impl Pool {
    /// A stream of a tunnel for `key`. If none has room, one attempt to open another runs for all who wait, up to
    /// [`TUNNELS_PER_PAIR`]; then they wait for streams to be given back. The attempt goes on when this future is
    /// dropped; it and the tunnel end with `cancel`.
    ///
    /// # Errors
    /// The failure of the attempt waited for, or `Full` at the deadline.
    pub async fn lease<F>(
        &self,
        key: &Key,
        deadline: Instant,
        cancel: &CancellationToken,
        dial: impl Fn() -> F,
    ) -> Result<Lease, TunnelError>
    where
        F: Future<Output = Result<Opened, TunnelError>> + 'static,
    {
        let entry = self.entries.borrow_mut().entry(key.clone()).or_default().clone();
        let _waiting = Waiting::new(&entry);
        let seen = entry.failures.get();
        loop {
            let mut changed = pin!(entry.changed.notified());
            changed.as_mut().enable();
            if let Some(lease) = entry.take() {
                return Ok(lease);
            }
            if let Some(error) = entry.failed_since(seen) {
                return Err(error);
            }
            if !entry.dialing.get() && entry.tunnels.borrow().len() < TUNNELS_PER_PAIR {
                attempt(&entry, cancel, dial());
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Err(entry.late(key.address));
            }
        }
    }

    /// Closes idle tunnels and those whose key is not wanted any more or whose certificate is about to end; streams
    /// that are open go on.
    pub fn maintain(&self, is_wanted: impl Fn(&Key) -> bool) {
        let now = Instant::now();
        self.entries.borrow_mut().retain(|key, entry| {
            let wanted = is_wanted(key);
            entry.tunnels.borrow_mut().retain(|tunnel| {
                let idle = tunnel.streams.get() == 0 && now - tunnel.idle_since.get() >= IDLE;
                wanted && !idle && tunnel.takes_streams(now)
            });
            !entry.is_unused()
        });
    }

    /// Tunnels that take streams.
    pub fn tunnels(&self) -> usize {
        self.entries.borrow().values().map(|entry| entry.tunnels.borrow().len()).sum()
    }
}

fn attempt<F>(entry: &Rc<Entry>, cancel: &CancellationToken, dial: F)
where
    F: Future<Output = Result<Opened, TunnelError>> + 'static,
{
    let attempt = Attempt::start(entry);
    let cancel = cancel.clone();
    spawn_local(async move {
        let entry = &attempt.0;
        let dial = pin!(dial);
        let opened = match cancel.run_until_cancelled(dial).await {
            Some(Ok(opened)) => opened,
            Some(Err(error)) => return entry.fail(error),
            None => return entry.fail(TunnelError::GivenUp),
        };
        entry.tunnels.borrow_mut().push(Rc::new(Tunnel {
            sender: opened.sender,
            window: opened.window,
            retire_at: opened.retire_at,
            streams: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            is_new: Cell::new(true),
        }));
        // In a task of its own: this one's memory need not live as long as the tunnel.
        spawn_local(run(entry.clone(), opened.driver, cancel));
    });
}

async fn run(entry: Rc<Entry>, driver: Driver, cancel: CancellationToken) {
    if let Some(Err(end)) = cancel.run_until_cancelled(driver).await {
        tracing::debug!(%end, "tunnel ended");
    }
    let now = Instant::now();
    entry.tunnels.borrow_mut().retain(|tunnel| tunnel.takes_streams(now));
    entry.changed.notify_waiters();
}

#[cfg(test)]
mod tests;
