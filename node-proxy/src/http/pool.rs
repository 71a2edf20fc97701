//! Inner connections of one pod on one worker: HTTP to endpoints, kept between requests. Each belongs to one endpoint as a
//! worker knows it (workload uid and port) and one version of HTTP; the last used is used first.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::client::Link;
use super::request_body::RequestBody;
use crate::balance::{Candidate, EndpointLoad};
use crate::outbound::protocol::Version;
use crate::state::Snapshot;
use crate::state::model::{Service, TunnelProtocol, WorkloadUid};
use crate::telemetry::{Security, SeriesCache};

/// Idle HTTP/1 connections kept per endpoint.
const MOST_IDLE: usize = 128;
/// A connection without a request is closed after this long.
const IDLE: Duration = Duration::from_secs(60);
/// Requests that cannot be sent again do not take a connection that was idle for longer: its server may be closing it.
const FRESH: Duration = Duration::from_secs(1);
/// Requests on one HTTP/2 connection before another is opened, and connections per endpoint.
const STREAMS: usize = 100;
const MOST_SHARED: usize = 16;
/// How long a connection may take from the end of a response until it takes the next request.
const SETTLES: Duration = Duration::from_secs(1);

/// The pool.
#[derive(Default)]
pub struct Pool {
    /// By the address of the endpoint's load, which the entry keeps alive: one per endpoint and process.
    peers: RefCell<HashMap<(usize, Version), Rc<Peer>>>,
}

/// One endpoint.
pub struct Peer {
    load: Arc<EndpointLoad>,
    workload: WorkloadUid,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Shared>>>,
    /// A connection for HTTP/2 is being made; others wait for it.
    is_dialing: Cell<bool>,
    dialed: Notify,
    /// Of requests to this endpoint.
    series: RefCell<Vec<Counted>>,
    last_used: Cell<Instant>,
}

/// Where requests for one Service that go so protected are counted.
struct Counted {
    service: Arc<Service>,
    security: Security,
    cache: Rc<SeriesCache>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    link: Rc<Link>,
    since: Instant,
}

/// An HTTP/2 connection.
pub struct Shared {
    pub sender: http2::SendRequest<RequestBody>,
    pub link: Rc<Link>,
    streams: Cell<usize>,
    idle_since: Cell<Instant>,
}

/// A connection for one request.
pub enum Held {
    Http1 { sender: http1::SendRequest<RequestBody>, link: Rc<Link>, peer: Rc<Peer> },
    Http2(Stream),
}

/// One request's part of an HTTP/2 connection; given back when dropped.
pub struct Stream(pub Rc<Shared>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
        self.0.idle_since.set(Instant::now());
    }
}

impl Held {
    pub fn link(&self) -> &Rc<Link> {
        match self {
            Self::Http1 { link, .. } => link,
            Self::Http2(stream) => &stream.0.link,
        }
    }

    /// The response is complete: another request may follow.
    pub fn put_back(self) {
        let Self::Http1 { mut sender, link, peer } = self else { return };
        if sender.is_ready() {
            return peer.keep(sender, link);
        }
        if sender.is_closed() {
            return;
        }
        spawn_local(async move {
            if let Ok(Ok(())) = tokio::time::timeout(SETTLES, sender.ready()).await {
                peer.keep(sender, link);
            }
        });
    }
}

/// What a connection must be like to carry a request.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    pub tunnel: TunnelProtocol,
    /// The request can be sent again when the connection turns out to be dead.
    pub can_repeat: bool,
}

impl Pool {
    pub fn peer(&self, candidate: &Candidate, version: Version) -> Rc<Peer> {
        let key = (Arc::as_ptr(&candidate.load) as usize, version);
        let mut peers = self.peers.borrow_mut();
        let peer = peers.entry(key).or_insert_with(|| Rc::new(Peer::new(candidate)));
        peer.last_used.set(Instant::now());
        peer.clone()
    }

    /// Closes connections that were idle for too long, and those to endpoints that are gone or are to be reached in
    /// another way now. Requests that are under way go on.
    pub fn maintain(&self, snapshot: &Snapshot) {
        let now = Instant::now();
        self.peers.borrow_mut().retain(|_, peer| {
            let tunnel = snapshot.workload(&peer.workload).map(|workload| workload.tunnel);
            let is_good = |link: &Link| tunnel.is_some_and(|tunnel| link.is_good(tunnel, now));
            peer.idle
                .borrow_mut()
                .retain(|idle| !idle.sender.is_closed() && now - idle.since < IDLE && is_good(&idle.link));
            peer.shared.borrow_mut().retain(|shared| {
                let is_idle = shared.streams.get() == 0 && now - shared.idle_since.get() >= IDLE;
                !shared.sender.is_closed() && !is_idle && is_good(&shared.link)
            });
            peer.has_connections() || now - peer.last_used.get() < IDLE
        });
    }

