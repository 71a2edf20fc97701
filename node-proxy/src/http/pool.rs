//! Inner connections of one pod on one worker: HTTP to endpoints, kept between requests. Each belongs to one endpoint as a
//! worker knows it (workload uid and port) and one version of HTTP; the last used is used first.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use tokio::sync::Notify;
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
/// How long a connection may take from the end of a response until it takes the next request; then it is given up.
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

/// Between requests, or about to be.
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
        if let Self::Http1 { sender, link, peer } = self
            && !sender.is_closed()
        {
            peer.keep(sender, link);
        }
    }
}

impl Idle {
    /// It takes no further request. Whether it does shows only after hyper has run once more: no task waits for that, whoever
    /// looks for a connection sees it.
    fn is_over(&self, now: Instant) -> bool {
        self.sender.is_closed() || (!self.sender.is_ready() && now - self.since >= SETTLES)
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
                .retain(|idle| !idle.is_over(now) && now - idle.since < IDLE && is_good(&idle.link));
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

    /// An idle HTTP/1 connection; those that have not settled yet are left where they are.
    pub fn take(self: &Rc<Self>, needs: Needs) -> Option<Held> {
        let now = Instant::now();
        let mut idle = self.idle.borrow_mut();
        for index in (0..idle.len()).rev() {
            let last = &idle[index];
            if last.is_over(now) || !last.link.is_good(needs.tunnel, now) {
                idle.remove(index);
                continue;
            }
            if last.sender.is_ready() {
                if !needs.can_repeat && now - last.since >= FRESH {
                    return None;
                }
                let Idle { sender, link, .. } = idle.remove(index);
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

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body_util::BodyExt;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;
    use crate::balance::testing::{candidate, workload};
    use crate::telemetry::{ConnectionMeta, Reporter, WhyPlaintext};

    const NEEDS: Needs = Needs { tunnel: TunnelProtocol::Plaintext, can_repeat: true };

    fn peer() -> Rc<Peer> {
        Rc::new(Peer::new(&candidate(workload("cart", "10.0.0.2"), 8080)))
    }

    fn link() -> Rc<Link> {
        Link::plain(ConnectionMeta {
            reporter: Reporter::Source,
            source: None,
            source_addr: "10.0.0.1:40000".parse().unwrap(),
            source_identity: None,
            destination: None,
            destination_addr: "10.0.0.2:8080".parse().unwrap(),
            hbone_addr: None,
            destination_identity: None,
            service: None,
            routed: None,
            security: Security::Plaintext(WhyPlaintext::DestinationNotEnrolled),
        })
    }

    async fn answer(mut socket: DuplexStream) {
        let mut bytes = [0; 1024];
        while matches!(socket.read(&mut bytes).await, Ok(length) if length > 0) {
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    }

    /// A request and its whole response; then the connection goes back, as it does when the last byte is out.
    async fn exchange(mut held: Held) {
        let Held::Http1 { sender, .. } = &mut held else { panic!("HTTP/1") };
        let request = Request::new(RequestBody::of_copy(None, Rc::default()));
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
        held.put_back();
    }

    #[tokio::test]
    async fn a_connection_waits_in_its_place_until_it_takes_the_next_request() {
        let carried = async {
            let (near, far) = tokio::io::duplex(4096);
            spawn_local(answer(far));
            let (sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
            spawn_local(connection);
            let peer = peer();
            exchange(Held::Http1 { sender, link: link(), peer: peer.clone() }).await;
            for _ in 0..3 {
                assert_eq!(peer.idle.borrow().len(), 1, "kept, whether it is ready or not");
                let held = loop {
                    match peer.take(NEEDS) {
                        Some(held) => break held,
                        // hyper has to run once more; that it is looked at in between does it no harm.
                        None => yield_now().await,
                    }
                };
                assert!(peer.take(NEEDS).is_none(), "one connection carries one request");
                exchange(held).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), LocalSet::new().run_until(carried)).await.unwrap();
    }
}
