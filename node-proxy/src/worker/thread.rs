//! One worker: a thread with a runtime of its own.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Shared;
use super::accept::{self, Kind};
use super::load::Load;
use super::pod::{PodHere, PodState};
use super::socket::{CarriedSocket, configure};
use crate::balance::{Balancer, Endpoints};
use crate::handover::wire;
use crate::inbound::{self, node_addresses};
use crate::intercept::{Listeners, NetnsId};
use crate::limits::{ConnectionLimitReached, ConnectionPermit};
use crate::outbound::gateway::GatewayPort;
use crate::outbound::{self, gateway};
use crate::state::Snapshot;
use crate::state::model::{TunnelProtocol, WorkloadUid};
use crate::tunnel::pool::{Key, Pool};
use crate::tunnel::server;

/// Load is sampled and a sign of life given this often.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// Tunnels and limits are looked after once per so many samples.
const MAINTAIN_EVERY: u32 = 10;
/// The node's own addresses are read again once per so many samples.
const ADDRESSES_EVERY: u32 = 100;
/// How many tasks run before the sockets are asked what has come. Each may carry a [`QUANTUM`](crate::copy::QUANTUM), so
/// this bounds how long a busy worker overlooks a request that has arrived, to 1 or 2 ms.
const TASKS_BETWEEN_EVENTS: u32 = 16;
/// Compile-time bounds of the futures that exist once per connection: a bound that breaks is memory per connection.
const OUTBOUND_FUTURE: usize = 2336;
const INBOUND_FUTURE: usize = 2 << 10;
const TUNNEL_FUTURE: usize = 1 << 10;

/// What a worker is asked.
pub(super) enum Command {
    Add {
        state: Arc<PodState>,
        listeners: Listeners,
        done: oneshot::Sender<io::Result<()>>,
    },
    Open {
        state: Arc<PodState>,
        gateway: Arc<str>,
        listeners: Vec<std::net::TcpListener>,
        done: oneshot::Sender<io::Result<OpenPort>>,
    },
    Remove {
        uid: WorkloadUid,
        done: oneshot::Sender<()>,
    },
    /// Cuts what is open to a pod now.
    Cut {
        uid: WorkloadUid,
        done: oneshot::Sender<()>,
    },
    /// The listening sockets of all pods, once more.
    Sockets {
        done: oneshot::Sender<io::Result<Vec<PodSocket>>>,
    },
    Drain {
        done: oneshot::Sender<()>,
    },
}

/// One listening socket of a pod.
#[derive(Debug)]
pub struct PodSocket {
    pub uid: WorkloadUid,
    pub netns: NetnsId,
    pub kind: wire::Kind,
    pub socket: OwnedFd,
}

/// A port of a Gateway in one pod: connections are accepted until this is dropped.
#[derive(Debug)]
pub struct OpenPort {
    _closes: DropGuard,
}

/// A connection accepted by one worker and served by another.
pub(super) struct Handed {
    pub state: Arc<PodState>,
    pub socket: std::net::TcpStream,
    pub peer: SocketAddr,
    pub kind: Kind,
    pub permit: ConnectionPermit,
}

/// Another worker, or this one.
pub(super) struct Peer {
    /// Weak, so that the workers end with the last [`super::Workers`].
    pub handed: mpsc::WeakSender<Handed>,
    pub load: Arc<Load>,
}

/// What a thread starts with.
pub(super) struct Start {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub endpoints: Arc<Endpoints>,
    pub peers: Vec<Peer>,
    pub commands: mpsc::Receiver<Command>,
    pub handed: mpsc::Receiver<Handed>,
}

/// What the connections of one worker share.
pub struct Context {
    pub(super) index: usize,
    pub shared: Arc<Shared>,
    pub balancer: Balancer,
    pub pool: Pool,
    pub(super) peers: Vec<Peer>,
    node_addresses: RefCell<Rc<HashSet<IpAddr>>>,
    pods: RefCell<HashMap<WorkloadUid, Rc<PodHere>>>,
    drain: CancellationToken,
}

