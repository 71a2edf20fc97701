//! `Expect: 100-continue` across the proxy: the client is told to go on when the server says so, or after a while, as
//! clients do by themselves (RFC 9110, 10.1.1).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::time::Sleep;

/// A server that does not know of expectations gets the body after this.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Shared {
    is_open: AtomicBool,
    waker: AtomicWaker,
}

/// Keeps a body back. Reading it is what makes hyper send `100 Continue` to the client.
#[derive(Debug)]
pub struct Gate {
    shared: Arc<Shared>,
    sleep: Option<Pin<Box<Sleep>>>,
}

/// Opens a [`Gate`]. Atomic only because hyper asks for it.
#[derive(Clone, Debug)]
pub struct Opener(Arc<Shared>);

/// A closed gate and what opens it.
pub fn gate() -> (Gate, Opener) {
    let shared = Arc::<Shared>::default();
    (Gate { shared: shared.clone(), sleep: None }, Opener(shared))
}

impl Opener {
    pub fn open(&self) {
        self.0.is_open.store(true, Ordering::Release);
        self.0.waker.wake();
    }
}

impl Gate {
    pub fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.shared.waker.register(cx.waker());
        if self.shared.is_open.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
        sleep.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_waits_for_the_server_but_not_for_ever() {
        let (mut gate, _opener) = self::gate();
        let start = Instant::now();
        poll_fn(|cx| gate.poll_open(cx)).await;
        assert_eq!(start.elapsed(), PATIENCE);

        let (mut gate, opener) = self::gate();
        let waiting = async {
            poll_fn(|cx| gate.poll_open(cx)).await;
            start.elapsed() - PATIENCE
        };
        let (waited, ()) = tokio::join!(waiting, async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            opener.open();
        });
        assert_eq!(waited, Duration::from_millis(10));
    }
}
