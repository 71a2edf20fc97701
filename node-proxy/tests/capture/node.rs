//! A node proxy without its controller: workers, certificates and the manager of pods, in this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert_api::enrolment::{self, PodRef, Reply, Request};
use culvert_identity::certificate_client::CertificateClient;
use culvert_identity::grpc::TokenFile;
use culvert_node_proxy::handover::{self, Charge, Giver, Heirs, Order, Predecessor, Succession, Taking};
use culvert_node_proxy::identity::{CertificateManager, CertificateSettings, Certificates};
use culvert_node_proxy::intercept::Netns;
use culvert_node_proxy::pods::{Manager, ManagerSettings, Phase, Places, PodReport, PodReports};
use culvert_node_proxy::state::model::{
    AccessLog as LogSettings, AccessLogFilter, AccessLogFormat, Enrolment, InboundMode, Limits, Listener,
    MeshSettings, OutboundPolicy, OwnWorkload, Timeouts, TunnelProtocol, UdpPolicy, Workload,
    WorkloadSettings, WorkloadUid,
};
use culvert_node_proxy::state::{Builder, Origin, Snapshot, Snapshots};
use culvert_node_proxy::telemetry::{AccessLog, Telemetry};
use culvert_node_proxy::worker::{Shared, Workers};
use culvert_routing::model::Hostname;
use nix::mount::{MsFlags, mount};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::ca::Ca;
use crate::world::{INTERCEPTION, World};

pub const POD_UID: &str = "0b1c2d3e";
/// Repairs, retries and counts all happen within this.
const EVENTUALLY: Duration = Duration::from_secs(30);

pub struct Node {
    pub snapshots: Snapshots,
    pub workers: Workers,
    pub telemetry: Telemetry,
    reports: watch::Receiver<PodReports>,
    orders: mpsc::Sender<Order>,
    charge: Charge,
    certificates: Certificates,
    socket: PathBuf,
    cancel: CancellationToken,
    manager: AbortOnDropHandle<()>,
    _issuing: AbortOnDropHandle<()>,
}

/// Where state, socket and namespaces are; outlives the node proxy.
pub struct Home {
    directory: tempfile::TempDir,
    pub ca: Ca,
}

impl Home {
    pub async fn new() -> Self {
        let home = Self { directory: tempfile::tempdir().expect("a directory"), ca: Ca::start().await };
        for name in ["proc", "netns"] {
            std::fs::create_dir(home.path(name)).expect("a directory");
        }
        home
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Binds a namespace to a path, as a container runtime does.
    pub fn bind(&self, netns: &Netns, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, "").expect("a file");
        let bind =
            || mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        netns.run(bind).expect("entering").expect("a bind mount");
        path
    }

    pub fn unbind(path: &Path) {
        nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).expect("unmounting");
        std::fs::remove_file(path).expect("removing");
    }
}

/// Parts of a node proxy that does not look after pods yet.
pub struct Successor {
    snapshots: Snapshots,
    telemetry: Telemetry,
    certificates: Certificates,
    workers: Workers,
    charge: Charge,
    pub last_gone: CancellationToken,
    manager: Option<Manager>,
    cancel: CancellationToken,
    issuing: AbortOnDropHandle<()>,
    settings: ManagerSettings,
}

impl Successor {
    pub fn start(home: &Home, world: &World, first: Snapshot) -> Self {
        Self::with(home, world, first, Charge::awaited())
    }

    fn with(home: &Home, world: &World, first: Snapshot, charge: Charge) -> Self {
        let snapshots = Snapshots::new(first);
        let telemetry = Telemetry::new(snapshots.clone(), AccessLog::discarded());
        let certificates = Certificates::new();
        let cancel = CancellationToken::new();
        let token = home.path("token");
        std::fs::write(&token, "token").expect("a token");
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", home.ca.address))
            .expect("an address")
            .connect_lazy();
        let settings = CertificateSettings {
            client: CertificateClient::new(channel, TokenFile::new(token)),
            lifetime: Duration::from_secs(3600),
            bundle: watch::channel(home.ca.bundle.clone()).1,
            snapshots: snapshots.clone(),
            telemetry: telemetry.clone(),
        };
        let issuing = CertificateManager::new(certificates.clone(), settings).run(cancel.child_token());
        let shared = Shared {
            snapshots: snapshots.clone(),
            certificates: certificates.clone(),
            telemetry: telemetry.clone(),
            node: "one".into(),
            charge: charge.clone(),
        };
        let settings = ManagerSettings {
            enrolment_socket: home.path("enrolment.sock"),
            state_dir: home.path("state"),
            firewall: world.setup.firewall,
            places: Places { processes: home.path("proc"), namespaces: home.path("netns") },
        };
        Self {
            snapshots,
            telemetry,
            certificates,
            workers: Workers::start(1, Arc::new(shared)).expect("a worker"),
            charge,
            last_gone: CancellationToken::new(),
            manager: None,
            cancel,
            issuing: AbortOnDropHandle::new(tokio::spawn(issuing)),
            settings,
        }
    }

    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    pub async fn find(&self, home: &Home) -> Predecessor {
        let socket = handover::socket_path(&home.path("enrolment.sock"));
        handover::find(&socket).await.expect("a node proxy that hands over")
    }

