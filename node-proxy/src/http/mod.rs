//! Requests of a connection, captured or accepted for a Gateway, one by one: read strictly, routed, filtered, sent to an endpoint each.
//!
//! `serve` reads a connection; `respond` is what happens to one request, from top to bottom; `decision` says where it goes, `forward` takes it to an
//! endpoint. Below them: `reader`, `head` and `chunks` (what is let in of
//! HTTP/1), `frames`,
//! `heads` and `blocks` (of HTTP/2), `target` (host and path), `hop` (what does not cross
//! a proxy), `pool`, `client` and `upstream` (connections to endpoints), `mirror` and `copies` (what nobody waits for), `retry` and `replay` (sending again), `session` (which endpoint a client stays at), `request_body` and
//! `body` (where a request ends), `flow` (what counts as
//! buffered), `stream` (a stream whose client stalls), `answer` (what
//! Culvert says itself). `route` is the pure part that `culvert explain` shares.

pub mod answer;
pub mod blocks;
mod body;
pub mod chunks;
mod client;
mod copies;
mod decision;
pub mod edge;
mod expect;
mod flow;
mod forward;
mod frames;
pub mod head;
mod heads;
pub mod hop;
mod interim;
mod mirror;
mod names;
mod outgoing;
mod parent;
mod pool;
pub mod reader;
mod replay;
mod request_body;
mod respond;
mod retry;
pub mod route;
mod serve;
mod session;
mod stream;
mod switch;
pub mod target;
mod timer;
mod upstream;
mod verdict;

use tokio::task::spawn_local;
use tokio_util::sync::CancellationToken;

pub use parent::Parent;
pub use pool::Pool;
pub(crate) use serve::serve;

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
