//! The authority as a process.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use culvert_api::istio_ca::istio_certificate_service_server::IstioCertificateServiceServer;
use culvert_api::names::{CA_SERVICE_ACCOUNT, SYSTEM_NAMESPACE, TOKEN_AUDIENCE};
use culvert_identity::admin::{Admin, Check, Readiness};
use culvert_identity::logging::LogControl;
use culvert_identity::token::Verifier;
use culvert_identity::{Identity, grpc, process};
use culvert_kubernetes::tokens::Reviewer;
use culvert_kubernetes::{Client, Interest, Purpose, Server, Source, Tokens, client};
use culvert_objects::{Directory, Kind, Objects};
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::authority::{Issuing, Keeper, Provided, SharedKeeper, Store, Timing, put_next_root};
use crate::authorize::Authorizer;
use crate::flags::{RotateFlags, RunFlags};
use crate::metrics::Metrics;
use crate::placement;
use crate::service::{CertificateService, Lifetimes};
use crate::serving;

/// Others may still be starting: objects and token keys are waited for this long.
const FOR_OTHERS: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Requests under way when the process is told to end get this long.
const DRAIN: Duration = Duration::from_secs(5);
/// Largest request in bytes; a certificate request has less than one thousand.
const LARGEST_REQUEST: usize = 64 * 1024;

/// Signs until the process is told to end.
///
/// # Errors
/// When something it needs is damaged, or missing for a minute.
pub async fn run(flags: RunFlags, log: LogControl) -> anyhow::Result<()> {
    let terminated = process::terminated().context("signals")?;
    tokio::pin!(terminated);
    let readiness = Readiness::default();
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let _admin = Admin::new(readiness.clone(), Arc::new(registry), log).start(flags.admin)?;
    let prepared = tokio::select! {
        prepared = prepare(&flags, &readiness, metrics) => prepared?,
        signal = &mut terminated => {
            tracing::info!(signal, "ending before it was ready");
            return Ok(());
        }
    };
    tracing::info!(
        listen = %flags.listen, trust_domain = %flags.trust_domain, cluster = flags.cluster_name,
        "signing certificates"
    );
    let (stop, stopped) = oneshot::channel::<Infallible>();
    let stopped = async {
        // Dropping the sender is the signal.
        let _ = stopped.await;
    };
    let server = grpc::server()
        .add_service(prepared.service)
        .serve_with_incoming_shutdown(grpc::incoming(prepared.listener, prepared.config), stopped);
    tokio::pin!(server);
    let signal = tokio::select! {
        ended = &mut server => return Ok(ended?),
        signal = terminated => signal,
    };
    tracing::info!(signal, "ending");
    drop(stop);
    match timeout(DRAIN, server).await {
        Ok(ended) => Ok(ended?),
        Err(_) => {
            tracing::info!("connections were still open at the end");
            Ok(())
        }
    }
}

/// Everything that is there before the first connection is taken.
struct Prepared {
    service: IstioCertificateServiceServer<CertificateService>,
    listener: TcpListener,
    config: watch::Receiver<Arc<ServerConfig>>,
    /// Followed while it lives.
    _source: Following,
}

/// Where pods and nodes come from.
enum Following {
    Directory(Directory),
    Cluster(Source),
}

impl Following {
    fn objects(&self) -> watch::Receiver<Arc<Objects>> {
        match self {
            Self::Directory(directory) => directory.objects(),
            Self::Cluster(source) => source.objects(),
        }
    }
}

/// What differs between a data directory and an API server.
struct Inputs {
    issuing: watch::Receiver<Arc<Issuing>>,
    tokens: Tokens,
    source: Following,
}

/// What the roots, the tokens and the objects have to say about readiness.
struct Checks {
    roots: Check,
    keys: Check,
    objects: Check,
}

async fn of_directory(flags: &RunFlags, checks: Checks) -> anyhow::Result<Inputs> {
    let needs = |flag: &str| format!("--data-dir needs {flag}");
    let data_dir = flags.data_dir.as_ref().with_context(|| needs("a directory"))?;
    let published = flags.trust_bundle_out.clone().with_context(|| needs("--trust-bundle-out"))?;
    let store = Store::open(data_dir)?;
    let (timing, provided) = (timing(flags), provided(flags));
    let keeper = Keeper::start(store, &flags.trust_domain, timing, provided, published, SystemTime::now())?;
    let issuing = keeper.issuing();
    tokio::spawn(keeper.run(checks.roots));
    let tokens = token_keys(flags, &checks.keys).await?;
    let directory = objects(flags, &checks.objects).await?;
    // From here on these two look after themselves: they keep their last good content.
    checks.keys.satisfied();
    checks.objects.satisfied();
    Ok(Inputs { issuing, tokens: Tokens::Keys(tokens), source: Following::Directory(directory) })
}

