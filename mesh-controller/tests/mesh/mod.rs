//! A controller's hub and streams in this process, and scripted node proxies that speak to it over real gRPC on
//! in-memory connections, so that time can be paused.

#![allow(dead_code, reason = "each test uses a part of this")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert_api::mesh::controller_message::Kind as Out;
use culvert_api::mesh::mesh_control_client::MeshControlClient;
use culvert_api::mesh::mesh_replicas_client::MeshReplicasClient;
use culvert_api::mesh::proxy_message::Kind as In;
use culvert_api::mesh::resource::Body;
use culvert_api::mesh::{self as pb, ControllerMessage, ProxyMessage};
use culvert_controller::hub::{Config, Event, Handle, Hub, Overview};
use culvert_controller::metrics::Metrics;
use culvert_controller::serve::{Reports, Streams};
use culvert_controller::status::StatusWriter;
use culvert_controller::translate::Environment;
use culvert_identity::grpc::put_bearer;
use culvert_identity::token::{Issuer, KubernetesClaims, ObjectRef, Verifier};
use culvert_kubernetes::Tokens;
use culvert_objects::{Objects, manifest};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Endpoint, Server};
use tonic::{Code, Request, Status, Streaming};

pub const ISSUER: &str = "https://kubernetes.default.svc";
pub const AUDIENCE: &str = "culvert.dev";

pub struct Mesh {
    pub issuer: Issuer,
    pub overview: Overview,
    pub hub: Handle,
    pub replicas: Reports,
    objects: watch::Sender<Arc<Objects>>,
    connect: mpsc::Sender<Result<DuplexStream, std::io::Error>>,
    directory: tempfile::TempDir,
}

pub fn objects(text: &str) -> Objects {
    let read = manifest::parse(text, Path::new("test.yaml")).into_result().unwrap();
    read.objects.into_iter().map(|at| at.object).collect()
}

impl Mesh {
    pub async fn start(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let issuer = Issuer::generate(ISSUER).unwrap();
        let keys = directory.path().join("keys.json");
        issuer.write_jwks(&keys).unwrap();
        let writer = StatusWriter::new(directory.path().join("statuses"), Metrics::default());
        let (sender, receiver) = watch::channel(Arc::new(objects(text)));
        let config = Config {
            environment: Environment { cluster: "c".into(), network: "n".into(), ..Default::default() },
            objects: receiver,
            // Equal on every replica, as those of a Secret.
            session_keys: watch::channel(Vec::new()).1,
            statuses: writer.queue(),
            existing_statuses: writer.existing().unwrap(),
            metrics: Metrics::default(),
        };
        let (hub, handle, _) = Hub::start(config).await;
        let overview = hub.overview();
        tokio::spawn(hub.run());
        tokio::spawn(writer.run());
        let verifier = Verifier::open(&keys, ISSUER, AUDIENCE).unwrap();
        let tokens = Arc::new(Tokens::Keys(verifier));
        let reports = Reports::new(tokens.clone(), handle.clone(), "this".to_owned());
        let streams = Streams::new(tokens, handle.clone(), Metrics::default());
        let (connect, connections) = mpsc::channel(16);
        let server = Server::builder().add_service(streams.service()).add_service(reports.clone().service());
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(connections)));
        Self { issuer, overview, hub: handle, replicas: reports, objects: sender, connect, directory }
    }

    /// Replaces all objects.
    pub fn set(&self, text: &str) {
        self.objects.send_replace(Arc::new(objects(text)));
    }

    pub fn status_path(&self, object: &str) -> PathBuf {
        self.directory.path().join("statuses").join(format!("{object}.json"))
    }

    /// The status file of an object (`Kind/namespace/name`), empty while there is none.
    pub fn status(&self, object: &str) -> String {
        std::fs::read_to_string(self.status_path(object)).unwrap_or_default()
    }

    /// Waits until the status file of an object (`Kind/namespace/name`) contains a text.
    pub async fn wait_status(&self, object: &str, contains: &str) {
        for _ in 0..1000 {
            if self.status(object).contains(contains) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{contains:?} not in {:?}", self.status(object));
    }

    pub async fn client(&self) -> MeshControlClient<tonic::transport::Channel> {
        MeshControlClient::new(self.channel().await).max_decoding_message_size(4 << 20)
    }

    /// What this one's node proxies report, as another replica of that name is told it.
    pub async fn reports(&self, token: &str, replica: &str) -> Result<Streaming<pb::ReplicaReports>, Status> {
        let mut request = Request::new(pb::ReplicaHello { replica: replica.to_owned() });
        put_bearer(request.metadata_mut(), token).unwrap();
        Ok(MeshReplicasClient::new(self.channel().await).reports(request).await?.into_inner())
    }

    /// Tells this one what another replica's node proxies have reported.
    pub async fn hear(&self, replica: &str, reports: Vec<pb::NodeReport>) {
        self.hub.events.send(Event::Replica { replica: replica.to_owned(), reports }).await.unwrap();
    }

    async fn channel(&self) -> tonic::transport::Channel {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        self.connect.send(Ok(theirs)).await.unwrap();
        let mut ours = Some(ours);
        let connector = tower::service_fn(move |_| {
            let io = ours.take().ok_or_else(|| std::io::Error::other("only one connection"));
            async move { io.map(TokioIo::new) }
        });
        // Small, so that a proxy that does not read is a slow one at once.
        let endpoint = Endpoint::from_static("http://controller").initial_stream_window_size(65_535);
        endpoint.connect_with_connector(connector).await.unwrap()
    }

    pub fn token(&self, node: &str) -> String {
        self.issuer.issue(node_proxy(Some(node)), AUDIENCE, Duration::from_secs(3600)).unwrap()
    }

    /// What the controller answers to a stream with this token, if it refuses it.
    pub async fn refusal(&self, token: Option<&str>) -> Option<Code> {
        Proxy::open(self, token).await.err().map(|status| status.code())
    }

    /// A node proxy that has introduced itself, holding what is given.
    pub async fn proxy(&self, node: &str, held: &[pb::ResourceVersion]) -> Proxy {
        let mut proxy = Proxy::open(self, Some(&self.token(node))).await.unwrap();
        proxy.introduce(held).await;
        assert!(matches!(proxy.next().await, Ok(Out::Welcome(welcome)) if welcome.node == node));
        proxy
    }
}

