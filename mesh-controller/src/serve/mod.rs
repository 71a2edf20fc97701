//! The stream to node proxies (`culvert.mesh.v1.MeshControl/Follow`).

mod difference;
mod replicas;
mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use culvert_api::mesh::mesh_control_server::{MeshControl, MeshControlServer};
use culvert_api::mesh::{ControllerMessage, ProxyMessage};
use culvert_api::names::{NODE_PROXY_SERVICE_ACCOUNT, SYSTEM_NAMESPACE};
use culvert_identity::grpc::bearer;
use culvert_identity::token::{Caller, TokenError};
use culvert_kubernetes::Tokens;
use culvert_objects::types::PodSpec;
use culvert_objects::{Kind, Objects};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::hub::Handle;
use crate::metrics::Metrics;

pub use replicas::Reports;

/// Messages that may wait for a slow proxy before its session waits too.
const OUTGOING: usize = 4;
/// Largest message of a proxy, in bytes: pages of what it holds are below 1 MiB.
const LARGEST_MESSAGE: usize = 4 << 20;

/// Serves streams; one session each.
#[derive(Clone)]
pub struct Streams {
    tokens: Arc<Tokens>,
    hub: Handle,
    metrics: Metrics,
    next: Arc<AtomicU64>,
}

/// A caller that proved to be the node proxy of a node.
struct NodeProxy {
    node: String,
    until: SystemTime,
}

impl Streams {
    pub fn new(tokens: Arc<Tokens>, hub: Handle, metrics: Metrics) -> Self {
        Self { tokens, hub, metrics, next: Arc::default() }
    }

    /// The gRPC service.
    pub fn service(self) -> MeshControlServer<Self> {
        MeshControlServer::new(self).max_decoding_message_size(LARGEST_MESSAGE)
    }

    async fn authorize(&self, token: Option<&str>) -> Result<NodeProxy, Status> {
        let caller = caller(&self.tokens, token).await?;
        if !caller.is(SYSTEM_NAMESPACE, NODE_PROXY_SERVICE_ACCOUNT) {
            return Err(Status::permission_denied(format!(
                "{}/{} is not the service account of node proxies, {SYSTEM_NAMESPACE}/{NODE_PROXY_SERVICE_ACCOUNT}",
                caller.namespace, caller.service_account
            )));
        }
        let objects = self.hub.objects.borrow().clone();
        let node = node_of(&caller, &objects)?;
        Ok(NodeProxy { node, until: caller.expires })
    }
}

async fn caller(tokens: &Tokens, token: Option<&str>) -> Result<Caller, Status> {
    let token = token.ok_or_else(|| Status::unauthenticated("no bearer token"))?;
    tokens.verify(token).await.map_err(|error| match &error {
        TokenError::Unavailable(_) => Status::unavailable(error.to_string()),
        _ => Status::unauthenticated(error.to_string()),
    })
}

/// The node that the token proves: its node claim (Kubernetes 1.32 and later), else that of the pod it is bound to.
fn node_of(caller: &Caller, objects: &Objects) -> Result<String, Status> {
    let denied = |message: String| Err(Status::permission_denied(message));
    let (name, uid) = match (&caller.node, &caller.pod) {
        (Some(node), _) => (node.name.clone(), node.uid.clone()),
        (None, Some(pod)) => {
            let object = objects.find(Kind::Pod, &caller.namespace, &pod.name);
            let object = object.filter(|object| object.uid() == pod.uid);
            let spec = object.and_then(|object| object.spec::<PodSpec>().ok());
            match spec.and_then(|spec| spec.node_name) {
                Some(node) => (node, String::new()),
                None => return denied(format!("the token's pod {} is not known on any node", pod.name)),
            }
        }
        (None, None) => return denied("the token names neither a node nor a pod".to_owned()),
    };
    match objects.find(Kind::Node, "", &name) {
        Some(node) if uid.is_empty() || node.uid().is_empty() || node.uid() == uid => Ok(name),
        Some(_) => denied(format!("the token is for a former node {name}")),
        None => denied(format!("there is no node {name}")),
    }
}

#[tonic::async_trait]
impl MeshControl for Streams {
    type FollowStream = ReceiverStream<Result<ControllerMessage, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<ProxyMessage>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let peer = request.remote_addr();
        let proxy = self.authorize(bearer(request.metadata())).await.inspect_err(|status| {
            tracing::warn!(?peer, code = ?status.code(), reason = status.message(), "stream refused");
        })?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        let session = session::Session {
            id,
            node: proxy.node,
            until: proxy.until,
            hub: self.hub.clone(),
            metrics: self.metrics.clone(),
            outgoing,
        };
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}
