//! One request's stream of an HTTP/2 connection, watched from outside: hyper asks a response's body for nothing while the
//! client takes nothing, so a body cannot tell by itself that its client has stalled.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::body::Deadline;
use super::timer::Patience;
use crate::reason::Reason;
use crate::telemetry::{Ending, Failure};

tokio::task_local! {
    static STREAM: Rc<Stream>;
}

/// Runs the streams of a client's connection on this worker, until they are cut.
#[derive(Clone, Debug)]
pub struct StreamTasks(pub CancellationToken);

impl<F: Future + 'static> hyper::rt::Executor<F> for StreamTasks {
    fn execute(&self, task: F) {
        let cut = self.0.clone();
        let stream = Rc::new(Stream {
            given: Cell::default(),
            patience: Cell::new(Duration::MAX),
            deadline: Cell::default(),
            ending: Rc::new(Ending::new(cut.clone())),
        });
        // Boxed, because a future is moved eight times until it is a task, and this is every request over HTTP/2.
        let mut task = Box::pin(STREAM.scope(stream.clone(), task));
        spawn_local(async move {
            let mut patience = Patience::default();
            let watched = poll_fn(|cx| {
                if task.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                stream.poll_stalled(cx, &mut patience)
            });
            cut.run_until_cancelled(watched).await;
        });
    }
}

/// What is known of a stream by those who do not drive it.
#[derive(Debug)]
pub struct Stream {
    /// Since when the client has been given something that it has not taken.
    given: Cell<Option<Instant>>,
    /// How long it may take for that.
    patience: Cell<Duration>,
    /// Of the response as a whole.
    deadline: Cell<Option<Deadline>>,
    pub ending: Rc<Ending>,
}

impl Stream {
    /// The one whose task runs now; none over HTTP/1.
    pub fn current() -> Option<Rc<Self>> {
        STREAM.try_with(Rc::clone).ok()
    }

    /// From now on the client may be slow, but not for longer than this, and not beyond the deadline.
    pub fn watch(&self, patience: Duration, deadline: Option<Deadline>) {
        self.patience.set(patience);
        self.deadline.set(deadline);
    }

    pub fn given(&self) {
        self.given.set(Some(Instant::now()));
    }

    pub fn taken(&self) {
        self.given.set(None);
    }

    /// Ready when the client has stalled for too long; the reason is noted.
    fn poll_stalled(&self, cx: &mut Context<'_>, patience: &mut Patience) -> Poll<()> {
        let Some(given) = self.given.get() else { return Poll::Pending };
        let after = self.patience.get();
        let Some(due) = given.checked_add(after) else { return Poll::Pending };
        let deadline = self.deadline.get().filter(|deadline| deadline.at < due);
        ready!(patience.poll(cx, deadline.map_or(due, |deadline| deadline.at)));
        self.ending.set(match deadline {
            Some(deadline) => deadline.failure(),
            None => stalled(after),
        });
        Poll::Ready(())
    }
}

/// The client is there, and does not read.
pub fn stalled(after: Duration) -> Failure {
    Failure::new(Reason::IdleTimeout, format!("the client took nothing of the response for {after:?}"))
}