impl Context {
    /// The addresses of the node itself.
    pub fn node_addresses(&self) -> Rc<HashSet<IpAddr>> {
        self.node_addresses.borrow().clone()
    }

    fn pod(&self, state: &Arc<PodState>) -> Rc<PodHere> {
        let mut pods = self.pods.borrow_mut();
        match pods.get(&state.pod.uid) {
            Some(pod) if Arc::ptr_eq(&pod.state, state) => pod.clone(),
            _ => {
                let pod = PodHere::new(state.clone(), &self.drain);
                pods.insert(state.pod.uid.clone(), pod.clone());
                pod
            }
        }
    }
}

/// Starts a worker's thread.
pub(super) fn start(start: Start) -> io::Result<()> {
    let (built, outcome) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new().name(format!("worker-{}", start.index)).spawn(move || {
        // Stays on the thread it was made on.
        let runtime = match runtime() {
            Ok(runtime) => runtime,
            Err(error) => return built.send(Err(error)).unwrap_or_default(),
        };
        let _ = built.send(Ok(()));
        runtime.block_on(run(start));
    })?;
    outcome.recv().map_err(io::Error::other)?
}

/// Not a `LocalSet`: that looks for events after 61 tasks, which is fixed.
fn runtime() -> io::Result<LocalRuntime> {
    Builder::new_current_thread()
        .enable_all()
        .event_interval(TASKS_BETWEEN_EVENTS)
        .build_local(LocalOptions::default())
}

async fn run(start: Start) {
    let Start { index, shared, endpoints, peers, mut commands, mut handed } = start;
    let context = Rc::new(Context {
        index,
        balancer: Balancer::new(endpoints, shared.node.clone()),
        shared,
        pool: Pool::default(),
        peers,
        node_addresses: RefCell::new(Rc::new(node_addresses::read())),
        pods: RefCell::new(HashMap::new()),
        drain: CancellationToken::new(),
    });
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sampler = Sampler::new();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(command) => obey(&context, command),
                None => break,
            },
            Some(handed) = handed.recv() => take_over(&context, handed),
            _ = ticks.tick() => sampler.tick(&context),
        }
    }
    for pod in context.pods.borrow().values() {
        pod.cancel.cancel();
    }
}

struct Sampler {
    busy: Duration,
    at: Instant,
    ticks: u32,
}

impl Sampler {
    fn new() -> Self {
        Self { busy: busy_total(), at: Instant::now(), ticks: 0 }
    }

    fn tick(&mut self, context: &Context) {
        let (busy, at) = (busy_total(), Instant::now());
        context.peers[context.index].load.sample(busy.saturating_sub(self.busy), at - self.at);
        (self.busy, self.at) = (busy, at);
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(MAINTAIN_EVERY) {
            maintain(context);
        }
        if self.ticks.is_multiple_of(ADDRESSES_EVERY) {
            *context.node_addresses.borrow_mut() = Rc::new(node_addresses::read());
        }
    }
}

/// Time that this thread's runtime has spent running tasks.
fn busy_total() -> Duration {
    tokio::runtime::Handle::current().metrics().worker_total_busy_duration(0)
}

fn maintain(context: &Context) {
    let snapshot = context.shared.snapshots.load_full();
    let pods = context.pods.borrow();
    for pod in pods.values() {
        pod.http.maintain(&snapshot);
        if let Some(own) = pod.pod.workload.load().own.as_deref() {
            pod.pod.limits.update(own.settings.limits);
        }
    }
    context.pool.maintain(|key| {
        let current = pods.get(&key.client).and_then(|pod| {
            let workload = pod.pod.workload.load();
            context.shared.certificates.current(workload.identity.as_ref()?)
        });
        current.is_some_and(|certificate| certificate.generation == key.generation)
            && still_leads(&snapshot, key)
    });
    context.balancer.maintain(&snapshot);
}

/// Whether the destination is still where the tunnels of the key lead, and still speaks HBONE.
fn still_leads(snapshot: &Snapshot, key: &Key) -> bool {
    snapshot.workload(&key.destination).is_some_and(|workload| {
        workload.tunnel == TunnelProtocol::Hbone && workload.addresses.contains(&key.address.ip())
    })
}

