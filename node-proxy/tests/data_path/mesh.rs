//! Two namespaces as pods `web` and `db`, one node proxy's data path for both, and what it logged.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use culvert_identity::testing::TestAuthority;
use culvert_identity::tls;
use culvert_node_proxy::handover::Charge;
use culvert_node_proxy::identity::{ActiveCertificate, Certificates};
use culvert_node_proxy::intercept::rules::{Entry, Firewall, FirewallChoice, Rules};
use culvert_node_proxy::intercept::{Netns, listeners};
use culvert_node_proxy::limits::WorkloadLimits;
use culvert_node_proxy::pods::Pod;
use culvert_node_proxy::session::SessionKeys;
use culvert_node_proxy::state::model::{
    AccessLog as AccessLogSettings, AccessLogFilter, AccessLogFormat, AppProtocol, Enrolment, InboundMode,
    Limits, Membership, MeshSettings, OutboundPolicy, OwnWorkload, Probe, Service, ServiceKey, ServicePort,
    Timeouts, TunnelProtocol, UdpPolicy, Workload, WorkloadSettings, WorkloadUid,
};
use culvert_node_proxy::state::{Builder, Origin, Snapshot, Snapshots};
use culvert_node_proxy::telemetry::{AccessLog, Telemetry};
use culvert_node_proxy::worker::{Shared, Workers};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::world::{INTERCEPTION, World};

/// For what happens at once, also on a machine that is busy with something else.
pub const SOON: Duration = Duration::from_secs(30);

/// Short, so that tests need not wait.
pub const REQUEST_HEAD: Duration = Duration::from_secs(1);

/// The test's own namespace plays the node: its workers see the peer's addresses as the node's.
pub fn prepare_node() {
    let run = Command::new("sh")
        .args(["-ec", "ip link set lo up; ip addr add 10.9.0.2/32 dev lo; ip addr add fd09::2/128 dev lo"])
        .env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin")
        .status();
    assert!(run.unwrap().success(), "the node's addresses");
}

/// What the access log says.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn lines_with(&self, words: &[&str]) -> usize {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }

    /// Waits until at least one line holds all words.
    pub async fn shows(&self, words: &[&str]) {
        self.shows_more_than(0, words).await;
    }

    pub fn count(&self, words: &[&str]) -> usize {
        self.lines_with(words)
    }

    /// Waits until more than so many lines hold all words.
    pub async fn shows_more_than(&self, before: usize, words: &[&str]) {
        let deadline = Instant::now() + SOON;
        while self.lines_with(words) <= before {
            let log = || String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
            assert!(Instant::now() < deadline, "no new line with {words:?} in\n{}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub fn settings() -> WorkloadSettings {
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
            memory_bytes: 64 << 20,
            requests: 1000,
            request_head_bytes: 64 << 10,
            streams: 100,
        },
        timeouts: Timeouts {
            connect: Duration::from_secs(2),
            tls_handshake: Duration::from_secs(2),
            tunnel_handshake: Duration::from_secs(2),
            unknown_destination: Duration::from_millis(500),
            half_closed_idle: Duration::from_secs(10),
            drain: Duration::from_secs(1),
            request_head: REQUEST_HEAD,
            body_idle: Duration::from_secs(1),
            connection_idle: Duration::from_secs(3600),
        },
        // Tests that make an endpoint fail count on being sent there again.
        ejection: None,
    }
}

/// A workload of this node that is enrolled.
pub fn workload(name: &str, address: IpAddr) -> Workload {
    Workload {
        uid: WorkloadUid(format!("Kubernetes//Pod/shop/{name}/uid-{name}").into()),
        cluster: "Kubernetes".into(),
        network: "".into(),
        name: name.into(),
        namespace: "shop".into(),
        identity: Some(format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap()),
        node: "here".into(),
        addresses: vec![address],
        host_network: false,
        region: "".into(),
        zone: "".into(),
        tunnel: TunnelProtocol::Hbone,
        labels: Arc::default(),
        memberships: Vec::new(),
        gateway: None,
        own: Some(Arc::new(OwnWorkload {
            enrolment: Enrolment::Enrolled,
            settings: settings(),
            probes: Vec::new(),
        })),
    }
}

pub fn with_settings(mut workload: Workload, change: impl FnOnce(&mut WorkloadSettings)) -> Workload {
    let mut own = workload.own.as_deref().unwrap().clone();
    change(&mut own.settings);
    workload.own = Some(Arc::new(own));
    workload
}

