//! The process: flags, and how its parts are put together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use culvert_api::names::TOKEN_AUDIENCE;
use culvert_identity::admin::{Admin, AdminServer, Answer, Readiness};
use culvert_identity::grpc::{self, TokenFile};
use culvert_identity::logging::LogControl;
use culvert_identity::token::Verifier;
use culvert_identity::{bundle, process};
use culvert_objects::Directory;
use http::Method;
use ipnet::IpNet;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::certificate::OwnCertificate;
use crate::hub::{Config, Hub, Overview};
use crate::metrics::Metrics;
use crate::serve::Streams;
use crate::status::StatusWriter;
use crate::translate::Environment;
use crate::wanted;

/// How long the trust bundle may take to appear: the CA writes it when it starts.
const BUNDLE: Duration = Duration::from_secs(60);

/// Flags of `culvert-controller run`.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Directory with the objects, as manifests; followed as it changes.
    #[arg(long)]
    pub objects: PathBuf,
    /// Directory that statuses are written to.
    #[arg(long)]
    pub statuses: PathBuf,
    /// Directory that objects which Gateways need are written to, in the layout of the statuses; whoever runs the controller
    /// makes them. Without it Gateways have no pods.
    #[arg(long)]
    pub wanted: Option<PathBuf>,
    /// Where node proxies connect.
    #[arg(long, default_value = "0.0.0.0:15010")]
    pub listen: SocketAddr,
    /// JSON Web Key Set that tokens are checked with.
    #[arg(long)]
    pub token_keys: PathBuf,
    /// Issuer of the tokens accepted.
    #[arg(long)]
    pub token_issuer: String,
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
    #[arg(long, default_value = "Kubernetes")]
    pub cluster: String,
    /// Name of the network that the cluster's pods are on.
    #[arg(long, default_value = "default")]
    pub network: String,
    /// Range of pod addresses; repeated. Without it, the ranges of the Nodes.
    #[arg(long)]
    pub pod_cidr: Vec<IpNet>,
    /// Range of Service addresses; repeated.
    #[arg(long)]
    pub service_cidr: Vec<IpNet>,
}

/// Runs until the process is told to end.
///
/// # Errors
/// When something it cannot do without is missing at the start, or a part of it ends.
pub async fn run(flags: Flags, log: LogControl) -> anyhow::Result<()> {
    let terminated = process::terminated()?;
    tokio::select! {
        signal = terminated => {
            tracing::info!(signal, "ending");
            Ok(())
        }
        ended = serve(flags, log) => ended,
    }
}

async fn serve(flags: Flags, log: LogControl) -> anyhow::Result<()> {
    let metrics = Metrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let readiness = Readiness::default();
    let overview = Arc::new(std::sync::OnceLock::new());
    let objects_ready = readiness.check("objects");
    let certificate_ready = readiness.check("certificate");
    let listening = readiness.check("listener");
    let _admin = admin(&flags, readiness, registry, log, overview.clone())?;

    let at = &flags.objects;
    let directory = Directory::open(at).await.with_context(|| format!("objects in {}", at.display()))?;
    let writer = StatusWriter::new(&flags.statuses, metrics.clone());
    let existing = writer.existing().with_context(|| format!("statuses in {}", flags.statuses.display()))?;
    let config = Config {
        environment: Environment {
            cluster: flags.cluster.clone(),
            network: flags.network.clone(),
            pod_cidrs: flags.pod_cidr.clone(),
            service_cidrs: flags.service_cidr.clone(),
        },
        objects: directory.objects(),
        statuses: writer.queue(),
        existing_statuses: existing,
        metrics: metrics.clone(),
    };
    let (hub, handle, trust_domain) = Hub::start(config).await;
    objects_ready.ready();
    // Set once, here; nobody else has it.
    let _ = overview.set(hub.overview());

    let wanted = flags.wanted.clone().map(|directory| wanted::write(directory, hub.wanted()));
    let wanted = async {
        match wanted {
            Some(writer) => writer.await,
            None => std::future::pending().await,
        }
    };
    let verifier = Verifier::open(&flags.token_keys, &flags.token_issuer, TOKEN_AUDIENCE)?;
    let streams = Streams::new(Arc::new(verifier), handle, metrics.clone());
    let own = OwnCertificate {
        ca: flags.ca.clone(),
        token: TokenFile::new(&flags.token),
        bundle: bundle::watch_file(&flags.trust_bundle, BUNDLE).await?,
        trust_domain,
        readiness: certificate_ready,
        metrics,
    };
    let (publish, mut issued) = watch::channel(None);
    let server = async {
        // Nobody can be served before there is a certificate.
        let first = issued.wait_for(Option::is_some).await.context("the certificate's task ended")?.clone();
        let listener = TcpListener::bind(flags.listen)
            .await
            .with_context(|| format!("listening on {}", flags.listen))?;
        tracing::info!(address = %listener.local_addr()?, "serving node proxies");
        listening.ready();
        let config = configurations(first.context("a certificate")?, issued);
        let incoming = grpc::incoming(listener, config);
        grpc::server().add_service(streams.service()).serve_with_incoming(incoming).await.context("serving")
    };
    tokio::select! {
        served = server => served,
        () = hub.run() => anyhow::bail!("the source of the objects ended"),
        () = wanted => anyhow::bail!("the writer of wanted objects ended"),
        () = writer.run() => anyhow::bail!("the status writer ended"),
        () = own.run(publish) => anyhow::bail!("the certificate's task ended"),
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
