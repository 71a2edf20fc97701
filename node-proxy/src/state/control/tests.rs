use std::collections::BTreeMap;

use culvert_api::mesh::mesh_control_server::{MeshControl, MeshControlServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

use super::super::testing::{mesh_resource, uid, wire_mesh, wire_workload, workload_resource};
use super::*;
use crate::pods::{Phase, PodReport};
use crate::state::Snapshot;
use crate::telemetry::AccessLog;

/// One stream, as the controller sees it.
struct Stream {
    token: String,
    from_proxy: Streaming<wire::ProxyMessage>,
    to_proxy: mpsc::Sender<Result<wire::ControllerMessage, Status>>,
}

impl Stream {
    async fn read(&mut self) -> FromProxy {
        timeout(Duration::from_secs(10), self.from_proxy.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .kind
            .unwrap()
    }

    /// Reads up to `Subscribe`; returns the versions held.
    async fn introduced(&mut self) -> Vec<(String, String)> {
        assert!(matches!(self.read().await, FromProxy::Hello(_)));
        let mut held = Vec::new();
        loop {
            match self.read().await {
                FromProxy::Held(page) => held.extend(
                    page.resources.into_iter().map(|resource| (resource.key.unwrap().name, resource.version)),
                ),
                FromProxy::Subscribe(_) => return held,
                other => panic!("{other:?} in the introduction"),
            }
        }
    }

    /// The next message that is not a heartbeat.
    async fn next(&mut self) -> FromProxy {
        loop {
            match self.read().await {
                FromProxy::Heartbeat(_) => {}
                other => return other,
            }
        }
    }

    async fn send(&self, kind: FromController) {
        self.to_proxy.send(Ok(wire::ControllerMessage { kind: Some(kind) })).await.unwrap();
    }

    async fn welcome(&self, node: &str) {
        let node = node.to_owned();
        self.send(FromController::Welcome(wire::Welcome {
            node,
            heartbeat_seconds: 1,
            ..Default::default()
        }))
        .await;
    }

    async fn batch(&self, sequence: u64, version: &str, upserts: Vec<wire::Resource>) {
        self.send(FromController::Page(wire::Page { upserts, removals: Vec::new() })).await;
        self.send(FromController::Mark(wire::Mark { sequence, version: version.to_owned() })).await;
    }
}

struct Controller(mpsc::Sender<Stream>);

#[tonic::async_trait]
impl MeshControl for Controller {
    type FollowStream = ReceiverStream<Result<wire::ControllerMessage, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<wire::ProxyMessage>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let token = grpc::bearer(request.metadata()).unwrap_or_default().to_owned();
        let (to_proxy, queue) = mpsc::channel(16);
        let stream = Stream { token, from_proxy: request.into_inner(), to_proxy };
        self.0.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(queue)))
    }
}

struct Fixture {
    streams: mpsc::Receiver<Stream>,
    snapshots: Snapshots,
    status: ControlStatus,
    kept: watch::Receiver<Kept>,
    pods: watch::Sender<PodReports>,
    token: std::path::PathBuf,
    _directory: tempfile::TempDir,
    _cancel: tokio_util::sync::DropGuard,
}