    /// Up to what is left to be confirmed.
    pub async fn take(&mut self, home: &Home) -> Taking {
        let predecessor = self.find(home).await;
        let _leases = predecessor.certificates(&self.certificates).await.expect("certificates");
        let (taking, inheritance) = predecessor.take().await.expect("sockets");
        let last_gone = self.last_gone.clone();
        let mut manager = self.manager(Succession { charge: self.charge.clone(), inheritance, last_gone });
        manager.take_over().await;
        self.manager = Some(manager);
        taking
    }

    fn manager(&self, succession: Succession) -> Manager {
        Manager::new(
            self.settings.clone(),
            self.snapshots.clone(),
            self.certificates.clone(),
            self.workers.clone(),
            self.telemetry.clone(),
            succession,
        )
        .expect("a manager")
    }

    /// In charge.
    pub fn begin(mut self) -> Node {
        let manager = self.manager.take().unwrap_or_else(|| self.manager(Succession::none()));
        self.charge.take();
        let (reports, orders) = (manager.reports(), manager.orders());
        let manager = manager.run(self.cancel.child_token());
        Node {
            snapshots: self.snapshots,
            workers: self.workers,
            telemetry: self.telemetry,
            reports,
            orders,
            charge: self.charge,
            certificates: self.certificates,
            socket: self.settings.enrolment_socket,
            cancel: self.cancel,
            manager: AbortOnDropHandle::new(tokio::spawn(async {
                manager.await.expect("the manager works")
            })),
            _issuing: self.issuing,
        }
    }
}

impl Node {
    pub fn start(home: &Home, world: &World, first: Snapshot) -> Self {
        Successor::with(home, world, first, Charge::held()).begin()
    }

    /// Hands over to whoever asks.
    pub fn give(&self, home: &Home) {
        let socket = handover::listen(&home.path("enrolment.sock")).expect("a socket");
        let giver = Giver {
            charge: self.charge.clone(),
            heirs: Heirs::default(),
            certificates: self.certificates.clone(),
            workers: self.workers.clone(),
            manager: self.orders.clone(),
            admin: Arc::default(),
            upkeep: (CancellationToken::new(), TaskTracker::new()),
        };
        tokio::spawn(giver.serve(socket, self.cancel.child_token()));
    }

    /// How often rules were put back.
    pub fn repairs(&self) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.telemetry.registry()).expect("metrics");
        let lines = text.lines().filter(|line| line.starts_with("culvert_rule_repairs_total{"));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    pub async fn repaired(&self) {
        let repaired = async {
            while self.repairs() == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(timeout(EVENTUALLY, repaired).await.is_ok(), "flushed rules do not come back");
    }

    /// Waits until no connection is carried.
    pub async fn idle(&self) {
        let idle = async {
            while self.carried() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(timeout(EVENTUALLY, idle).await.is_ok(), "{} connections do not end", self.carried());
    }

    /// Ends as if killed: nobody drains.
    pub async fn kill(self) {
        self.cancel.cancel();
        let _ = self.manager.await;
        self.workers.remove_pod(&uid()).await;
    }

    pub async fn call(&self, request: Request, netns: Option<Arc<Netns>>) -> Reply {
        let socket = self.socket.clone();
        let netns = netns.map(|netns| {
            let path = "/proc/thread-self/ns/net";
            netns.run(|| std::fs::File::open(path)).expect("entering").expect("a descriptor")
        });
        let call = move || {
            use std::os::fd::AsFd;
            let wait = Duration::from_secs(10);
            // The socket is there as soon as the manager runs.
            for _ in 0..100 {
                match enrolment::call(&socket, &request, netns.as_ref().map(AsFd::as_fd), wait) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    result => return result,
                }
            }
            Err(std::io::ErrorKind::NotFound.into())
        };
        tokio::task::spawn_blocking(call).await.expect("the call ends").expect("an answer")
    }

    pub async fn add(&self, world: &World, path: &Path) -> Reply {
        let add = Request::Add { pod: pod_ref(), netns_path: path.to_owned(), addresses: vec![world.pod_ip] };
        self.call(add, Some(world.pod.clone())).await
    }

    /// Waits for the pod's report to be as wanted.
    pub async fn reported(&mut self, what: &str, wanted: impl Fn(&PodReport) -> bool) -> PodReport {
        let mut last = None;
        let found = self.reports.wait_for(|all| {
            last = all.get(&uid()).cloned();
            last.as_ref().is_some_and(&wanted)
        });
        match timeout(EVENTUALLY, found).await {
            Ok(Ok(all)) => all[&uid()].clone(),
            failed => {
                let failed = failed.is_ok();
                panic!("{what}: {last:?} ({failed})")
            }
        }
    }

    pub async fn phase(&mut self, phase: Phase) -> PodReport {
        self.reported(phase.as_str(), |report| report.phase == phase).await
    }

    pub async fn forgotten(&mut self) {
        let gone = self.reports.wait_for(|all| !all.contains_key(&uid()));
        assert!(timeout(EVENTUALLY, gone).await.is_ok(), "the pod is not forgotten");
    }

    /// Connections that the workers carry for the pod.
    pub fn carried(&self) -> usize {
        self.workers.pods().iter().map(|pod| pod.connections).sum()
    }
}