async fn of_cluster(flags: &RunFlags, server: &Server, checks: Checks) -> anyhow::Result<Inputs> {
    let client = client::connect(server).await.context("API server")?;
    let interests = [Kind::Pod, Kind::Node].map(|kind| Interest { kind, purpose: Purpose::Read });
    let source = Source::open(client.clone(), &interests, &checks.objects).await;
    checks.objects.satisfied();
    // Nothing to wait for: tokens are asked about one by one.
    checks.keys.satisfied();
    let keeper = shared_keeper(flags, &client, &checks.roots).await?;
    let issuing = keeper.issuing();
    tokio::spawn(keeper.run(checks.roots));
    let tokens = Tokens::Review(Reviewer::new(client, TOKEN_AUDIENCE));
    Ok(Inputs { issuing, tokens, source: Following::Cluster(source) })
}

/// Tries for a minute: RBAC rules and the provided root may come right after the pod.
async fn shared_keeper(flags: &RunFlags, client: &Client, check: &Check) -> anyhow::Result<SharedKeeper> {
    let deadline = Instant::now() + FOR_OTHERS;
    loop {
        let store = flags.cluster.store(client);
        let (timing, provided, now) = (timing(flags), provided(flags), SystemTime::now());
        match SharedKeeper::start(store, &flags.trust_domain, timing, provided, now).await {
            Ok(keeper) => return Ok(keeper),
            Err(error) if Instant::now() >= deadline => return Err(error).context("the roots"),
            Err(error) => check.missing(error.to_string()),
        }
        sleep(LOOK_EVERY).await;
    }
}

fn timing(flags: &RunFlags) -> Timing {
    Timing { overlap: flags.root_overlap, max_lifetime: flags.max_lifetime }
}

fn provided(flags: &RunFlags) -> Option<Provided> {
    flags.provided.as_deref().map(Provided::new)
}

async fn prepare(flags: &RunFlags, readiness: &Readiness, metrics: Metrics) -> anyhow::Result<Prepared> {
    let checks = Checks {
        roots: readiness.check("roots"),
        keys: readiness.check("token keys"),
        objects: readiness.check("objects"),
    };
    let serving_check = readiness.check("serving certificate");
    let listening = readiness.check("listener");
    let Inputs { issuing, tokens, source } = match flags.cluster.server() {
        Some(server) => of_cluster(flags, &server, checks).await?,
        None => of_directory(flags, checks).await?,
    };
    tokio::spawn(show_roots(issuing.clone(), metrics.clone()));
    let own = Identity::new(&flags.trust_domain, SYSTEM_NAMESPACE, CA_SERVICE_ACCOUNT)?;
    let config = serving::start(own, flags.max_lifetime, issuing.clone(), metrics.clone(), serving_check)?;
    let authorizer = Authorizer::new(flags.trust_domain.clone(), placement::follow(source.objects()));
    let shortest = flags.min_lifetime.min(flags.max_lifetime);
    let lifetimes = Lifetimes { shortest, longest: flags.max_lifetime };
    let service = CertificateService::new(tokens, authorizer, issuing, lifetimes, metrics);
    let service = IstioCertificateServiceServer::new(service).max_decoding_message_size(LARGEST_REQUEST);
    let listener =
        TcpListener::bind(flags.listen).await.with_context(|| format!("address {}", flags.listen))?;
    listening.satisfied();
    Ok(Prepared { service, listener, config, _source: source })
}

/// Puts down the next root and says where.
///
/// # Errors
/// When there is no root yet, one is being replaced already, or it cannot be written.
pub async fn rotate_root(flags: &RotateFlags) -> anyhow::Result<String> {
    let now = SystemTime::now();
    if let Some(server) = flags.cluster.server() {
        let client = client::connect(&server).await.context("API server")?;
        flags.cluster.store(&client).put_next_root(now).await?;
        return Ok(format!("Secret {SYSTEM_NAMESPACE}/{}", flags.cluster.root_secret));
    }
    let directory = flags.data_dir.as_ref().context("--data-dir or --kubernetes is needed")?;
    put_next_root(directory, now)?;
    Ok(directory.display().to_string())
}

async fn show_roots(mut issuing: watch::Receiver<Arc<Issuing>>, metrics: Metrics) {
    loop {
        metrics.show_roots(&issuing.borrow_and_update().clone());
        if issuing.changed().await.is_err() {
            return;
        }
    }
}

async fn token_keys(flags: &RunFlags, check: &Check) -> anyhow::Result<Verifier> {
    let keys = flags.token_keys.as_ref().context("--data-dir needs --token-keys")?;
    let issuer = flags.token_issuer.as_ref().context("--data-dir needs --token-issuer")?;
    let deadline = Instant::now() + FOR_OTHERS;
    loop {
        match Verifier::open(keys, issuer, TOKEN_AUDIENCE) {
            Ok(verifier) => return Ok(verifier),
            Err(error) if Instant::now() >= deadline => return Err(error).context("token keys"),
            Err(error) => check.missing(error.to_string()),
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn objects(flags: &RunFlags, check: &Check) -> anyhow::Result<Directory> {
    let at = flags.objects.as_ref().context("--data-dir needs --objects")?;
    let deadline = Instant::now() + FOR_OTHERS;
    loop {
        match Directory::open(at).await {
            Ok(directory) => return Ok(directory),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("objects in {}", at.display()));
            }
            Err(error) => check.missing(format!("{}: {error}", at.display())),
        }
        sleep(LOOK_EVERY).await;
    }
}
