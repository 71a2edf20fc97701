//! Requests of a connection, captured or accepted for a Gateway, one by one: read strictly, routed, filtered, sent to an endpoint each.
//!
//! `serve` reads a connection; `respond` is what happens to one request, from top to bottom; `forward` takes it to an
//! endpoint. Below them: `reader`, `head` and `chunks` (what is let in), `target` (host and path), `hop` (what does not cross
//! a proxy), `pool`, `client` and `upstream` (connections to endpoints), `body` (where a request ends), `answer` (what
//! Culvert says itself). `route` is the pure part that `culvert explain` shares.

pub mod answer;
mod body;
pub mod chunks;
mod client;
pub mod edge;
mod expect;
mod forward;
pub mod head;
pub mod hop;
mod interim;
mod outgoing;
mod parent;
mod pool;
pub mod reader;
mod respond;
pub mod route;
mod serve;
mod switch;
pub mod target;
mod timer;
mod upstream;

use std::time::Duration;

use tokio::task::spawn_local;
use tokio_util::sync::CancellationToken;

pub use parent::Parent;
pub use pool::Pool;
pub(crate) use serve::serve;

/// What clients may take. Times are deadlines, sizes are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of a request's head.
    pub head_bytes: usize,
    /// From a head's first byte to its last; on a port with routes also from the connection's start to the first byte.
    pub head: Duration,
    /// Between two bytes of a request body over HTTP/1.
    pub body_idle: Duration,
    /// Without any request.
    pub idle: Duration,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 64 << 10,
            head: Duration::from_secs(10),
            body_idle: Duration::from_secs(60),
            idle: Duration::from_secs(3600),
            streams: 1024,
        }
    }
}

/// Runs hyper's tasks on this worker, until the pod is removed.
#[derive(Clone, Debug)]
struct LocalTasks(CancellationToken);

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalTasks {
    fn execute(&self, task: F) {
        let cancel = self.0.clone();
        spawn_local(async move {
            cancel.run_until_cancelled(task).await;
        });
    }
}
