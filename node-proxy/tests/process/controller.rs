//! A controller that sends every proxy the same resources.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use culvert_api::mesh as wire;
use culvert_api::mesh::controller_message::Kind;
use culvert_api::mesh::mesh_control_server::{MeshControl, MeshControlServer};
use culvert_api::mesh::proxy_message::Kind as FromProxy;
use culvert_identity::{grpc, tls};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::proxy::Home;

pub struct FakeController {
    address: SocketAddr,
    held: Arc<AtomicUsize>,
    server: JoinHandle<()>,
    stopped: CancellationToken,
}

impl FakeController {
    pub async fn start(home: &Home) -> Self {
        Self::start_with(home, vec![workload()]).await
    }

    /// With these resources, and the settings of the mesh.
    pub async fn start_with(home: &Home, mut resources: Vec<wire::Resource>) -> Self {
        resources.insert(0, settings());
        let leaf = home.authority.leaf("spiffe://cluster.local/ns/culvert-system/sa/culvert-controller");
        let config = watch::channel(tls::grpc_server_config(&leaf).unwrap()).1;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let held = Arc::new(AtomicUsize::new(0));
        let stopped = CancellationToken::new();
        let service =
            MeshControlServer::new(Control { resources, held: held.clone(), stopped: stopped.clone() });
        let server = tokio::spawn(async move {
            let served = grpc::server().add_service(service);
            served.serve_with_incoming(grpc::incoming(listener, config)).await.unwrap();
        });
        Self { address, held, server, stopped }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// How many resources the last proxy said it held.
    pub async fn held_at_last(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// Connections live on after the server; they carry nothing any more.
    pub async fn stop(self) {
        self.stopped.cancel();
        self.server.abort();
        let _ = self.server.await;
    }
}

struct Control {
    resources: Vec<wire::Resource>,
    held: Arc<AtomicUsize>,
    stopped: CancellationToken,
}

#[tonic::async_trait]
impl MeshControl for Control {
    type FollowStream = ReceiverStream<Result<wire::ControllerMessage, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<wire::ProxyMessage>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        if grpc::bearer(request.metadata()).is_none() {
            return Err(Status::unauthenticated("no token"));
        }
        if self.stopped.is_cancelled() {
            return Err(Status::unavailable("stopped"));
        }
        let (outgoing, queue) = mpsc::channel(16);
        let stream = serve(request.into_inner(), outgoing, self.resources.clone(), self.held.clone());
        tokio::spawn(self.stopped.clone().run_until_cancelled_owned(stream));
        Ok(Response::new(ReceiverStream::new(queue)))
    }
}

async fn serve(
    mut incoming: Streaming<wire::ProxyMessage>,
    outgoing: mpsc::Sender<Result<wire::ControllerMessage, Status>>,
    resources: Vec<wire::Resource>,
    held: Arc<AtomicUsize>,
) {
    let mut count = 0;
    while let Ok(Some(message)) = incoming.message().await {
        match message.kind {
            Some(FromProxy::Held(page)) => count += page.resources.len(),
            Some(FromProxy::Subscribe(_)) => break,
            _ => {}
        }
    }
    held.store(count, Ordering::SeqCst);
    let welcome = wire::Welcome { node: "one".to_owned(), heartbeat_seconds: 1, ..wire::Welcome::default() };
    let page = wire::Page { upserts: resources, removals: Vec::new() };
    let mark = wire::Mark { sequence: 1, version: "v1".to_owned() };
    let mut next = vec![Kind::Welcome(welcome), Kind::Page(page), Kind::Mark(mark)];
    loop {
        for kind in next {
            if outgoing.send(Ok(wire::ControllerMessage { kind: Some(kind) })).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        next = vec![Kind::Heartbeat(wire::ControllerHeartbeat { version: "v1".to_owned() })];
    }
}

fn resource(kind: wire::ResourceType, name: &str, body: wire::resource::Body) -> wire::Resource {
    let key = wire::ResourceKey { r#type: kind.into(), name: name.to_owned() };
    wire::Resource { key: Some(key), version: "1".to_owned(), body: Some(body) }
}

fn settings() -> wire::Resource {
    let interception = wire::Interception {
        mark_mask: 0xfff,
        proxy_mark: 0x539,
        outbound_mark: 0x111,
        reply_mark: 0x112,
        inbound_mark: 0x113,
        route_table: 100,
        rule_priority: 100,
        outbound_port: 15001,
        inbound_port: 15006,
        hbone_port: 15008,
    };
    let settings = wire::MeshSettings {
        trust_domain: "cluster.local".to_owned(),
        interception: Some(interception),
        ..wire::MeshSettings::default()
    };
    resource(wire::ResourceType::MeshSettings, "mesh", wire::resource::Body::MeshSettings(settings))
}

fn workload() -> wire::Resource {
    let uid = "c/n/Pod/shop/a/a-uid";
    let workload = wire::Workload {
        uid: uid.to_owned(),
        name: "a".to_owned(),
        namespace: "shop".to_owned(),
        service_account: "a".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        node: "two".to_owned(),
        addresses: vec![vec![10, 0, 0, 1]],
        tunnel: wire::Tunnel::Hbone.into(),
        ..wire::Workload::default()
    };
    resource(wire::ResourceType::Workload, uid, wire::resource::Body::Workload(workload))
}

/// A pod of this node that is wanted in the mesh.
pub fn own_pod(name: &str, pod_uid: &str, addresses: Vec<Vec<u8>>) -> wire::Resource {
    let uid = format!("c/n/Pod/shop/{name}/{pod_uid}");
    let workload = wire::Workload {
        uid: uid.clone(),
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        service_account: "a".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        node: "one".to_owned(),
        addresses,
        tunnel: wire::Tunnel::None.into(),
        enrolment: wire::Enrolment::Enrolled.into(),
        settings: Some(wire::WorkloadSettings {
            limits: Some(wire::Limits {
                connections: 100,
                memory_bytes: 1 << 20,
                requests: 100,
                request_head_bytes: 1 << 14,
                streams: 100,
            }),
            timeouts: Some(wire::Timeouts {
                connect_ms: 1000,
                tls_handshake_ms: 1000,
                tunnel_handshake_ms: 1000,
                unknown_destination_ms: 1000,
                half_closed_idle_ms: 1000,
                drain_ms: 1000,
                request_head_ms: 1000,
                body_idle_ms: 1000,
                connection_idle_ms: 1000,
            }),
            ..wire::WorkloadSettings::default()
        }),
        ..wire::Workload::default()
    };
    resource(wire::ResourceType::Workload, &uid, wire::resource::Body::Workload(workload))
}
