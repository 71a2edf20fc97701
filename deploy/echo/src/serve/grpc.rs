//! gRPC echo and the health service.

use crate::identity::PodIdentity;
use crate::proto::echo::echo_server::{Echo, EchoServer};
use crate::proto::echo::{EchoReply, EchoRequest, StreamRequest};
use crate::proto::health::health_check_response::ServingStatus;
use crate::proto::health::health_server::{Health, HealthServer};
use crate::proto::health::{HealthCheckRequest, HealthCheckResponse};
use futures::stream::{self, BoxStream, StreamExt};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

/// Where the connection came from, put into every request's extensions.
#[derive(Clone)]
struct Service {
    identity: Arc<PodIdentity>,
    remote: SocketAddr,
}

/// Serves for ever.
pub(crate) async fn serve(listener: TcpListener, identity: Arc<PodIdentity>) {
    loop {
        let stream = super::accept(&listener).await;
        let Ok(remote) = stream.peer_addr() else { continue };
        let service = Service { identity: Arc::clone(&identity), remote };
        let routes = Routes::new(EchoServer::new(service)).add_service(HealthServer::new(Healthy)).prepare();
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
            // How a client's connection ends is the client's business.
            let _ = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes)).await;
        });
    }
}

impl Service {
    fn reply(&self, message: String, sequence: u32) -> EchoReply {
        EchoReply {
            message,
            pod: self.identity.pod.clone(),
            namespace: self.identity.namespace.clone(),
            service_account: self.identity.service_account.clone(),
            node: self.identity.node.clone(),
            remote: self.remote.to_string(),
            sequence,
        }
    }
}

#[tonic::async_trait]
impl Echo for Service {
    async fn unary(&self, request: Request<EchoRequest>) -> Result<Response<EchoReply>, Status> {
        let request = request.into_inner();
        tokio::time::sleep(Duration::from_millis(u64::from(request.delay_ms))).await;
        match i32::try_from(request.code).map(Code::from_i32) {
            Ok(Code::Ok) => Ok(Response::new(self.reply(request.message, 0))),
            Ok(code) => Err(Status::new(code, request.message)),
            Err(_) => Err(Status::invalid_argument("code out of range")),
        }
    }

    type ServerStreamStream = BoxStream<'static, Result<EchoReply, Status>>;

    async fn server_stream(
        &self,
        request: Request<StreamRequest>,
    ) -> Result<Response<Self::ServerStreamStream>, Status> {
        let request = request.into_inner();
        let service = self.clone();
        let interval = Duration::from_millis(u64::from(request.interval_ms));
        let replies = stream::iter(0..request.count).then(move |sequence| {
            let reply = service.reply(request.message.clone(), sequence);
            async move {
                if sequence > 0 {
                    tokio::time::sleep(interval).await;
                }
                Ok(reply)
            }
        });
        Ok(Response::new(replies.boxed()))
    }
}

/// Always serving: a pod that should fail its probe uses an HTTP or exec probe.
struct Healthy;

#[tonic::async_trait]
impl Health for Healthy {
    async fn check(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }
}
