//! What one workload may hold at once, so that it cannot starve its neighbours: open connections, requests under way and
//! buffered bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Notify;

use crate::state::model::Limits;

/// How long a reader over its memory budget waits at most before it reads one small buffer anyway. A reader that
/// waited without end could wait for a peer that waits for it.
const PAUSE: Duration = Duration::from_millis(20);

/// The workload has as many open connections as its settings allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the workload has {limit} open connections, its limit")]
pub struct ConnectionLimitReached {
    pub limit: u32,
}

/// The workload has no place for another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RequestLimitReached {
    #[error("the workload has {0} requests under way, its limit")]
    Requests(u32),
    #[error("what is buffered for the workload has reached its limit of {0} bytes")]
    Memory(u64),
}

/// Limits and use of one workload, shared by all workers. The limits follow the settings at once; what is already
/// open stays open.
#[derive(Debug)]
pub struct WorkloadLimits {
    max_connections: AtomicU32,
    connections: AtomicU32,
    max_requests: AtomicU32,
    requests: AtomicU32,
    max_memory: AtomicU64,
    memory: AtomicU64,
    relief: Notify,
}

impl WorkloadLimits {
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            max_connections: AtomicU32::new(limits.connections),
            connections: AtomicU32::new(0),
            max_requests: AtomicU32::new(limits.requests),
            requests: AtomicU32::new(0),
            max_memory: AtomicU64::new(limits.memory_bytes),
            memory: AtomicU64::new(0),
            relief: Notify::new(),
        })
    }

    /// Puts new limits in force.
    pub fn update(&self, limits: Limits) {
        self.max_connections.store(limits.connections, Ordering::Relaxed);
        self.max_requests.store(limits.requests, Ordering::Relaxed);
        self.max_memory.store(limits.memory_bytes, Ordering::Relaxed);
        self.relief.notify_waiters();
    }

    /// # Errors
    /// When the workload has as many open connections as it may.
    pub fn connection(self: &Arc<Self>) -> Result<ConnectionPermit, ConnectionLimitReached> {
        let limit = self.max_connections.load(Ordering::Relaxed);
        self.connections
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < limit).then_some(open + 1))
            .map(|_| ConnectionPermit(self.clone()))
            .map_err(|_| ConnectionLimitReached { limit })
    }

    /// A place for a request whose head takes so many bytes.
    ///
    /// # Errors
    /// When the workload has as many requests under way as it may, or its memory is used up.
    pub fn request(self: &Arc<Self>, head_bytes: u64) -> Result<RequestPermit, RequestLimitReached> {
        let memory = self.max_memory.load(Ordering::Relaxed);
        if self.memory() >= memory {
            return Err(RequestLimitReached::Memory(memory));
        }
        let limit = self.max_requests.load(Ordering::Relaxed);
        self.requests
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < limit).then_some(open + 1))
            .map_err(|_| RequestLimitReached::Requests(limit))?;
        Ok(RequestPermit { limits: self.clone(), _head: self.charge(head_bytes) })
    }

    /// Whether less than half of the memory is in use: what may be left out asks this, so that it never takes the place of
    /// what may not.
    pub fn has_to_spare(&self) -> bool {
        self.memory() < self.max_memory.load(Ordering::Relaxed) / 2
    }

    /// A place for a request that may be left out: none once half of the places, or of the memory, is in use.
    pub fn spare_request(self: &Arc<Self>, head_bytes: u64) -> Option<RequestPermit> {
        let few = self.requests() < self.max_requests.load(Ordering::Relaxed) / 2;
        if few && self.has_to_spare() { self.request(head_bytes).ok() } else { None }
    }

    /// Requests under way.
    pub fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Open connections.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Most connections the workload may have open.
    pub fn max_connections(&self) -> u32 {
        self.max_connections.load(Ordering::Relaxed)
    }

    /// Counts `bytes` as buffered until the charge is dropped. Never refuses: who buffers looks at
    /// [`WorkloadLimits::memory_left`] first and takes less, or waits in [`WorkloadLimits::relief`].
    pub fn charge(self: &Arc<Self>, bytes: u64) -> MemoryCharge {
        self.take(bytes);
        MemoryCharge { limits: self.clone(), bytes }
    }

    /// Bytes buffered.
    pub fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    /// Bytes that may still be buffered.
    pub fn memory_left(&self) -> u64 {
        self.max_memory.load(Ordering::Relaxed).saturating_sub(self.memory())
    }

    pub fn is_over_budget(&self) -> bool {
        self.memory() >= self.max_memory.load(Ordering::Relaxed)
    }

    /// Returns at once within the budget; over it, when memory was given back or after a short pause.
    pub async fn relief(&self) {
        let relieved = self.relief.notified();
        if self.is_over_budget() {
            let _ = tokio::time::timeout(PAUSE, relieved).await;
        }
    }

    /// Counts `bytes` as buffered; whoever calls it gives them back.
    pub(crate) fn take(&self, bytes: u64) {
        self.memory.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        let before = self.memory.fetch_sub(bytes, Ordering::Relaxed);
        let budget = self.max_memory.load(Ordering::Relaxed);
        if before >= budget && before - bytes < budget {
            self.relief.notify_waiters();
        }
    }
}

