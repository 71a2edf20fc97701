//! Bytes of bodies between two connections: taken from one, not written to the other yet. They count as buffered by the
//! workload, wherever a library keeps them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::task::AtomicWaker;

use crate::limits::WorkloadLimits;

/// What is on its way in one direction of a request or of a connection.
#[derive(Clone, Debug)]
pub struct Flow(Arc<OnTheWay>);

#[derive(Debug)]
struct OnTheWay {
    limits: Arc<WorkloadLimits>,
    bytes: AtomicU64,
    waker: AtomicWaker,
}

/// Bytes that count until the last part of them is dropped.
struct Carried {
    bytes: Bytes,
    way: Arc<OnTheWay>,
}

impl AsRef<[u8]> for Carried {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.way.sent(self.bytes.len() as u64);
    }
}

impl OnTheWay {
    fn sent(&self, bytes: u64) {
        let take = |before: u64| Some(before.saturating_sub(bytes));
        // The closure always has an answer.
        let before = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).unwrap_or_default();
        self.limits.give_back(before.min(bytes));
        if before > 0 && before <= bytes {
            self.waker.wake();
        }
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        self.limits.give_back(*self.bytes.get_mut());
    }
}

impl Flow {
    pub fn new(limits: Arc<WorkloadLimits>) -> Self {
        Self(Arc::new(OnTheWay { limits, bytes: AtomicU64::new(0), waker: AtomicWaker::new() }))
    }

    /// Counts bytes that set out; [`Flow::sent`] says when they have arrived.
    pub fn add(&self, bytes: usize) {
        self.0.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.0.limits.take(bytes as u64);
    }

    /// Bytes have arrived. More than set out are no harm: what frames them is written with them.
    pub fn sent(&self, bytes: usize) {
        self.0.sent(bytes as u64);
    }

    /// Nothing is on its way any more.
    pub fn clear(&self) {
        self.0.sent(u64::MAX);
    }

    /// The same bytes, which count for as long as they are kept by anybody.
    pub fn carry(&self, bytes: Bytes) -> Bytes {
        if bytes.is_empty() {
            return bytes;
        }
        self.add(bytes.len());
        Bytes::from_owner(Carried { bytes, way: self.0.clone() })
    }

    /// Whether more may set out: always within the workload's budget; over it only when nothing is on its way, so that
    /// nobody stands still whose bytes are taken.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let has_room = || !self.0.limits.is_over_budget() || self.0.bytes.load(Ordering::Relaxed) == 0;
        if has_room() {
            return Poll::Ready(());
        }
        self.0.waker.register(cx.waker());
        if has_room() { Poll::Ready(()) } else { Poll::Pending }
    }

    pub fn is_empty(&self) -> bool {
        self.0.bytes.load(Ordering::Relaxed) == 0
    }
}

/// Where a body counts as buffered while it is neither here nor there.
pub enum Way {
    /// Not known yet.
    Nowhere,
    /// A library copies the bytes; whoever writes them says so.
    Copied(Flow),
    /// A library keeps the bytes themselves.
    Kept(Flow),
}

impl Way {
    /// Whether more may set out.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Nowhere => Poll::Ready(()),
            Self::Copied(flow) | Self::Kept(flow) => flow.poll_room(cx),
        }
    }

    /// The same bytes, counted.
    pub fn carry(&self, bytes: Bytes) -> Bytes {
        match self {
            Self::Nowhere => bytes,
            Self::Copied(flow) => {
                flow.add(bytes.len());
                bytes
            }
            Self::Kept(flow) => flow.carry(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::FutureExt;

    use super::*;
    use crate::tunnel::testing::at_most;

    #[test]
    fn bytes_count_until_the_last_part_of_them_is_gone() {
        let limits = WorkloadLimits::new(at_most(1, 100));
        let flow = Flow::new(limits.clone());
        let mut bytes = flow.carry(Bytes::from(vec![0; 60]));
        let part = bytes.split_to(10);
        drop(bytes);
        assert_eq!(limits.memory(), 60);
        drop(part);
        assert_eq!(limits.memory(), 0);
        flow.add(40);
        flow.sent(10);
        assert_eq!(limits.memory(), 30);
        flow.sent(50);
        assert_eq!(limits.memory(), 0, "never below nothing");
        flow.add(40);
        drop(flow);
        assert_eq!(limits.memory(), 0);
    }

    #[tokio::test]
    async fn over_the_budget_a_flow_goes_on_only_when_it_is_empty() {
        let limits = WorkloadLimits::new(at_most(1, 100));
        let flow = Flow::new(limits.clone());
        let first = flow.carry(Bytes::from(vec![0; 99]));
        assert!(poll_fn(|cx| flow.poll_room(cx)).now_or_never().is_some(), "within the budget");
        let _others = limits.charge(50);
        let other = Flow::new(limits.clone());
        assert!(poll_fn(|cx| other.poll_room(cx)).now_or_never().is_some(), "nothing of it is on its way");
        let mut waiting = room(&flow);
        assert!((&mut waiting).now_or_never().is_none());
        drop(first);
        waiting.await;
    }

    fn room(flow: &Flow) -> impl Future<Output = ()> + Unpin + use<> {
        let flow = flow.clone();
        poll_fn(move |cx| flow.poll_room(cx))
    }
}
