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
use culvert_objects::Directory;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::authority::{Issuing, Keeper, Store, Timing};
use crate::authorize::Authorizer;
use crate::flags::RunFlags;
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
        listen = %flags.listen, trust_domain = %flags.trust_domain, cluster = flags.cluster,
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
    _directory: Directory,
}

async fn prepare(flags: &RunFlags, readiness: &Readiness, metrics: Metrics) -> anyhow::Result<Prepared> {
    let roots_check = readiness.check("roots");
    let serving_check = readiness.check("serving certificate");
    let keys_check = readiness.check("token keys");
    let objects_check = readiness.check("objects");

    let store = Store::open(&flags.data_dir)?;
    let timing = Timing { overlap: flags.root_overlap, max_lifetime: flags.max_lifetime };
    let published = flags.trust_bundle_out.clone();
    let keeper = Keeper::start(store, &flags.trust_domain, timing, published, SystemTime::now())?;
    let issuing = keeper.issuing();
    tokio::spawn(show_roots(issuing.clone(), metrics.clone()));
    tokio::spawn(keeper.run(roots_check));
    let own = Identity::new(&flags.trust_domain, SYSTEM_NAMESPACE, CA_SERVICE_ACCOUNT)?;
    let config = serving::start(own, flags.max_lifetime, issuing.clone(), metrics.clone(), serving_check)?;

    let tokens = token_keys(flags, &keys_check).await?;
    let directory = objects(flags, &objects_check).await?;
    let authorizer = Authorizer::new(flags.trust_domain.clone(), placement::follow(directory.objects()));
    let shortest = flags.min_lifetime.min(flags.max_lifetime);
    let lifetimes = Lifetimes { shortest, longest: flags.max_lifetime };
    let service = CertificateService::new(tokens, authorizer, issuing, lifetimes, metrics);
    let service = IstioCertificateServiceServer::new(service).max_decoding_message_size(LARGEST_REQUEST);
    let listener =
        TcpListener::bind(flags.listen).await.with_context(|| format!("address {}", flags.listen))?;
    // From here on these two look after themselves: they keep their last good content.
    keys_check.satisfied();
    objects_check.satisfied();
    Ok(Prepared { service, listener, config, _directory: directory })
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
    let deadline = Instant::now() + FOR_OTHERS;
    loop {
        match Verifier::open(&flags.token_keys, flags.token_issuer.as_str(), TOKEN_AUDIENCE) {
            Ok(verifier) => return Ok(verifier),
            Err(error) if Instant::now() >= deadline => return Err(error).context("token keys"),
            Err(error) => check.missing(error.to_string()),
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn objects(flags: &RunFlags, check: &Check) -> anyhow::Result<Directory> {
    let deadline = Instant::now() + FOR_OTHERS;
    loop {
        match Directory::open(&flags.objects).await {
            Ok(directory) => return Ok(directory),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("objects in {}", flags.objects.display()));
            }
            Err(error) => check.missing(format!("{}: {error}", flags.objects.display())),
        }
        sleep(LOOK_EVERY).await;
    }
}
