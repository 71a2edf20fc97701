//! gRPC echo and the health service. A call of any other service is answered as an echo, so that routes by service and
//! method can be told apart.

use crate::identity::PodIdentity;
use crate::proto::echo::echo_server::{self, Echo, EchoServer};
use crate::proto::echo::{EchoReply, EchoRequest, StreamRequest};
use crate::proto::health::health_check_response::ServingStatus;
use crate::proto::health::health_server::{self, Health, HealthServer};
use crate::proto::health::{HealthCheckRequest, HealthCheckResponse};
use futures::stream::{self, BoxStream, StreamExt};
use http::HeaderValue;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

/// Where the connection came from, put into every request's extensions.
#[derive(Clone)]
struct Service {
    identity: Arc<PodIdentity>,
    remote: SocketAddr,
}

/// The path that was called, where it is not one of ours.
const CALLED: &str = "x-echo-called-path";

/// Serves for ever.
pub(crate) async fn serve(listener: TcpListener, identity: Arc<PodIdentity>) {
    loop {
        let stream = super::accept(&listener).await;
        let Ok(remote) = stream.peer_addr() else { continue };
        let service = Service { identity: Arc::clone(&identity), remote };
        let routes = Routes::new(EchoServer::new(service)).add_service(HealthServer::new(Healthy)).prepare();
        let routes = TowerToHyperService::new(routes);
        let routes = service_fn(move |request| routes.call(answerable(request)));
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
            // How a client's connection ends is the client's business.
            let _ = builder.serve_connection(TokioIo::new(stream), routes).await;
        });
    }
}

/// Sends calls of services that are not there to the echo.
fn answerable(mut request: http::Request<Incoming>) -> http::Request<Incoming> {
    let path = request.uri().path().to_owned();
    let is_ours = [echo_server::SERVICE_NAME, health_server::SERVICE_NAME].iter().any(|name| {
        path.strip_prefix('/')
            .and_then(|path| path.strip_prefix(name))
            .is_some_and(|rest| rest.starts_with('/'))
    });
    if let (false, Ok(called)) = (is_ours, HeaderValue::from_str(&path)) {
        request.headers_mut().insert(CALLED, called);
        *request.uri_mut() = http::Uri::from_static("/culvert.echo.v1.Echo/Unary");
    }
    request
}

/// The path that was called and the other headers.
fn told(metadata: &MetadataMap, own_path: &str) -> (String, HashMap<String, String>) {
    let mut headers: HashMap<String, String> = HashMap::new();
    for (name, value) in metadata.as_ref() {
        let value = String::from_utf8_lossy(value.as_bytes());
        headers
            .entry(name.as_str().to_owned())
            .and_modify(|all| *all = format!("{all}, {value}"))
            .or_insert_with(|| value.into_owned());
    }
    let called = headers.remove(CALLED);
    (called.unwrap_or_else(|| own_path.to_owned()), headers)
}

impl Service {
    fn reply(&self, message: String, sequence: u32, metadata: &MetadataMap, own_path: &str) -> EchoReply {
        let (path, headers) = told(metadata, own_path);
        EchoReply {
            message,
            pod: self.identity.pod.clone(),
            namespace: self.identity.namespace.clone(),
            service_account: self.identity.service_account.clone(),
            node: self.identity.node.clone(),
            remote: self.remote.to_string(),
            sequence,
            path,
            headers,
        }
    }

    /// Who answers, also where the answer is a status alone.
    fn mark(&self) -> MetadataMap {
        let pod = HeaderValue::from_str(&self.identity.pod).ok();
        let name = http::HeaderName::from_static("x-echo-pod");
        MetadataMap::from_headers(pod.into_iter().map(|pod| (name.clone(), pod)).collect())
    }

    fn marked<T>(&self, message: T) -> Response<T> {
        Response::from_parts(self.mark(), message, tonic::Extensions::default())
    }
}

#[tonic::async_trait]
impl Echo for Service {
    async fn unary(&self, request: Request<EchoRequest>) -> Result<Response<EchoReply>, Status> {
        let (metadata, _, request) = request.into_parts();
        tokio::time::sleep(Duration::from_millis(u64::from(request.delay_ms))).await;
        match i32::try_from(request.code).map(Code::from_i32) {
            Ok(Code::Ok) => {
                Ok(self.marked(self.reply(request.message, 0, &metadata, "/culvert.echo.v1.Echo/Unary")))
            }
            Ok(code) => Err(Status::with_metadata(code, request.message, self.mark())),
            Err(_) => Err(Status::invalid_argument("code out of range")),
        }
    }

    type ServerStreamStream = BoxStream<'static, Result<EchoReply, Status>>;

    async fn server_stream(
        &self,
        request: Request<StreamRequest>,
    ) -> Result<Response<Self::ServerStreamStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let service = self.clone();
        let interval = Duration::from_millis(u64::from(request.interval_ms));
        let replies = stream::iter(0..request.count).then(move |sequence| {
            let reply = service.reply(
                request.message.clone(),
                sequence,
                &metadata,
                "/culvert.echo.v1.Echo/ServerStream",
            );
            async move {
                if sequence > 0 {
                    tokio::time::sleep(interval).await;
                }
                Ok(reply)
            }
        });
        Ok(self.marked(replies.boxed()))
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
