//! What the controller has to do with an API server: which kinds it follows, who of the replicas leads, and the mesh's own
//! object.

mod events;
mod mesh_object;
mod replicas;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use culvert_api::names::{SYSTEM_NAMESPACE, TOKEN_AUDIENCE};
use culvert_identity::admin::Check;
use culvert_kubernetes::client::RequestError;
use culvert_kubernetes::lease::{self, Election, Leadership};
use culvert_kubernetes::tokens::Reviewer;
use culvert_kubernetes::{Client, Interest, Purpose, Server, Source, Tokens, client};
use culvert_objects::{Kind, Objects};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{Api, ListParams};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::hub::Overview;
use crate::status::{self, ApiStatuses, StatusQueue};

pub use replicas::Follower;

/// The Lease of the replica that writes statuses, in the mesh's namespace.
pub const LEASE: &str = "culvert-controller";
/// For giving the Lease back at the end.
const RELEASE: Duration = Duration::from_secs(5);

/// Kinds that are followed: those that `translate` reads.
const READ: &[Kind] = &[
    Kind::Node,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::ReferenceGrant,
    Kind::ReferencePolicy,
    Kind::BackendTlsPolicy,
];
/// Those whose status is written too.
const WRITTEN: &[Kind] = &[
    Kind::Namespace,
    Kind::Pod,
    Kind::MeshConfig,
    Kind::XMesh,
    Kind::GatewayClass,
    Kind::Gateway,
    Kind::ListenerSet,
    Kind::XListenerSet,
    Kind::XBackendTrafficPolicy,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::UdpRoute,
];

/// Every kind that is followed.
pub fn kinds() -> impl Iterator<Item = Kind> {
    READ.iter().chain(WRITTEN).copied()
}

/// The ranges of Service addresses that an API server tells.
///
/// # Errors
/// When it does not: before Kubernetes 1.33, or without the right to list them.
pub async fn service_cidrs(client: &Client) -> Result<Vec<IpNet>, RequestError> {
    let ranges: Api<ServiceCIDR> = Api::all(client.clone());
    let list = client::within(ranges.list(&ListParams::default())).await?;
    let specs = list.items.into_iter().filter_map(|range| range.spec?.cidrs);
    Ok(specs.flatten().filter_map(|range| range.parse().ok()).collect())
}

/// Flags of the API server.
#[derive(Args, Clone, Debug)]
pub struct ClusterFlags {
    /// Read objects from the API server of the cluster that the process runs in, check tokens there, and, while this replica
    /// leads, write statuses.
    #[arg(long, conflicts_with = "objects")]
    pub kubernetes: bool,
    /// As --kubernetes, with the API server and the user of a kubeconfig file.
    #[arg(long, conflicts_with = "objects")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this replica, unlike that of any other; unless given, its host name with something random.
    #[arg(long, conflicts_with = "objects")]
    pub replica: Option<String>,
    /// How long the replicas wait for a leader that is not heard of, in seconds.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..=300))]
    pub lease_seconds: u16,
}

impl ClusterFlags {
    /// None: objects come from a directory.
    pub fn server(&self) -> Option<Server> {
        match &self.kubeconfig {
            Some(path) => Some(Server::Kubeconfig(path.clone())),
            None => self.kubernetes.then_some(Server::InCluster),
        }
    }

    fn replica(&self) -> String {
        self.replica.clone().unwrap_or_else(|| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            format!("{}_{:08x}", host.trim(), rand::random::<u32>())
        })
    }
}

/// Standing for election, beyond the end of everything that writes: the Lease is given back last.
pub struct Candidacy {
    tasks: JoinSet<()>,
    end: watch::Sender<bool>,
}

impl Default for Candidacy {
    fn default() -> Self {
        Self { tasks: JoinSet::new(), end: watch::Sender::new(false) }
    }
}

impl Candidacy {
    fn stand(&mut self, client: Client, election: Election) -> Leadership {
        let mut end = self.end.subscribe();
        let ends = async move {
            // Dropped is ended.
            let _ = end.wait_for(|end| *end).await;
        };
        let (leadership, candidate) = lease::run(client, SYSTEM_NAMESPACE, LEASE, election, ends);
        self.tasks.spawn(candidate);
        leadership
    }

    /// Gives the Lease back, if this replica holds it. Takes at most 5 s.
    pub async fn end(mut self) {
        self.end.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(RELEASE, all).await.is_err() {
            tracing::info!("the Lease is left to expire");
        }
    }
}

/// An API server that is followed.
pub struct Cluster {
    client: Client,
    source: Source,
    leadership: Leadership,
    replica: String,
}

impl Cluster {
    /// Follows an API server and stands for election there. Waits for all objects, however long that takes; `check` says
    /// for what.
    ///
    /// # Errors
    /// When the configuration of the client cannot be read.
    pub async fn open(
        server: &Server,
        flags: &ClusterFlags,
        check: &Check,
        candidacy: &mut Candidacy,
    ) -> anyhow::Result<Self> {
        let client = client::connect(server).await.context("API server")?;
        let of = |kinds: &[Kind], purpose| -> Vec<Interest> {
            kinds.iter().map(|kind| Interest { kind: *kind, purpose }).collect()
        };
        let interests = [of(READ, Purpose::Read), of(WRITTEN, Purpose::ReadAndWriteStatus)].concat();
        let source = Source::open(client.clone(), &interests, check).await;
        let duration = Duration::from_secs(flags.lease_seconds.into());
        let replica = flags.replica();
        let leadership = candidacy.stand(client.clone(), Election::new(replica.clone(), duration));
        Ok(Self { client, source, leadership, replica })
    }

    /// The name of this replica.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    pub fn objects(&self) -> watch::Receiver<Arc<Objects>> {
        self.source.objects()
    }

    pub fn statuses(&self) -> ApiStatuses {
        ApiStatuses {
            client: self.client.clone(),
            served: self.source.served(),
            current: self.source.statuses(),
            leadership: self.leadership.clone(),
        }
    }

    pub fn tokens(&self) -> Tokens {
        Tokens::Review(Reviewer::new(self.client.clone(), TOKEN_AUDIENCE))
    }

    /// The ranges of Service addresses, where the API server tells them.
    pub async fn service_cidrs(&self) -> Vec<IpNet> {
        service_cidrs(&self.client).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the API server does not tell the ranges of Service addresses; give --service-cidr");
            Vec::new()
        })
    }

    /// Writes what only the leader writes, through `queue` and of what `overview` shows, and follows what other replicas are
    /// told. Ends when the hub does.
    pub async fn run(&self, queue: StatusQueue, overview: Overview, follower: Follower) {
        let events = follower.hub.events.clone();
        let lead = status::lead(self.leadership.clone(), self.source.statuses(), queue, events);
        let mesh = mesh_object::keep(self.client.clone(), self.source.served(), self.leadership.clone());
        let events = events::tell(self.client.clone(), &self.replica, self.leadership.clone(), overview);
        tokio::select! {
            () = lead => {}
            () = mesh => {}
            () = events => {}
            () = follower.run() => {}
        }
    }
}