fn obey(context: &Rc<Context>, command: Command) {
    match command {
        Command::Add { state, listeners, done } => {
            // The receiver is gone only if the caller gave up; then it removes the pod.
            let _ = done.send(add(context, &state, listeners));
        }
        Command::Open { state, gateway, listeners, done } => {
            // Without a receiver the port is closed with the answer.
            let _ = done.send(open(context, &state, gateway, listeners));
        }
        Command::Remove { uid, done } => {
            if let Some(pod) = context.pods.borrow_mut().remove(&uid) {
                pod.cancel.cancel();
            }
            let _ = done.send(());
        }
        Command::Cut { uid, done } => {
            if let Some(pod) = context.pods.borrow().get(&uid) {
                pod.cut_inbound();
            }
            let _ = done.send(());
        }
        Command::Sockets { done } => {
            let _ = done.send(sockets(context));
        }
        Command::Drain { done } => {
            context.drain.cancel();
            let _ = done.send(());
        }
    }
}

fn sockets(context: &Context) -> io::Result<Vec<PodSocket>> {
    let mut all = Vec::new();
    for pod in context.pods.borrow().values() {
        let (uid, netns) = (&pod.pod.uid, pod.pod.netns.id());
        let sockets = pod.sockets()?.into_iter();
        all.extend(sockets.map(|(kind, socket)| PodSocket { uid: uid.clone(), netns, kind, socket }));
    }
    Ok(all)
}

fn add(context: &Rc<Context>, state: &Arc<PodState>, listeners: Listeners) -> io::Result<()> {
    let Listeners { outbound, inbound, hbone } = listeners;
    let all = [(Kind::Outbound, outbound), (Kind::Inbound, inbound), (Kind::Hbone, hbone)];
    let listeners: Vec<(Kind, TcpListener)> = all
        .into_iter()
        .flat_map(|(kind, listeners)| listeners.into_iter().map(move |listener| (kind.clone(), listener)))
        .map(|(kind, listener)| Ok((kind, configured(listener)?)))
        .collect::<io::Result<_>>()?;
    let pod = context.pod(state);
    for (kind, listener) in listeners {
        let listener = Rc::new(listener);
        pod.listens(kind.to_wire(), &listener);
        spawn_local(accept::run(context.clone(), pod.clone(), listener, kind, context.drain.clone()));
    }
    Ok(())
}

/// A listener of this process, or one that another process opened.
fn configured(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    configure(&listener)?;
    TcpListener::from_std(listener)
}

fn open(
    context: &Rc<Context>,
    state: &Arc<PodState>,
    gateway: Arc<str>,
    listeners: Vec<std::net::TcpListener>,
) -> io::Result<OpenPort> {
    let listeners: Vec<TcpListener> = listeners.into_iter().map(configured).collect::<io::Result<_>>()?;
    let pod = context.pod(state);
    let closed = context.drain.child_token();
    for listener in listeners {
        let listener = Rc::new(listener);
        pod.listens(wire::Kind::Gateway, &listener);
        let port = GatewayPort { gateway: gateway.clone(), closed: closed.clone() };
        let kind = Kind::Gateway(port);
        spawn_local(accept::run(context.clone(), pod.clone(), listener, kind, closed.clone()));
    }
    Ok(OpenPort { _closes: closed.drop_guard() })
}

fn take_over(context: &Rc<Context>, handed: Handed) {
    let Handed { state, socket, peer, kind, permit } = handed;
    if state.is_removed() {
        return;
    }
    let pod = context.pod(&state);
    match TcpStream::from_std(socket) {
        Ok(socket) => serve(context, &pod, socket, peer, kind, permit),
        Err(error) => tracing::warn!(workload = %pod.pod.uid, %error, "a connection handed over is lost"),
    }
}