async fn start(resources: Resources) -> Fixture {
    let (new_streams, streams) = mpsc::channel(4);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().add_service(MeshControlServer::new(Controller(new_streams)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "first").unwrap();
    let snapshots = Snapshots::new(Snapshot::empty());
    let (kept_sender, kept) = watch::channel(Kept::default());
    let (pods, pods_receiver) = watch::channel(PodReports::new());
    let status = ControlStatus::default();
    let channels = ControlChannels {
        charge: Charge::held(),
        snapshots: snapshots.clone(),
        telemetry: Telemetry::new(snapshots.clone(), AccessLog::discarded()),
        status: status.clone(),
        pods: pods_receiver,
        kept: kept_sender,
    };
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let client = ControlClient::over(channel, TokenFile::new(&token), channels, resources);
    let cancel = CancellationToken::new();
    tokio::spawn(client.run(cancel.clone()));
    let (directory, cancel) = (directory, cancel.drop_guard());
    Fixture { streams, snapshots, status, kept, pods, token, _directory: directory, _cancel: cancel }
}

impl Fixture {
    async fn stream(&mut self) -> Stream {
        timeout(Duration::from_secs(10), self.streams.recv()).await.unwrap().unwrap()
    }
}

fn applied(message: FromProxy) -> (u64, String) {
    match message {
        FromProxy::Applied(applied) => (applied.sequence, applied.version),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_batch_is_published_at_its_mark_confirmed_and_kept() {
    let mut fixture = start(Resources::default()).await;
    let mut stream = fixture.stream().await;
    assert_eq!(stream.token, "first");
    assert_eq!(stream.introduced().await, []);
    stream.welcome("one").await;
    let mut bad = wire_workload("bad", &[2]);
    bad.addresses[0].push(0);
    let page = wire::Page {
        upserts: vec![
            mesh_resource(wire_mesh()),
            workload_resource(wire_workload("a", &[1])),
            workload_resource(bad),
        ],
        removals: Vec::new(),
    };
    stream.send(FromController::Page(page)).await;
    let FromProxy::Refused(refused) = stream.next().await else { panic!("a refusal is expected") };
    assert_eq!(refused.key.unwrap().name, uid("bad").to_string());
    assert!(refused.reason.starts_with("addresses: "), "{}", refused.reason);
    assert!(!fixture.snapshots.load().is_complete(), "a page is not a batch");
    stream.send(FromController::Mark(wire::Mark { sequence: 7, version: "v7".to_owned() })).await;
    assert_eq!(applied(stream.next().await), (7, "v7".to_owned()));
    let snapshot = fixture.snapshots.load_full();
    assert!(snapshot.workload(&uid("a")).is_some() && snapshot.version() == "v7");
    assert_eq!((&**snapshot.node(), snapshot.refused().len()), ("one", 1));
    assert_eq!(fixture.kept.borrow().version, "v7");
    let FromProxy::Heartbeat(heartbeat) = stream.read().await else { panic!("a heartbeat is expected") };
    assert_eq!((heartbeat.version.as_str(), heartbeat.refused), ("v7", 1));
    assert!(fixture.status.read().connected_since.is_some());
}

#[tokio::test]
async fn a_new_stream_resumes_with_what_is_held_and_the_token_of_that_moment() {
    let mut fixture = start(Resources::default()).await;
    let mut stream = fixture.stream().await;
    stream.introduced().await;
    stream.welcome("one").await;
    let good = workload_resource(wire_workload("a", &[1]));
    stream.batch(1, "v1", vec![mesh_resource(wire_mesh()), good.clone()]).await;
    applied(stream.next().await);
    std::fs::write(&fixture.token, "second").unwrap();
    drop(stream);

    let mut stream = fixture.stream().await;
    assert_eq!(stream.token, "second");
    let held = stream.introduced().await;
    assert_eq!(held.len(), 2);
    assert!(held.contains(&(uid("a").to_string(), good.version)));
    assert!(fixture.snapshots.load().is_complete(), "what was in force stays");
    stream.welcome("one").await;
    stream.batch(1, "v1", Vec::new()).await;
    assert_eq!(applied(stream.next().await), (1, "v1".to_owned()), "also when nothing changed");
}

#[tokio::test]
async fn a_burst_of_marks_is_confirmed_in_order() {
    let mut fixture = start(Resources::default()).await;
    let mut stream = fixture.stream().await;
    stream.introduced().await;
    stream.welcome("one").await;
    for sequence in 1..=20 {
        stream.batch(sequence, &format!("v{sequence}"), vec![mesh_resource(wire_mesh())]).await;
    }
    for sequence in 1..=20 {
        assert_eq!(applied(stream.next().await), (sequence, format!("v{sequence}")));
    }
    assert_eq!(fixture.snapshots.load().version(), "v20");
}

#[tokio::test]
async fn a_silent_stream_is_given_up() {
    let mut fixture = start(Resources::default()).await;
    let mut stream = fixture.stream().await;
    stream.introduced().await;
    stream.welcome("one").await;
    let started = Instant::now();
    let _second = fixture.stream().await;
    let waited = started.elapsed();
    assert!(waited > Duration::from_millis(2900) && waited < Duration::from_secs(8), "{waited:?}");
    drop(stream);
}

#[tokio::test]
async fn pods_are_reported_whole_at_first_then_by_change() {
    let mut fixture = start(Resources::default()).await;
    let mut stream = fixture.stream().await;
    stream.introduced().await;
    stream.welcome("one").await;
    let pod = |phase| PodReport {
        phase,
        message: String::new(),
        uncaptured_connections: 3,
        identity: None,
        certificate_not_after: None,
        listeners: BTreeMap::new(),
    };
    let report = |message: FromProxy| match message {
        FromProxy::Enrolment(report) => (report.complete, report.workloads.len()),
        other => panic!("{other:?}"),
    };
    fixture.pods.send_replace([(uid("a"), pod(Phase::Waiting)), (uid("b"), pod(Phase::Enrolled))].into());
    assert_eq!(report(stream.next().await), (true, 2));
    fixture.pods.send_replace([(uid("a"), pod(Phase::Enrolled)), (uid("b"), pod(Phase::Enrolled))].into());
    assert_eq!(report(stream.next().await), (false, 1));
    let listening = PodReport { listeners: [("edge/gate/http".into(), None)].into(), ..pod(Phase::Enrolled) };
    fixture.pods.send_replace([(uid("a"), listening), (uid("b"), pod(Phase::Enrolled))].into());
    let listeners = |message: FromProxy| match message {
        FromProxy::Listeners(report) => {
            let [workload] = &report.workloads[..] else { panic!("{report:?}") };
            (workload.uid.clone(), workload.listeners[0].listener.clone())
        }
        other => panic!("{other:?}"),
    };
    let expected = (uid("a").to_string(), "edge/gate/http".to_owned());
    assert_eq!(listeners(stream.next().await), expected, "and the enrolment is not said again");
    drop(stream);
    let mut stream = fixture.stream().await;
    stream.introduced().await;
    stream.welcome("one").await;
    assert_eq!(report(stream.next().await), (true, 2));
    assert_eq!(listeners(stream.next().await), expected);
}

#[tokio::test]
async fn a_controller_that_takes_this_proxy_for_another_nodes_is_not_followed() {
    let mut resources = Resources::default();
    resources.set_node("one");
    let mut fixture = start(resources).await;
    let mut stream = fixture.stream().await;
    stream.introduced().await;
    stream.welcome("two").await;
    let mut again = fixture.stream().await;
    again.introduced().await;
    let error = fixture.status.read().last_error.unwrap();
    assert!(error.contains("proves node two, this proxy has served as one"), "{error}");
}