    /// Idle and shared connections.
    pub fn connections(&self) -> usize {
        let count = |peer: &Rc<Peer>| peer.idle.borrow().len() + peer.shared.borrow().len();
        self.peers.borrow().values().map(count).sum()
    }
}

impl Peer {
    fn new(candidate: &Candidate) -> Self {
        Self {
            load: candidate.load.clone(),
            workload: candidate.workload.uid.clone(),
            idle: RefCell::default(),
            shared: RefCell::default(),
            is_dialing: Cell::new(false),
            dialed: Notify::new(),
            series: RefCell::default(),
            last_used: Cell::new(Instant::now()),
        }
    }

    pub fn load(&self) -> &Arc<EndpointLoad> {
        &self.load
    }

    fn has_connections(&self) -> bool {
        !self.idle.borrow().is_empty() || !self.shared.borrow().is_empty() || self.is_dialing.get()
    }

    /// An idle HTTP/1 connection.
    pub fn take(self: &Rc<Self>, needs: Needs) -> Option<Held> {
        let now = Instant::now();
        let mut idle = self.idle.borrow_mut();
        while let Some(last) = idle.last() {
            let is_usable = last.sender.is_ready() && last.link.is_good(needs.tunnel, now);
            if is_usable && !needs.can_repeat && now - last.since >= FRESH {
                return None;
            }
            let last = idle.pop().filter(|_| is_usable);
            if let Some(Idle { sender, link, .. }) = last {
                return Some(Held::Http1 { sender, link, peer: self.clone() });
            }
        }
        None
    }

    fn keep(&self, sender: http1::SendRequest<RequestBody>, link: Rc<Link>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= MOST_IDLE {
            // The one that was used longest ago.
            idle.remove(0);
        }
        idle.push(Idle { sender, link, since: Instant::now() });
    }

    /// A stream of an HTTP/2 connection that has room; `None` when another one may be made.
    pub fn share(self: &Rc<Self>, needs: Needs) -> Option<Held> {
        let now = Instant::now();
        let mut all = self.shared.borrow_mut();
        all.retain(|shared| !shared.sender.is_closed() && shared.link.is_good(needs.tunnel, now));
        let shared = match all.iter().find(|shared| shared.streams.get() < STREAMS) {
            Some(shared) => shared,
            None if all.len() < MOST_SHARED => return None,
            None => all.iter().min_by_key(|shared| shared.streams.get())?,
        };
        Some(stream(shared))
    }

    /// The right to make the next HTTP/2 connection; `None` after somebody else has made one, or failed to.
    pub async fn may_dial(self: &Rc<Self>) -> Option<Dialing> {
        if self.is_dialing.get() {
            self.dialed.notified().await;
            return None;
        }
        self.is_dialing.set(true);
        Some(Dialing(self.clone()))
    }

    /// A connection that takes no more requests.
    pub fn retire(&self, held: &Held) {
        if let Held::Http2(stream) = held {
            self.shared.borrow_mut().retain(|shared| !Rc::ptr_eq(shared, &stream.0));
        }
    }

    /// The cache of series for requests that were meant for a Service and go so protected.
    pub fn series(&self, service: &Arc<Service>, security: Security) -> Rc<SeriesCache> {
        let mut all = self.series.borrow_mut();
        let is_it = |known: &&Counted| Arc::ptr_eq(&known.service, service) && known.security == security;
        if let Some(known) = all.iter().find(is_it) {
            return known.cache.clone();
        }
        // A Service that changed is another one: what is cached for the old one goes.
        all.retain(|known| known.service.key != service.key);
        let cache = Rc::<SeriesCache>::default();
        all.push(Counted { service: service.clone(), security, cache: cache.clone() });
        cache
    }
}

fn stream(shared: &Rc<Shared>) -> Held {
    shared.streams.set(shared.streams.get() + 1);
    Held::Http2(Stream(shared.clone()))
}

/// Whoever makes an HTTP/2 connection; others are told when it is dropped.
pub struct Dialing(Rc<Peer>);

impl Dialing {
    pub fn done(self, sender: http2::SendRequest<RequestBody>, link: Rc<Link>) -> Held {
        let shared =
            Rc::new(Shared { sender, link, streams: Cell::new(0), idle_since: Cell::new(Instant::now()) });
        self.0.shared.borrow_mut().push(shared.clone());
        stream(&shared)
    }
}

impl Drop for Dialing {
    fn drop(&mut self) {
        self.0.is_dialing.set(false);
        self.0.dialed.notify_waiters();
    }
}