pub fn with_probes(mut workload: Workload, probes: Vec<Probe>) -> Workload {
    workload.own = Some(Arc::new(OwnWorkload { probes, ..workload.own.as_deref().unwrap().clone() }));
    workload
}

/// Makes a workload a ready endpoint of `shop/NAME`, port 80 to 8080.
pub fn member(mut workload: Workload, name: &str) -> Workload {
    workload.memberships.push(Membership {
        service: ServiceKey(format!("shop/{name}").into()),
        ports: vec![(80, 8080)],
        ready: true,
        serving: true,
        terminating: false,
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    });
    workload
}

pub fn service(name: &str, vip: IpAddr) -> Service {
    Service {
        key: ServiceKey(format!("shop/{name}").into()),
        name: name.into(),
        namespace: "shop".into(),
        vips: vec![vip],
        ports: vec![ServicePort { port: 80, name: "http".into(), app_protocol: AppProtocol::Undeclared }],
        headless: false,
        publish_not_ready_addresses: false,
        local_only: false,
        client_ip_affinity: None,
        traffic_distribution: None,
        retry_budget: Default::default(),
        session: None,
    }
}

fn mesh_settings() -> MeshSettings {
    MeshSettings {
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        cluster: "Kubernetes".into(),
        network: "".into(),
        pod_cidrs: vec!["10.9.0.0/16".parse().unwrap(), "fd09::/64".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd96::/64".parse().unwrap()],
        interception: INTERCEPTION,
        access_log: AccessLogSettings { filter: AccessLogFilter::All, format: AccessLogFormat::Json },
        session_keys: Arc::default(),
    }
}

/// Everything of one case.
pub struct Mesh {
    pub world: World,
    pub snapshots: Snapshots,
    pub certificates: Certificates,
    pub authority: TestAuthority,
    pub workers: Workers,
    pub telemetry: Telemetry,
    pub log: Log,
    pub builder: Builder,
    pub web: Workload,
    pub db: Workload,
    enrolled: Vec<(Rules, Arc<Pod>)>,
}

impl Mesh {
    /// `web` in the world's pod, `db` in its peer; Service `db` on the VIP; nothing enrolled yet.
    pub async fn new(world: World) -> Self {
        let snapshots = Snapshots::new(Snapshot::empty());
        let log = Log::default();
        let telemetry = Telemetry::new(snapshots.clone(), AccessLog::to_writer(log.clone()).unwrap());
        let certificates = Certificates::new();
        let shared = Shared {
            charge: Charge::held(),
            snapshots: snapshots.clone(),
            certificates: certificates.clone(),
            telemetry: telemetry.clone(),
            node: "here".into(),
        };
        let workers = Workers::start(2, Arc::new(shared)).unwrap();
        let mut builder = Builder::new();
        builder.set_mesh(mesh_settings());
        builder.upsert_service(service("db", world.vip));
        let web = workload("web", world.pod_ip);
        let db = member(workload("db", world.peer_ip), "db");
        let mesh = Self {
            world,
            snapshots,
            certificates,
            authority: TestAuthority::new("root"),
            workers,
            telemetry,
            log,
            builder,
            web,
            db,
            enrolled: Vec::new(),
        };
        for name in ["web", "db"] {
            mesh.certify(name, 1);
        }
        mesh
    }

    pub fn certify(&self, name: &str, generation: u64) {
        let uri = format!("spiffe://cluster.local/ns/shop/sa/{name}");
        let certificate = self.authority.leaf(&uri);
        let bundle = self.authority.bundle();
        self.certificates.put(ActiveCertificate {
            identity: uri.parse().unwrap(),
            not_after: certificate.not_after(),
            generation,
            server: tls::server_config(&certificate, &bundle, &["cluster.local".parse().unwrap()]).unwrap(),
            client: tls::client_config(&certificate, &bundle).unwrap(),
            roots_generation: 1,
        });
    }

    /// The keys of sessions, of which the first seals.
    pub fn set_session_keys<const N: usize>(&mut self, keys: [(u32, [u8; 32]); N]) {
        let session_keys = SessionKeys::new(keys.iter().map(|(id, secret)| (*id, &secret[..]))).unwrap();
        self.builder.set_mesh(MeshSettings { session_keys: Arc::new(session_keys), ..mesh_settings() });
        self.publish();
    }

    pub fn publish(&mut self) {
        self.snapshots.publish(self.builder.freeze(Origin::Controller, "v"));
    }

    /// Both pods enrolled, the snapshot in force.
    pub async fn with_both(mut self) -> Self {
        let (web, db) = (self.web.clone(), self.db.clone());
        self.enrol(web).await;
        self.enrol(db).await;
        self
    }

    /// Rules, listeners, workers; then published.
    pub async fn enrol(&mut self, workload: Workload) {
        let netns = if *workload.name == *"db" { &self.world.peer } else { &self.world.pod };
        let firewall = Arc::new(Firewall::detect(FirewallChoice::Nft).unwrap());
        let mut rules = Rules::new(firewall, netns.clone()).unwrap();
        rules.apply(&self.world.plan()).await.unwrap();
        let limits = workload.own.as_ref().unwrap().settings.limits;
        let pod = Arc::new(Pod {
            uid: workload.uid.clone(),
            netns: netns.clone(),
            addresses: workload.addresses.clone(),
            interception: INTERCEPTION,
            workload: ArcSwap::from_pointee(workload.clone()),
            limits: WorkloadLimits::new(limits),
        });
        let listeners = listeners(netns, &INTERCEPTION).unwrap();
        self.workers.add_pod(pod.clone(), listeners).await.unwrap();
        self.enrolled.push((rules, pod));
        self.builder.upsert_workload(workload);
        self.publish();
    }

    /// Lets clients from outside reach a port of a Gateway in the pod.
    pub async fn steer(&mut self, name: &str, port: u16) {
        let (rules, _) =
            self.enrolled.iter_mut().find(|(_, pod)| pod.uid.0.contains(&format!("/{name}/"))).unwrap();
        let mut plan = rules.plan().unwrap().clone();
        if let Entry::Open(exclusions) = &mut plan.entry
            && !exclusions.gateway_ports.contains(&port)
        {
            exclusions.gateway_ports.push(port);
            rules.apply(&plan).await.unwrap();
        }
    }

    pub fn pod(&self, name: &str) -> Arc<Pod> {
        self.enrolled
            .iter()
            .map(|(_, pod)| pod)
            .find(|pod| pod.uid.0.contains(&format!("/{name}/")))
            .unwrap()
            .clone()
    }

    pub fn vip(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.world.vip, port)
    }
}

