//! The deadline of a head or of a body.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// One timer for heads and bodies, set no more often than it runs out: a body that moves only says so.
#[derive(Debug, Default)]
pub struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    running: bool,
    moved: Option<Instant>,
    idle: Option<Duration>,
}

impl Timer {
    pub fn start(&mut self, after: Duration) {
        self.idle = None;
        self.set(Instant::now() + after);
    }

    /// Runs unless it does already; starts over when something has moved since.
    pub fn idle(&mut self, after: Duration) {
        if !self.running {
            self.idle = Some(after);
            self.moved = None;
            self.set(Instant::now() + after);
        }
    }

    pub fn moved(&mut self) {
        if self.running && self.idle.is_some() {
            self.moved = Some(Instant::now());
        }
    }

    pub fn stop(&mut self) {
        self.running = false;
        self.idle = None;
    }

    fn set(&mut self, at: Instant) {
        self.running = true;
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(at),
            None => self.sleep = Some(Box::pin(tokio::time::sleep_until(at))),
        }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(sleep) = self.sleep.as_mut().filter(|_| self.running) else { return Poll::Pending };
            ready!(sleep.as_mut().poll(cx));
            match (self.moved.take(), self.idle) {
                (Some(moved), Some(after)) => self.set(moved + after),
                _ => {
                    self.stop();
                    return Poll::Ready(());
                }
            }
        }
    }
}

/// Runs out at an instant that moves. Set anew no more often than it runs out.
#[derive(Debug, Default)]
pub struct Patience(Option<Pin<Box<Sleep>>>);

impl Patience {
    /// Ready once `due` has come.
    pub fn poll(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        loop {
            let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            if sleep.deadline() > due {
                sleep.as_mut().reset(due);
            }
            ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(due);
        }
    }
}