pub fn uid() -> WorkloadUid {
    WorkloadUid(format!("c/n/Pod/shop/cart/{POD_UID}").as_str().into())
}

pub fn pod_ref() -> PodRef {
    PodRef { uid: POD_UID.into(), namespace: "shop".into(), name: "cart".into() }
}

/// The mesh with the pod, as the controller would send it.
pub fn snapshot(world: &World, enrolment: Enrolment, settings: WorkloadSettings) -> Snapshot {
    let mut builder = Builder::new();
    builder.set_mesh(mesh());
    builder.upsert_workload(workload(world, enrolment, settings));
    builder.freeze(Origin::Controller, "1")
}

fn workload(world: &World, enrolment: Enrolment, settings: WorkloadSettings) -> Workload {
    Workload {
        uid: uid(),
        cluster: "c".into(),
        network: "n".into(),
        name: "cart".into(),
        namespace: "shop".into(),
        identity: "spiffe://cluster.local/ns/shop/sa/cart".parse().ok(),
        node: "one".into(),
        addresses: vec![world.pod_ip],
        host_network: false,
        region: "".into(),
        zone: "".into(),
        tunnel: TunnelProtocol::Plaintext,
        labels: Arc::default(),
        memberships: Vec::new(),
        gateway: None,
        own: Some(Arc::new(OwnWorkload { enrolment, settings, probes: Vec::new() })),
    }
}

/// The same when the pod is one of the Gateway `shop/gate`, with these listeners.
pub fn gateway_snapshot(world: &World, enrolment: Enrolment, listeners: &[(&str, u16)]) -> Snapshot {
    let mut builder = Builder::new();
    builder.set_mesh(mesh());
    let gateway: Arc<str> = "shop/gate".into();
    builder.upsert_workload(Workload {
        gateway: Some(gateway.clone()),
        ..workload(world, enrolment, settings())
    });
    for (name, port) in listeners {
        let hostname = Hostname::parse(&format!("{name}.example")).expect("a hostname");
        builder.upsert_listener(Listener {
            name: format!("{gateway}/{name}").as_str().into(),
            gateway: gateway.clone(),
            port: *port,
            hostname: Some(hostname),
        });
    }
    builder.freeze(Origin::Controller, "1")
}

/// The mesh before the controller knows the pod.
pub fn without_pod() -> Snapshot {
    let mut builder = Builder::new();
    builder.set_mesh(mesh());
    builder.freeze(Origin::Controller, "0")
}

fn mesh() -> MeshSettings {
    MeshSettings {
        trust_domain: "cluster.local".parse().expect("a trust domain"),
        trust_domain_aliases: Vec::new(),
        cluster: "c".into(),
        network: "n".into(),
        pod_cidrs: Vec::new(),
        service_cidrs: Vec::new(),
        interception: INTERCEPTION,
        access_log: LogSettings { filter: AccessLogFilter::Failures, format: AccessLogFormat::Json },
        session_keys: Arc::default(),
    }
}

pub fn settings() -> WorkloadSettings {
    let second = Duration::from_secs(1);
    WorkloadSettings {
        inbound_mode: InboundMode::Permissive,
        port_modes: Vec::new(),
        outbound_policy: OutboundPolicy::Allow,
        udp: UdpPolicy::Allow,
        exclude_outbound_ports: Vec::new(),
        exclude_outbound_cidrs: Vec::new(),
        exclude_inbound_ports: Vec::new(),
        opaque_ports: Vec::new(),
        limits: Limits {
            connections: 1000,
            memory_bytes: 1 << 24,
            requests: 1000,
            request_head_bytes: 64 << 10,
            streams: 100,
        },
        timeouts: Timeouts {
            connect: second,
            tls_handshake: second,
            tunnel_handshake: second,
            unknown_destination: second,
            half_closed_idle: second,
            drain: 3 * second,
            request_head: second,
            body_idle: second,
            connection_idle: second,
        },
        ejection: None,
    }
}