/// A TCP echo server that first says who it thinks the client is.
pub struct Application {
    pub accepted: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Application {
    pub fn start(netns: &Netns, at: SocketAddr) -> Self {
        let listener = netns.run(|| std::net::TcpListener::bind(at)).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut stream, client) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                connections.spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let greeting = format!("client {}\n", client.ip());
                    if write.write_all(greeting.as_bytes()).await.is_ok() {
                        let _ = tokio::io::copy(&mut read, &mut write).await;
                    }
                });
            }
        });
        Self { accepted, _tasks: tasks }
    }

    pub fn count(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// A client's end.
pub struct Client {
    pub stream: BufReader<TcpStream>,
}

impl Client {
    pub async fn connect(netns: &Netns, to: SocketAddr) -> Self {
        Self::try_connect(netns, to).await.expect("connected")
    }

    async fn try_connect(netns: &Netns, to: SocketAddr) -> io::Result<Self> {
        let open = || if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = netns.run(open).unwrap().unwrap();
        let stream = timeout(SOON, socket.connect(to)).await.expect("in time")?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        timeout(SOON, self.stream.read_line(&mut line)).await.expect("in time")?;
        Ok(line.trim_end().to_owned())
    }

    pub async fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("sent");
    }

    pub async fn echo(&mut self) {
        self.say(b"hello\n").await;
        assert_eq!(self.line().await.expect("echoed"), "hello");
    }

    /// Waits for the reset, whatever comes before it.
    pub async fn is_reset(&mut self) {
        let mut rest = Vec::new();
        let end = timeout(SOON, self.stream.read_to_end(&mut rest)).await.expect("in time");
        match end {
            Ok(_) => panic!("an orderly end after {:?}", String::from_utf8_lossy(&rest)),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
}

/// A connection that is accepted by the proxy and then reset, which may be before the client looks.
pub async fn expect_reset(netns: &Netns, to: SocketAddr) {
    match Client::try_connect(netns, to).await {
        Ok(mut client) => client.is_reset().await,
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{to}"),
    }
}