/// One open connection of a workload.
#[derive(Debug)]
pub struct ConnectionPermit(Arc<WorkloadLimits>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One request of a workload that is under way.
#[derive(Debug)]
pub struct RequestPermit {
    limits: Arc<WorkloadLimits>,
    _head: MemoryCharge,
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.limits.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Buffered bytes of a workload.
#[derive(Debug)]
pub struct MemoryCharge {
    limits: Arc<WorkloadLimits>,
    bytes: u64,
}

impl MemoryCharge {
    /// Replaces the number of bytes charged.
    pub fn set(&mut self, bytes: u64) {
        if bytes > self.bytes {
            self.limits.take(bytes - self.bytes);
        } else if bytes < self.bytes {
            self.limits.give_back(self.bytes - bytes);
        }
        self.bytes = bytes;
    }
}

impl Drop for MemoryCharge {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::testing::at_most;

    fn limits(connections: u32, memory_bytes: u64) -> Arc<WorkloadLimits> {
        WorkloadLimits::new(at_most(connections, memory_bytes))
    }

    #[test]
    fn a_connection_over_the_limit_is_refused_until_one_ends() {
        let limits = limits(2, 0);
        let first = limits.connection().unwrap();
        let _second = limits.connection().unwrap();
        assert_eq!(limits.connection().unwrap_err(), ConnectionLimitReached { limit: 2 });
        drop(first);
        let _third = limits.connection().unwrap();
        assert_eq!(limits.connections(), 2);
    }

    #[test]
    fn new_limits_hold_at_once_and_close_nothing() {
        let limits = limits(2, 0);
        let open: Vec<_> = (0..2).map(|_| limits.connection().unwrap()).collect();
        limits.update(at_most(1, 10));
        assert!(limits.connection().is_err());
        drop(open);
        assert_eq!((limits.connections(), limits.memory_left()), (0, 10));
        let _one = limits.connection().unwrap();
        assert!(limits.connection().is_err());
    }

    #[test]
    fn a_request_is_refused_for_their_number_and_for_memory() {
        let limits = limits(2, 100);
        let first = limits.request(60).unwrap();
        let _second = limits.request(30).unwrap();
        assert_eq!(limits.request(1).unwrap_err(), RequestLimitReached::Requests(2));
        drop(first);
        assert_eq!((limits.requests(), limits.memory()), (1, 30));
        let charge = limits.charge(70);
        assert_eq!(limits.request(1).unwrap_err(), RequestLimitReached::Memory(100));
        drop(charge);
        assert!(limits.request(1).is_ok());
        assert_eq!((limits.requests(), limits.memory()), (1, 30), "a place that is not kept is given back");
    }

    #[test]
    fn what_may_be_left_out_takes_at_most_half() {
        let limits = limits(4, 100);
        let kept: Vec<_> = (0..2).map(|_| limits.spare_request(10).unwrap()).collect();
        assert!(limits.spare_request(10).is_none(), "half of the places");
        drop(kept);
        let _charge = limits.charge(50);
        assert!(!limits.has_to_spare() && limits.spare_request(10).is_none(), "half of the memory");
        assert!(limits.request(10).is_ok());
    }

    #[test]
    fn charges_are_given_back_exactly_once() {
        let limits = limits(1, 100);
        let mut charge = limits.charge(60);
        charge.set(120);
        assert!(limits.is_over_budget());
        charge.set(20);
        assert_eq!(limits.memory_left(), 80);
        drop(charge);
        assert_eq!(limits.memory(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_over_budget_waits_for_memory_but_not_for_ever() {
        let limits = limits(1, 100);
        limits.relief().await;
        let charge = limits.charge(100);
        let start = tokio::time::Instant::now();
        limits.relief().await;
        assert_eq!(start.elapsed(), PAUSE);
        let (_, ()) = tokio::join!(limits.relief(), async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            drop(charge);
        });
        assert_eq!(start.elapsed(), PAUSE + Duration::from_millis(5));
    }
}
