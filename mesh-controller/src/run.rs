//! The process: flags, and how its parts are put together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use culvert_api::names::TOKEN_AUDIENCE;
use culvert_identity::admin::{Admin, AdminServer, Answer, Check, Readiness};
use culvert_identity::grpc::{self, TokenFile};
use culvert_identity::logging::LogControl;
use culvert_identity::token::Verifier;
use culvert_identity::{bundle, process};
use culvert_kubernetes::{Server, Tokens};
use culvert_objects::{Directory, Objects};
use http::Method;
use ipnet::IpNet;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::certificate::OwnCertificate;
use crate::cluster::{Candidacy, Cluster, ClusterFlags, Follower};
use crate::hub::{Config, Hub, Overview};
use crate::metrics::Metrics;
use crate::serve::{Reports, Streams};
use crate::session_keys::{self, SessionKeys, Store};
use crate::status::StatusWriter;
use crate::translate::Environment;
use crate::wanted;

/// How long the trust bundle may take to appear: the CA writes it when it starts.
const BUNDLE: Duration = Duration::from_secs(60);

/// Flags of `culvert-controller run`. Objects come from a directory, or with `--kubernetes` or `--kubeconfig` from an API
/// server.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Directory with the objects, as manifests; followed as it changes.
    #[arg(long, required_unless_present_any = ["kubernetes", "kubeconfig"],
        requires_all = ["statuses", "token_keys", "token_issuer"])]
    pub objects: Option<PathBuf>,
    /// Directory that statuses are written to.
    #[arg(long, requires = "objects")]
    pub statuses: Option<PathBuf>,
    /// Directory that objects which Gateways need are written to, in the layout of the statuses; whoever runs the controller
    /// makes them. Without it Gateways have no pods.
    #[arg(long, requires = "objects")]
    pub wanted: Option<PathBuf>,
    /// JSON Web Key Set that tokens are checked with.
    #[arg(long, requires = "objects")]
    pub token_keys: Option<PathBuf>,
    /// Issuer of the tokens accepted.
    #[arg(long, requires = "objects")]
    pub token_issuer: Option<String>,
    #[command(flatten)]
    pub cluster: ClusterFlags,
    /// Where node proxies connect.
    #[arg(long, default_value = "0.0.0.0:15010")]
    pub listen: SocketAddr,
    /// File that the keys of sessions are kept in, made where it is missing. Without it they are new with every start.
    #[arg(long, requires = "objects")]
    pub session_keys: Option<PathBuf>,
    /// The controller's own service account token, for the CA.
    #[arg(long)]
    pub token: PathBuf,
    /// URL of the CA.
    #[arg(long)]
    pub ca: String,
    /// Root certificates, PEM.
    #[arg(long)]
    pub trust_bundle: PathBuf,
    /// Where health, metrics and configuration are served.
    #[arg(long, default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// Name of the cluster, first part of every workload's uid.
    #[arg(long = "cluster", default_value = "Kubernetes")]
    pub cluster_name: String,
    /// Name of the network that the cluster's pods are on.
    #[arg(long, default_value = "default")]
    pub network: String,
    /// Range of pod addresses; repeated. Without it, the ranges of the Nodes.
    #[arg(long)]
    pub pod_cidr: Vec<IpNet>,
    /// Range of Service addresses; repeated. Without it, those that the API server tells (ServiceCIDR, Kubernetes 1.33).
    #[arg(long)]
    pub service_cidr: Vec<IpNet>,
}

/// Runs until the process is told to end.
///
/// # Errors
/// When something it cannot do without is missing at the start, or a part of it ends.
pub async fn run(flags: Flags, log: LogControl) -> anyhow::Result<()> {
    let terminated = process::terminated()?;
    let mut candidacy = Candidacy::default();
    let ended = tokio::select! {
        signal = terminated => {
            tracing::info!(signal, "ending");
            Ok(())
        }
        ended = serve(flags, log, &mut candidacy) => ended,
    };
    // Nothing is written any more: another replica may lead.
    candidacy.end().await;
    ended
}

