//! What node proxies have reported, to the other replicas (`culvert.mesh.v1.MeshReplicas/Reports`).

use std::sync::Arc;

use culvert_api::mesh::mesh_replicas_server::{MeshReplicas, MeshReplicasServer};
use culvert_api::mesh::{ReplicaHello, ReplicaReports};
use culvert_api::names::{CONTROLLER_SERVICE_ACCOUNT, SYSTEM_NAMESPACE};
use culvert_identity::grpc::bearer;
use culvert_kubernetes::Tokens;
use futures::{Stream, StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::hub::{Event, Handle};

/// Messages that may wait for a replica before it is let go.
const WAITING: usize = 1024;

/// Serves the other replicas.
#[derive(Clone)]
pub struct Reports {
    tokens: Arc<Tokens>,
    hub: Handle,
    replica: String,
}

impl Reports {
    /// `replica` is this one's name.
    pub fn new(tokens: Arc<Tokens>, hub: Handle, replica: String) -> Self {
        Self { tokens, hub, replica }
    }

    /// The gRPC service.
    pub fn service(self) -> MeshReplicasServer<Self> {
        MeshReplicasServer::new(self)
    }
}

#[tonic::async_trait]
impl MeshReplicas for Reports {
    type ReportsStream = std::pin::Pin<Box<dyn Stream<Item = Result<ReplicaReports, Status>> + Send>>;

    async fn reports(&self, request: Request<ReplicaHello>) -> Result<Response<Self::ReportsStream>, Status> {
        let caller = super::caller(&self.tokens, bearer(request.metadata())).await?;
        if !caller.is(SYSTEM_NAMESPACE, CONTROLLER_SERVICE_ACCOUNT) {
            return Err(Status::permission_denied("only controllers are told what node proxies report"));
        }
        let hello = ReplicaReports { replica: self.replica.clone(), nodes: Vec::new() };
        let asks = &request.get_ref().replica;
        let own = *asks == self.replica;
        let (reports, told) = mpsc::channel(WAITING);
        // Itself, by way of the Service's addresses: it hears its name and leaves.
        if !own {
            tracing::info!(replica = asks, "a replica follows the reports");
            let gone = |_| Status::unavailable("the controller is ending");
            self.hub.events.send(Event::Follower { reports }).await.map_err(gone)?;
        }
        let stream = stream::iter([hello]).chain(ReceiverStream::new(told)).map(Ok);
        Ok(Response::new(stream.boxed()))
    }
}
