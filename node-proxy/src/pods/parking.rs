//! Lives of pods come to rest while another process may take over: where they wait for the next event anyway, and so never
//! in the middle of a change of rules.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Working,
    /// At rest until told otherwise.
    Parked,
    /// For good.
    Retired,
}

/// Of all lives.
#[derive(Debug)]
pub(super) struct Parking {
    mode: watch::Sender<Mode>,
    parked: watch::Sender<usize>,
}

impl Default for Parking {
    fn default() -> Self {
        Self { mode: watch::Sender::new(Mode::Working), parked: watch::Sender::new(0) }
    }
}

impl Parking {
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Returns when so many lives are at rest.
    pub async fn parked(&self, count: usize) {
        // Fails only without a sender, and `self` is one.
        let _ = self.parked.subscribe().wait_for(|parked| *parked >= count).await;
    }

    /// Has a life work until it is retired. It is dropped at a place of rest.
    pub async fn until_retired(&self, rest: Arc<Rest>, work: impl Future<Output = Infallible>) {
        let mut work = pin!(work);
        let mut mode = self.mode.subscribe();
        loop {
            let now = *mode.borrow_and_update();
            match now {
                Mode::Retired => return,
                Mode::Working => {
                    tokio::select! {
                        biased;
                        _ = mode.changed() => {}
                        never = work.as_mut() => match never {},
                    }
                }
                Mode::Parked => {
                    std::future::poll_fn(|context| {
                        if !rest.is_taken() && work.as_mut().poll(context).is_ready() {
                            return Poll::Ready(());
                        }
                        if rest.is_taken() { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                    let _parked = Parked::new(&self.parked);
                    let _ = mode.wait_for(|mode| *mode != Mode::Parked).await;
                    mode.mark_changed();
                }
            }
        }
    }
}

/// Counts one life at rest; also one that ends there.
struct Parked<'p>(&'p watch::Sender<usize>);

impl<'p> Parked<'p> {
    fn new(count: &'p watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Whether one life waits for an event, with nothing half done.
#[derive(Debug, Default)]
pub(super) struct Rest(AtomicBool);

impl Rest {
    fn is_taken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Until the guard is dropped.
    pub fn take(self: &Arc<Self>) -> Resting {
        self.0.store(true, Ordering::Relaxed);
        Resting(self.clone())
    }
}

pub(super) struct Resting(Arc<Rest>);

impl Drop for Resting {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    const EVENT: Duration = Duration::from_millis(10);
    const STEP: Duration = Duration::from_secs(1);

    /// Counts the steps begun and done.
    async fn work(rest: Arc<Rest>, begun: Arc<AtomicU32>, done: Arc<AtomicU32>) -> Infallible {
        loop {
            {
                let _resting = rest.take();
                sleep(EVENT).await;
            }
            begun.fetch_add(1, Ordering::Relaxed);
            sleep(STEP).await;
            done.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_is_done_before_a_life_rests_and_it_goes_on_where_it_was() {
        let (parking, rest) = (Arc::new(Parking::default()), Arc::new(Rest::default()));
        let (begun, done) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let counts = || (begun.load(Ordering::Relaxed), done.load(Ordering::Relaxed));
        let life = {
            let (parking, work) = (parking.clone(), work(rest.clone(), begun.clone(), done.clone()));
            tokio::spawn(async move { parking.until_retired(rest, work).await })
        };
        sleep(EVENT + STEP / 2).await;
        assert_eq!(counts(), (1, 0), "in the middle of a step");
        parking.set(Mode::Parked);
        parking.parked(1).await;
        assert_eq!(counts(), (1, 1));
        sleep(10 * STEP).await;
        assert_eq!(counts(), (1, 1), "at rest");
        parking.set(Mode::Working);
        sleep(STEP / 2).await;
        assert_eq!(counts(), (2, 1), "the event came meanwhile");
        parking.set(Mode::Parked);
        parking.parked(1).await;
        parking.set(Mode::Retired);
        life.await.unwrap();
        assert_eq!(counts(), (2, 2));
        assert!(timeout(STEP, parking.parked(1)).await.is_err(), "it is not counted any more");
    }
}