/// Serves an accepted connection on this worker until it ends or the pod is removed.
pub(super) fn serve(
    context: &Rc<Context>,
    pod: &Rc<PodHere>,
    socket: TcpStream,
    peer: SocketAddr,
    kind: Kind,
    permit: ConnectionPermit,
) {
    let (context, pod) = (context.clone(), pod.clone());
    let peer = super::socket::canonical(peer);
    match kind {
        Kind::Outbound => spawn_bounded::<OUTBOUND_FUTURE, _>(async move {
            let _permit = permit;
            let socket = CarriedSocket::new(socket);
            let cancel = pod.cancel.clone();
            let serving = pin!(outbound::serve(context, pod, socket, peer));
            cancel.run_until_cancelled(serving).await;
        }),
        Kind::Gateway(port) => spawn_bounded::<OUTBOUND_FUTURE, _>(async move {
            let _permit = permit;
            let socket = CarriedSocket::new(socket);
            let cancel = pod.cancel.clone();
            let serving = pin!(gateway::serve(context, pod, socket, peer, port));
            cancel.run_until_cancelled(serving).await;
        }),
        Kind::Inbound => spawn_bounded::<INBOUND_FUTURE, _>(async move {
            let _permit = permit;
            let socket = CarriedSocket::new(socket);
            let cancel = pod.inbound();
            let serving = pin!(inbound::plaintext::serve(context, pod, socket, peer));
            cancel.run_until_cancelled(serving).await;
        }),
        Kind::Hbone => spawn_bounded::<TUNNEL_FUTURE, _>(async move {
            let _permit = permit;
            let cancel = pod.inbound();
            let serving = pin!(server::serve(context, pod, socket, peer));
            cancel.run_until_cancelled(serving).await;
        }),
    }
}

/// Spawns a future whose size is bounded when it is compiled.
pub fn spawn_bounded<const MAX: usize, F: Future<Output = ()> + 'static>(future: F) {
    const { assert!(size_of::<F>() <= MAX, "a per-connection future has outgrown its bound") };
    // Boxed, because a future is moved eight times until it is a task.
    spawn_local(Box::pin(future));
}

/// Resets a connection for which the workload has no place.
pub(super) fn refuse_over_limit(
    context: &Context,
    pod: &PodHere,
    socket: TcpStream,
    peer: SocketAddr,
    kind: Kind,
    limit: ConnectionLimitReached,
) {
    let socket = CarriedSocket::new(socket);
    let peer = super::socket::canonical(peer);
    match kind {
        Kind::Outbound => outbound::refuse_over_limit(context, pod, &socket, peer, limit),
        Kind::Gateway(_) => gateway::refuse_over_limit(context, pod, &socket, peer, limit),
        Kind::Inbound | Kind::Hbone => inbound::refuse_over_limit(context, pod, &socket, peer, limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spent_in_tasks_counts_as_busy_and_waiting_does_not() {
        runtime().unwrap().block_on(async {
            let before = busy_total();
            tokio::time::sleep(Duration::from_millis(200)).await;
            let idle = busy_total() - before;
            let spin = spawn_local(async {
                for _ in 0..10 {
                    let start = Instant::now();
                    while start.elapsed() < Duration::from_millis(20) {}
                    tokio::task::yield_now().await;
                }
            });
            spin.await.unwrap();
            let busy = busy_total() - before - idle;
            assert!(idle < Duration::from_millis(100), "{idle:?}");
            assert!(busy >= Duration::from_millis(150), "{busy:?}");
        });
    }

    #[test]
    fn bytes_that_have_come_are_seen_among_tasks_that_are_always_ready() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        runtime().unwrap().block_on(async {
            let turns = Rc::new(std::cell::Cell::new(0_u32));
            let counted = turns.clone();
            let always_ready = spawn_local(std::future::poll_fn::<(), _>(move |cx| {
                counted.set(counted.get() + 1);
                cx.waker().wake_by_ref();
                std::task::Poll::Pending
            }));
            let (mut ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
            let reader = spawn_local(async move { ours.read_u8().await.unwrap() });
            tokio::task::yield_now().await;
            let before = turns.get();
            theirs.write_u8(1).await.unwrap();
            reader.await.unwrap();
            let waited = turns.get() - before;
            assert!(waited <= 2 * TASKS_BETWEEN_EVENTS, "{waited} turns of another task");
            always_ready.abort();
        });
    }
}