/// The claims of a controller's token.
pub fn controller() -> KubernetesClaims {
    KubernetesClaims {
        serviceaccount: ObjectRef { name: "culvert-controller".into(), uid: "s".into() },
        ..node_proxy(None)
    }
}

/// The claims of a node proxy's token.
pub fn node_proxy(node: Option<&str>) -> KubernetesClaims {
    KubernetesClaims {
        namespace: "culvert-system".into(),
        serviceaccount: ObjectRef { name: "culvert-node-proxy".into(), uid: "s".into() },
        pod: Some(ObjectRef { name: "proxy".into(), uid: "p".into() }),
        node: node.map(|name| ObjectRef { name: name.into(), uid: format!("uid-{name}") }),
    }
}

pub struct Proxy {
    pub to: mpsc::Sender<ProxyMessage>,
    from: Streaming<ControllerMessage>,
    pub heartbeats: usize,
}

/// One consistent batch.
#[derive(Debug, Default)]
pub struct Batch {
    pub upserts: BTreeMap<String, pb::Resource>,
    pub order: Vec<String>,
    pub removals: Vec<String>,
    pub mark: pb::Mark,
}

impl Batch {
    pub fn workload(&self, name: &str) -> &pb::Workload {
        let found = self.upserts.values().find_map(|resource| match &resource.body {
            Some(Body::Workload(workload)) if workload.name == name => Some(workload),
            _ => None,
        });
        found.unwrap_or_else(|| panic!("no workload {name} in {:?}", self.order))
    }

    pub fn enrols(&self, namespace: &str) -> bool {
        let found = self.upserts.values().find_map(|resource| match &resource.body {
            Some(Body::Namespace(told)) if told.name == namespace => Some(told.enrols),
            _ => None,
        });
        found.unwrap_or_else(|| panic!("no namespace {namespace} in {:?}", self.order))
    }

    pub fn names(&self) -> Vec<&str> {
        self.order.iter().map(String::as_str).collect()
    }

    pub fn held(&self) -> Vec<pb::ResourceVersion> {
        let version =
            |at: &pb::Resource| pb::ResourceVersion { key: at.key.clone(), version: at.version.clone() };
        self.upserts.values().map(version).collect()
    }
}

impl Proxy {
    pub async fn open(mesh: &Mesh, token: Option<&str>) -> Result<Self, Status> {
        let (to, outgoing) = mpsc::channel(64);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        if let Some(token) = token {
            put_bearer(request.metadata_mut(), token).unwrap();
        }
        let from = mesh.client().await.follow(request).await?.into_inner();
        Ok(Self { to, from, heartbeats: 0 })
    }

    pub async fn say(&self, kind: In) {
        self.to.send(ProxyMessage { kind: Some(kind) }).await.unwrap();
    }

    pub async fn introduce(&self, held: &[pb::ResourceVersion]) {
        self.say(In::Hello(pb::Hello { proxy_version: "1".into(), instance: "i".into() })).await;
        for page in held.chunks(2) {
            self.say(In::Held(pb::Held { resources: page.to_vec() })).await;
        }
        self.say(In::Subscribe(pb::Subscribe {})).await;
    }

    /// The next message but heartbeats, or how the stream ended.
    pub async fn next(&mut self) -> Result<Out, Status> {
        loop {
            match self.from.message().await? {
                Some(ControllerMessage { kind: Some(Out::Heartbeat(_)) }) => self.heartbeats += 1,
                Some(ControllerMessage { kind: Some(kind) }) => return Ok(kind),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Everything up to the next mark.
    pub async fn batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        loop {
            match self.next().await.unwrap() {
                Out::Page(page) => {
                    for resource in page.upserts {
                        let name = resource.key.clone().unwrap().name;
                        batch.order.push(name.clone());
                        batch.upserts.insert(name, resource);
                    }
                    batch.removals.extend(page.removals.into_iter().map(|key| key.name));
                }
                Out::Mark(mark) => {
                    batch.mark = mark;
                    return batch;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub async fn apply(&self, batch: &Batch) {
        let pb::Mark { sequence, version } = batch.mark.clone();
        self.say(In::Applied(pb::Applied { sequence, version })).await;
    }

    /// The next batch, applied.
    pub async fn follow(&mut self) -> Batch {
        let batch = self.batch().await;
        self.apply(&batch).await;
        batch
    }

    pub async fn report(&self, uid: &str, phase: pb::EnrolmentPhase) {
        let line = pb::WorkloadEnrolment {
            uid: uid.to_owned(),
            phase: phase.into(),
            identity: "spiffe://cluster.local/ns/shop/sa/default".to_owned(),
            uncaptured_connections: 3,
            ..Default::default()
        };
        self.say(In::Enrolment(pb::EnrolmentReport { complete: false, workloads: vec![line] })).await;
    }

    /// Nothing comes for a while.
    pub async fn hears_nothing(&mut self) {
        let waited = tokio::time::timeout(Duration::from_secs(3), self.next()).await;
        assert!(waited.is_err(), "{waited:?}");
    }
}
