//! Answering requests.

use culvert_objects::{Kind, ObjectKey, Scope};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::exec::{self, Exec};
use super::logs::{self, Follow};
use super::protocol::{Request, Response, SourceFile};
use super::requests;
use super::wait;
use super::wire::{Connection, Frame};
use crate::sandbox::cluster::Cluster;
use crate::sandbox::components::Components;
use crate::sandbox::kube_proxy::ServiceRules;
use crate::sandbox::kubelet::{Kubelet, Pod};
use crate::sandbox::network::Network;
use crate::sandbox::status::{self, View};
use crate::sandbox::store::Store;
use crate::sandbox::{apply, get};

/// Clients at the same time. Each is a command of the user.
const CLIENTS: usize = 512;
/// Time to send a request.
const REQUEST: Duration = Duration::from_secs(30);
/// Between two tries to accept when descriptors have run out.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What requests are about.
pub struct Served {
    pub cluster: Arc<Cluster>,
    pub store: Store,
    pub network: Arc<Network>,
    pub kubelet: Kubelet,
    pub components: Components,
    pub service_rules: ServiceRules,
    /// Fires when the sandbox is to end.
    pub end: CancellationToken,
    /// Fires when all of it has ended but the supervisor.
    pub ended: CancellationToken,
}

impl Served {
    /// The pod with that name, or the first of `deploy/NAME`.
    ///
    /// # Errors
    /// Why there is none, and where to look.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Arc<Pod>, String> {
        self.kubelet.pod(namespace, name).ok_or_else(|| {
            let key = ObjectKey::namespaced(Kind::Pod, namespace, name);
            match self.store.objects().get(&key) {
                Some(_) => format!("pod {namespace}/{name} is not on a node yet; `culvert sandbox wait` waits for it"),
                None => format!(
                    "there is no pod {namespace}/{name}; `culvert sandbox get pods -n {namespace}` lists those there \
                     are, and deploy/NAME is the first of a Deployment"
                ),
            }
        })
    }
}

/// The control socket's server.
pub struct Server {
    served: Arc<Served>,
    released: AtomicBool,
    clients: Arc<Semaphore>,
}

impl Server {
    #[must_use]
    pub fn new(served: Arc<Served>) -> Self {
        Self { served, released: AtomicBool::new(false), clients: Arc::new(Semaphore::new(CLIENTS)) }
    }

    /// Answers requests until the task is dropped.
    pub async fn run(self, listener: UnixListener) {
        let server = Arc::new(self);
        loop {
            let Ok(turn) = Arc::clone(&server.clients).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = Arc::clone(&server);
                    tokio::spawn(async move {
                        server.serve(stream).await;
                        drop(turn);
                    });
                }
                Err(error) => {
                    warn!(%error, "the control socket cannot accept");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    async fn serve(&self, stream: UnixStream) {
        let connection = Connection::new(stream);
        let frame = match tokio::time::timeout(REQUEST, connection.receive()).await {
            Ok(Ok(Some(frame))) => frame,
            // Somebody looked whether anybody answers.
            Ok(Ok(None)) => return,
            other => {
                debug!(?other, "a client sent no request");
                return;
            }
        };
        let response = match frame.message() {
            Ok(request) => self.answer(&connection, request, frame).await,
            Err(error) => Response::failed(format!("the request is not understood: {error}")),
        };
        if let Err(error) = connection.send(&response, &[]).await {
            debug!(%error, "a client went away before its answer");
        }
    }

    async fn answer(&self, connection: &Connection, request: Request, frame: Frame) -> Response {
        let served = &self.served;
        match request {
            Request::Hold => self.hold(connection).await,
            Request::Release => {
                self.released.store(true, Ordering::Relaxed);
                Response::Done
            }
            Request::Apply { files } => {
                let manifest = SourceFile::parse_all(&files);
                report(apply::apply(&served.store, &served.cluster, manifest))
            }
            Request::Delete { files } => report(apply::delete(&served.store, SourceFile::parse_all(&files))),
            Request::DeleteOne { kind, namespace, name } => match key(&kind, namespace, name) {
                Ok(key) => report(apply::delete_one(&served.store, key)),
                Err(message) => Response::failed(message),
            },
            Request::Get { kind, namespace, name } => {
                outcome(get::get(&served.store, &kind, namespace.as_deref(), name.as_deref()))
            }
            Request::Objects => {
                let objects = served.store.all_merged();
                outcome(serde_json::to_value(objects).map(|value| (String::new(), value)))
            }
            Request::Status { plaintext } => {
                let view = if plaintext { View::Plaintext } else { View::Overview };
                outcome(status::status(served, view).await)
            }
            Request::Wait { seconds } => wait::run(served, Duration::from_secs(seconds)).await,
            Request::Exec { place, command, environment, directory } => {
                let exec = Exec { place, command, environment, directory };
                exec::run(served, connection, exec, frame.descriptors).await
            }
            Request::Signal { .. } => Response::failed("there is no command to send a signal to"),
            Request::Logs { place, tail, follow } => {
                let follow = if follow { Follow::Yes } else { Follow::No };
                logs::run(served, connection, place, tail, follow).await
            }
            Request::Requests { follow } => {
                let follow = if follow { Follow::Yes } else { Follow::No };
                requests::run(served, connection, follow).await
            }
            Request::Link { node, state } => outcome_done(served.network.set_link(&node, state).await),
            Request::Component { name, action } => match name.parse() {
                Ok(name) => outcome_done(served.components.act(&name, action).await),
                Err(message) => Response::failed(message),
            },
            Request::Down => {
                served.end.cancel();
                served.ended.cancelled().await;
                Response::Done
            }
        }
    }

    /// Ends the sandbox when the client goes away, unless it was released before.
    async fn hold(&self, connection: &Connection) -> Response {
        if connection.send(&Response::Done, &[]).await.is_ok() {
            tokio::select! {
                _ = connection.receive() => {}
                () = self.served.end.cancelled() => {}
            }
        }
        if !self.released.load(Ordering::Relaxed) {
            self.served.end.cancel();
        }
        Response::Done
    }
}

fn key(kind: &str, namespace: Option<String>, name: String) -> Result<ObjectKey, String> {
    let kind = get::parse_kind(kind)?;
    Ok(match kind.scope() {
        Scope::Cluster => ObjectKey::cluster(kind, name),
        Scope::Namespaced => {
            ObjectKey::namespaced(kind, namespace.unwrap_or_else(|| "default".to_owned()), name)
        }
    })
}

fn report(result: Result<apply::Report, impl ToString>) -> Response {
    outcome(result.map(|report| {
        let value = serde_json::to_value(&report).unwrap_or_default();
        (report.to_string(), value)
    }))
}

fn outcome(result: Result<(String, serde_json::Value), impl ToString>) -> Response {
    match result {
        Ok((text, value)) => Response::Report { text, value },
        Err(error) => Response::failed(error.to_string()),
    }
}

fn outcome_done(result: Result<(), impl ToString>) -> Response {
    match result {
        Ok(()) => Response::Done,
        Err(error) => Response::failed(error.to_string()),
    }
}
