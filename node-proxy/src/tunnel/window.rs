//! The size of the streams' flow-control windows of one tunnel.
//!
//! HTTP/2 lets a receiver enlarge one stream's window; the `h2` crate only lets it enlarge all streams' windows of a
//! connection, by SETTINGS. So the size is one per tunnel: it doubles while a stream is drained as fast as it fills,
//! as long as all open streams together, stalled at once, would take at most half of what the workload may still
//! buffer; and it shrinks when the workload is over its budget.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use super::MAX_FRAME;
use crate::limits::WorkloadLimits;

/// Where every tunnel starts. All sizes are whole frames: what is left of a window would be a frame of its own.
pub(super) const START: u32 = 4 * MAX_FRAME;
const LARGEST: u32 = 64 * MAX_FRAME;
const SMALLEST: usize = MAX_FRAME as usize;
/// What a stream has delivered is told to the peer once it is this part of the window: each telling is a packet, which the peer
/// has to be woken up for.
const TOLD_PARTS: u32 = 8;
/// A stream that has drained this many windows without waiting for its reader asks for a larger one.
const DRAINED_WINDOWS: usize = 2;

/// Shared by a tunnel's driver and its streams.
#[derive(Debug)]
pub struct Window {
    limits: Arc<WorkloadLimits>,
    size: Cell<u32>,
    streams: Cell<u32>,
    wants_more: Cell<bool>,
    changed: Notify,
    /// Streams that have something untold, or had.
    waiting: RefCell<Vec<Waker>>,
}

impl Window {
    pub fn new(limits: Arc<WorkloadLimits>) -> Rc<Self> {
        Rc::new(Self {
            limits,
            size: Cell::new(START),
            streams: Cell::new(0),
            wants_more: Cell::new(false),
            changed: Notify::new(),
            waiting: RefCell::default(),
        })
    }

    /// Counts a stream until the guard is dropped.
    pub fn stream(self: &Rc<Self>) -> OpenStream {
        self.streams.set(self.streams.get() + 1);
        OpenStream(self.clone())
    }

    /// Bytes a stream may have in flight.
    pub fn size(&self) -> u32 {
        self.size.get()
    }

    /// Bytes that a stream may have delivered without telling its peer. Less than the smallest window, or a part of the window in
    /// force: so the peer can always go on, as long as a window that shrinks is followed ([`Window::poll_untold`]).
    pub fn most_untold(&self) -> usize {
        ((self.size.get() / TOLD_PARTS) as usize).max(SMALLEST - 1)
    }

    /// For a stream that waits for more: ready when `untold` is more than may be, because the window has become smaller.
    pub fn poll_untold(&self, untold: usize, cx: &Context<'_>) -> Poll<()> {
        if untold > self.most_untold() {
            return Poll::Ready(());
        }
        // Less never stops a peer.
        if untold >= SMALLEST {
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }

    /// A stream has drained `bytes` since it started or last stalled. Returns from where it goes on counting.
    pub fn drained(&self, bytes: usize) -> usize {
        if bytes < DRAINED_WINDOWS * self.size.get() as usize {
            return bytes;
        }
        if self.size.get() < LARGEST && self.next_size(Asked::Growth) != self.size.get() {
            self.wants_more.set(true);
            self.changed.notify_one();
        }
        0
    }

    /// A stream's reader does not keep up.
    pub fn stalled(&self) {
        if self.limits.is_over_budget() {
            self.changed.notify_one();
        }
    }

    /// Waits until another size is due and returns it.
    pub(super) async fn due(&self) -> u32 {
        loop {
            self.changed.notified().await;
            let asked = if self.wants_more.take() { Asked::Growth } else { Asked::Nothing };
            let next = self.next_size(asked);
            if next != self.size.get() {
                return next;
            }
        }
    }

    /// The size is in force.
    pub(super) fn applied(&self, size: u32) {
        if self.size.replace(size) > size {
            self.wake();
        }
    }

    fn wake(&self) {
        self.waiting.take().into_iter().for_each(Waker::wake);
    }

    fn next_size(&self, asked: Asked) -> u32 {
        next_size(self.size.get(), self.streams.get(), asked, self.limits.memory_left())
    }
}

/// A stream that counts towards its tunnel's exposure.
#[derive(Debug)]
pub struct OpenStream(Rc<Window>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
        // A waker keeps its task's memory. The others wait again.
        self.0.wake();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Growth,
    Nothing,
}

fn next_size(size: u32, streams: u32, asked: Asked, memory_left: u64) -> u32 {
    if memory_left == 0 {
        return (size / 2).max(MAX_FRAME);
    }
    let larger = (size * 2).min(LARGEST);
    let exposure = u64::from(larger) * u64::from(streams.max(1));
    match asked {
        Asked::Growth if exposure <= memory_left / 2 => larger,
        Asked::Growth | Asked::Nothing => size,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::Relaxed;
    use std::task::Wake;

    use super::*;
    use crate::tunnel::testing::at_most;

    const MIB: u64 = 1 << 20;

    #[test]
    fn it_grows_within_the_budget_and_shrinks_over_it() {
        assert_eq!(next_size(START, 1, Asked::Growth, 64 * MIB), 2 * START);
        assert_eq!(next_size(LARGEST, 1, Asked::Growth, 64 * MIB), LARGEST);
        assert_eq!(
            next_size(START, 1000, Asked::Growth, 64 * MIB),
            START,
            "a thousand streams could stall at once"
        );
        assert_eq!(next_size(START, 1, Asked::Nothing, 64 * MIB), START);
        assert_eq!(next_size(LARGEST, 1, Asked::Growth, 0), LARGEST / 2);
        assert_eq!(next_size(MAX_FRAME, 1, Asked::Growth, 0), MAX_FRAME);
    }

    #[tokio::test]
    async fn a_stream_that_is_drained_asks_once_per_two_windows() {
        let limits = WorkloadLimits::new(at_most(1, 64 * MIB));
        let window = Window::new(limits);
        let _stream = window.stream();
        assert_eq!(window.drained(START as usize), START as usize);
        assert_eq!(window.drained(2 * START as usize), 0);
        let due = window.due().await;
        assert_eq!(due, 2 * START);
        window.applied(due);
        assert_eq!(window.drained(3 * START as usize), 3 * START as usize);
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }

    #[test]
    fn a_stream_with_much_untold_is_woken_when_the_window_shrinks() {
        let window = Window::new(WorkloadLimits::new(at_most(1, 64 * MIB)));
        window.applied(LARGEST);
        let stream = window.stream();
        let (much, little) = ((LARGEST / TOLD_PARTS) as usize, SMALLEST - 1);
        assert_eq!(window.most_untold(), much);
        let woken = Arc::new([Woken::default(), Woken::default()].map(Arc::new));
        let wakers = woken.each_ref().map(|woken| Waker::from(woken.clone()));
        let poll = |untold, waker: &Waker| window.poll_untold(untold, &Context::from_waker(waker));
        assert!(poll(much, &wakers[0]).is_pending() && poll(little, &wakers[1]).is_pending());
        window.applied(LARGEST / 2);
        assert_eq!(woken.each_ref().map(|woken| woken.0.load(Relaxed)), [true, false]);
        assert!(poll(much, &wakers[0]).is_ready());
        assert!(poll(much / 2, &wakers[0]).is_pending());
        drop(stream);
        assert!(window.waiting.borrow().is_empty(), "no task is kept");
        window.applied(MAX_FRAME);
        assert_eq!(window.most_untold(), little, "less than a whole window");
    }
}