/// What differs between a directory and an API server.
struct Inputs {
    objects: watch::Receiver<Arc<Objects>>,
    writer: StatusWriter,
    tokens: Tokens,
    service_cidrs: Vec<IpNet>,
    session_keys: SessionKeys,
    source: Following,
}

/// Followed while it lives.
enum Following {
    Directory(#[expect(dead_code, reason = "held, not used")] Directory),
    Cluster(Cluster),
}

impl Following {
    /// The name of this replica; a directory has one controller.
    fn replica(&self) -> String {
        match self {
            Self::Directory(_) => "only".to_owned(),
            Self::Cluster(cluster) => cluster.replica().to_owned(),
        }
    }
}

async fn of_directory(flags: &Flags, metrics: &Metrics) -> anyhow::Result<Inputs> {
    let missing = |flag: &str| format!("--objects needs {flag}");
    let at = flags.objects.as_ref().with_context(|| missing("a directory"))?;
    let statuses = flags.statuses.as_ref().with_context(|| missing("--statuses"))?;
    let keys = flags.token_keys.as_ref().with_context(|| missing("--token-keys"))?;
    let issuer = flags.token_issuer.as_ref().with_context(|| missing("--token-issuer"))?;
    let directory = Directory::open(at).await.with_context(|| format!("objects in {}", at.display()))?;
    let store = flags.session_keys.clone().map_or(Store::Process, Store::File);
    Ok(Inputs {
        objects: directory.objects(),
        writer: StatusWriter::new(statuses, metrics.clone()),
        tokens: Tokens::Keys(Verifier::open(keys, issuer, TOKEN_AUDIENCE)?),
        service_cidrs: flags.service_cidr.clone(),
        session_keys: session_keys::follow(store).await,
        source: Following::Directory(directory),
    })
}

async fn of_cluster(
    flags: &Flags,
    server: &Server,
    check: &Check,
    metrics: &Metrics,
    candidacy: &mut Candidacy,
) -> anyhow::Result<Inputs> {
    let cluster = Cluster::open(server, &flags.cluster, check, candidacy).await?;
    let service_cidrs = match flags.service_cidr.as_slice() {
        [] => cluster.service_cidrs().await,
        given => given.to_vec(),
    };
    Ok(Inputs {
        objects: cluster.objects(),
        writer: StatusWriter::to_api_server(cluster.statuses(), metrics.clone()),
        tokens: cluster.tokens(),
        service_cidrs,
        session_keys: session_keys::follow(Store::Cluster(cluster.client())).await,
        source: Following::Cluster(cluster),
    })
}

async fn serve(flags: Flags, log: LogControl, candidacy: &mut Candidacy) -> anyhow::Result<()> {
    let metrics = Metrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let readiness = Readiness::default();
    let overview = Arc::new(std::sync::OnceLock::new());
    let objects_ready = readiness.check("objects");
    let certificate_ready = readiness.check("certificate");
    let listening = readiness.check("listener");
    let _admin = admin(&flags, readiness, registry, log, overview.clone())?;

    let inputs = match flags.cluster.server() {
        Some(server) => of_cluster(&flags, &server, &objects_ready, &metrics, candidacy).await?,
        None => of_directory(&flags, &metrics).await?,
    };
    let config = config(&flags, &inputs, &metrics)?;
    let Inputs { writer, tokens, source, .. } = inputs;
    let (hub, handle, trust_domain) = Hub::start(config).await;
    objects_ready.ready();
    // Set once, here; nobody else has it.
    let shown = hub.overview();
    let _ = overview.set(shown.clone());

    let wanted = flags.wanted.clone().map(|directory| wanted::write(directory, hub.wanted()));
    let wanted = async {
        match wanted {
            Some(writer) => writer.await,
            None => std::future::pending().await,
        }
    };
    let tokens = Arc::new(tokens);
    let token = TokenFile::new(&flags.token);
    let bundle = bundle::watch_file(&flags.trust_bundle, BUNDLE).await?;
    let replica = source.replica();
    let follower = Follower {
        replica: replica.clone(),
        token: token.clone(),
        bundle: bundle.clone(),
        trust_domain: trust_domain.clone(),
        hub: handle.clone(),
    };
    let queue = writer.queue();
    let writing = writer.run();
    let cluster = async {
        match &source {
            Following::Cluster(cluster) => cluster.run(queue, shown, follower).await,
            Following::Directory(_) => std::future::pending().await,
        }
    };
    let server = GrpcServer {
        listen: flags.listen,
        listening,
        reports: Reports::new(tokens.clone(), handle.clone(), replica),
        streams: Streams::new(tokens, handle, metrics.clone()),
    };
    let own = OwnCertificate {
        ca: flags.ca.clone(),
        token,
        bundle,
        trust_domain,
        readiness: certificate_ready,
        metrics,
    };
    let (publish, issued) = watch::channel(None);
    tokio::select! {
        served = server.run(issued) => served,
        () = hub.run() => anyhow::bail!("the source of the objects ended"),
        () = cluster => anyhow::bail!("the cluster's task ended"),
        () = wanted => anyhow::bail!("the writer of wanted objects ended"),
        () = writing => anyhow::bail!("the status writer ended"),
        () = own.run(publish) => anyhow::bail!("the certificate's task ended"),
    }
}

fn config(flags: &Flags, inputs: &Inputs, metrics: &Metrics) -> anyhow::Result<Config> {
    Ok(Config {
        environment: Environment {
            cluster: flags.cluster_name.clone(),
            network: flags.network.clone(),
            pod_cidrs: flags.pod_cidr.clone(),
            service_cidrs: inputs.service_cidrs.clone(),
        },
        objects: inputs.objects.clone(),
        session_keys: inputs.session_keys.clone(),
        statuses: inputs.writer.queue(),
        existing_statuses: inputs.writer.existing().context("statuses of an earlier run")?,
        metrics: metrics.clone(),
    })
}

/// What node proxies and other replicas connect to.
struct GrpcServer {
    listen: SocketAddr,
    listening: Check,
    streams: Streams,
    reports: Reports,
}

impl GrpcServer {
    /// Serves from the first certificate on, each connection with the newest.
    async fn run(self, mut issued: watch::Receiver<Option<Arc<ServerConfig>>>) -> anyhow::Result<()> {
        let first = issued.wait_for(Option::is_some).await.context("the certificate's task ended")?.clone();
        let listener =
            TcpListener::bind(self.listen).await.with_context(|| format!("listening on {}", self.listen))?;
        tracing::info!(address = %listener.local_addr()?, "serving node proxies");
        self.listening.ready();
        let config = configurations(first.context("a certificate")?, issued);
        let incoming = grpc::incoming(listener, config);
        let services = grpc::server().add_service(self.streams.service()).add_service(self.reports.service());
        services.serve_with_incoming(incoming).await.context("serving")
    }
}

/// Follows the certificates, starting with the first.
fn configurations(
    first: Arc<ServerConfig>,
    mut issued: watch::Receiver<Option<Arc<ServerConfig>>>,
) -> watch::Receiver<Arc<ServerConfig>> {
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        while issued.changed().await.is_ok() {
            let newest = issued.borrow_and_update().clone();
            if let Some(config) = newest {
                sender.send_replace(config);
            }
        }
    });
    receiver
}

fn admin(
    flags: &Flags,
    readiness: Readiness,
    registry: Registry,
    log: LogControl,
    overview: Arc<std::sync::OnceLock<Overview>>,
) -> anyhow::Result<AdminServer> {
    let admin =
        Admin::new(readiness, Arc::new(registry), log).route(Method::GET, "/config", move |_| match overview
            .get()
        {
            Some(overview) => Answer::json(format!("{:#}\n", overview.json())),
            None => Answer::text(http::StatusCode::SERVICE_UNAVAILABLE, "the objects are not read yet\n"),
        });
    Ok(admin.start(flags.admin)?)
}
