//! A pod as the workers share it, and as one worker holds it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::handover::wire;
use crate::http;
use crate::pods::Pod;
use crate::state::model::WorkloadUid;

/// TLS handshakes that may be under way at once for one pod on one worker, and how many of them from one address: so
/// that an address which starts handshakes and never ends them does not keep others out.
const HANDSHAKES: usize = 256;
const HANDSHAKES_PER_ADDRESS: usize = 32;

/// What all workers know of a pod.
pub struct PodState {
    pub pod: Arc<Pod>,
    removed: AtomicBool,
    carried: watch::Sender<usize>,
    tunnels_in: AtomicUsize,
    tunnels_out: Mutex<HashMap<WorkloadUid, usize>>,
}

impl PodState {
    pub fn new(pod: Arc<Pod>) -> Arc<Self> {
        Arc::new(Self {
            pod,
            removed: AtomicBool::new(false),
            carried: watch::Sender::new(0),
            tunnels_in: AtomicUsize::new(0),
            tunnels_out: Mutex::new(HashMap::new()),
        })
    }

    /// From now on no worker takes the pod up again.
    pub fn set_removed(&self) {
        self.removed.store(true, Ordering::Release);
    }

    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// Counts a connection that is carried for the pod until the guard is dropped.
    pub fn carry(self: &Arc<Self>) -> Carrying {
        self.carried.send_modify(|carried| *carried += 1);
        Carrying(self.clone())
    }

    /// Connections carried for the pod now.
    pub fn carried(&self) -> usize {
        *self.carried.borrow()
    }

    /// Returns when no connection is carried for the pod.
    pub async fn idle(&self) {
        let mut carried = self.carried.subscribe();
        // Fails only without a sender, and `self` is one.
        let _ = carried.wait_for(|carried| *carried == 0).await;
    }

    pub fn tunnel_in(self: &Arc<Self>) -> TunnelIn {
        self.tunnels_in.fetch_add(1, Ordering::Relaxed);
        TunnelIn(self.clone())
    }

    pub fn tunnels_in(&self) -> usize {
        self.tunnels_in.load(Ordering::Relaxed)
    }

    pub fn tunnel_out(self: &Arc<Self>, to: &WorkloadUid) -> TunnelOut {
        *self.tunnels_out.lock().entry(to.clone()).or_default() += 1;
        TunnelOut(self.clone(), to.clone())
    }

    /// Open tunnels from this pod by destination workload, on all workers.
    pub fn tunnels_out(&self) -> HashMap<WorkloadUid, usize> {
        self.tunnels_out.lock().clone()
    }
}

/// A carried connection.
pub struct Carrying(Arc<PodState>);

impl Drop for Carrying {
    fn drop(&mut self) {
        self.0.carried.send_modify(|carried| *carried = carried.saturating_sub(1));
    }
}

/// An open tunnel to the pod.
pub struct TunnelIn(Arc<PodState>);

impl Drop for TunnelIn {
    fn drop(&mut self) {
        self.0.tunnels_in.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open tunnel from the pod.
pub struct TunnelOut(Arc<PodState>, WorkloadUid);

impl Drop for TunnelOut {
    fn drop(&mut self) {
        let mut tunnels = self.0.tunnels_out.lock();
        if let Some(count) = tunnels.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                tunnels.remove(&self.1);
            }
        }
    }
}

/// A pod on one worker.
pub struct PodHere {
    pub state: Arc<PodState>,
    pub pod: Arc<Pod>,
    /// Everything of the pod on this worker ends.
    pub cancel: CancellationToken,
    /// The connections to the pod that are open now end.
    inbound: RefCell<CancellationToken>,
    /// Tunnels to the pod take no new streams and end with their last one.
    pub drain: CancellationToken,
    listening: RefCell<Vec<(wire::Kind, Weak<TcpListener>)>>,
    /// Inner connections that carry the pod's requests.
    pub http: http::Pool,
    handshakes: RefCell<HashMap<IpAddr, usize>>,
}

impl PodHere {
    pub fn new(state: Arc<PodState>, worker_drain: &CancellationToken) -> Rc<Self> {
        let cancel = CancellationToken::new();
        Rc::new(Self {
            pod: state.pod.clone(),
            state,
            inbound: RefCell::new(cancel.child_token()),
            cancel,
            drain: worker_drain.child_token(),
            listening: RefCell::default(),
            http: http::Pool::default(),
            handshakes: RefCell::new(HashMap::new()),
        })
    }

    /// Connections are accepted on this socket for as long as it lives.
    pub fn listens(&self, kind: wire::Kind, listener: &Rc<TcpListener>) {
        let mut listening = self.listening.borrow_mut();
        listening.retain(|(_, listener)| listener.strong_count() > 0);
        listening.push((kind, Rc::downgrade(listener)));
    }

    /// The sockets that connections are accepted on, once more.
    ///
    /// # Errors
    /// When descriptors are exhausted.
    pub fn sockets(&self) -> io::Result<Vec<(wire::Kind, OwnedFd)>> {
        let listening = self.listening.borrow();
        let sockets = listening.iter().filter_map(|(kind, listener)| Some((*kind, listener.upgrade()?)));
        sockets.map(|(kind, listener)| Ok((kind, listener.as_fd().try_clone_to_owned()?))).collect()
    }

    /// Ends with the next [`PodHere::cut_inbound`], or with everything of the pod.
    pub fn inbound(&self) -> CancellationToken {
        self.inbound.borrow().clone()
    }

    /// Cuts the connections and tunnels to the pod that are open now; new ones are served as before.
    pub fn cut_inbound(&self) {
        self.inbound.replace(self.cancel.child_token()).cancel();
    }

    /// A place for one TLS handshake; `None` when too many are under way.
    pub fn handshake(self: &Rc<Self>, from: IpAddr) -> Option<Handshake> {
        let mut handshakes = self.handshakes.borrow_mut();
        let all: usize = handshakes.values().sum();
        let of_address = handshakes.entry(from).or_default();
        if all >= HANDSHAKES || *of_address >= HANDSHAKES_PER_ADDRESS {
            return None;
        }
        *of_address += 1;
        Some(Handshake(self.clone(), from))
    }
}

/// A TLS handshake under way.
pub struct Handshake(Rc<PodHere>, IpAddr);

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut handshakes = self.0.handshakes.borrow_mut();
        if let Some(count) = handshakes.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                handshakes.remove(&self.1);
            }
        }
    }
}
