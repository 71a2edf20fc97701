//! The tasks of the control runtime.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use culvert_api::names::{CA_SERVICE_ACCOUNT, CONTROLLER_SERVICE_ACCOUNT, SYSTEM_NAMESPACE};
use culvert_cni::install::{self, Credentials, Entry, Installed, PluginToken, TokenSource};
use culvert_identity::admin::Check;
use culvert_identity::certificate_client::CertificateClient;
use culvert_identity::grpc::{self, TokenFile};
use culvert_identity::{Identity, TrustBundle, TrustDomain};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{Flags, Parts, complete_state};
use crate::identity::{CertificateManager, CertificateSettings};
use crate::pods::{Manager, ManagerSettings, Places, PodReports};
use crate::state::{
    ControlChannels, ControlClient, ControlSettings, Keeper, Kept, NamespaceKeeper, Resources, Snapshots,
};
use crate::worker::Workers;

/// Lifetime of certificates asked for; the CA may shorten it.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

const NO_NETWORK: &str = "there is no CNI configuration to chain the plugin to yet";

/// The tasks of the control runtime; each ends when cancelled, and none before.
pub(super) struct Tasks {
    pub set: JoinSet<&'static str>,
    /// Ends what takes in new pods, and certificates with it: nothing is to be forgotten while connections drain.
    pub first: CancellationToken,
    /// Ends everything.
    pub cancel: CancellationToken,
}

impl Tasks {
    pub fn new() -> Self {
        let cancel = CancellationToken::new();
        Self { set: JoinSet::new(), first: cancel.child_token(), cancel }
    }

    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(async move {
            task.await;
            name
        });
    }

    pub fn control(
        &mut self,
        flags: &Flags,
        parts: &Parts,
        token: &TokenFile,
        bundle: &watch::Receiver<Arc<TrustBundle>>,
        resources: Resources,
    ) -> anyhow::Result<()> {
        let (kept, newest) = watch::channel(Kept::default());
        let settings = ControlSettings {
            url: flags.controller.clone(),
            controller: system_identity(&flags.trust_domain, CONTROLLER_SERVICE_ACCOUNT)?,
            token: token.clone(),
            bundle: bundle.clone(),
        };
        let channels = ControlChannels {
            snapshots: parts.snapshots.clone(),
            telemetry: parts.telemetry.clone(),
            status: parts.control.clone(),
            pods: parts.reports.clone(),
            kept,
        };
        let client = ControlClient::new(settings, channels, resources).context("--controller")?;
        self.spawn("control stream", client.run(self.cancel.child_token()));
        self.spawn(
            "keeper of the state",
            Keeper::new(&flags.state_dir, newest).run(self.cancel.child_token()),
        );
        self.spawn(
            "keeper of the namespaces",
            NamespaceKeeper::new(&flags.state_dir, parts.snapshots.clone()).run(self.cancel.child_token()),
        );
        Ok(())
    }

    pub fn certificates(
        &mut self,
        flags: &Flags,
        parts: &Parts,
        token: &TokenFile,
        bundle: &watch::Receiver<Arc<TrustBundle>>,
    ) -> anyhow::Result<()> {
        let ca = system_identity(&flags.trust_domain, CA_SERVICE_ACCOUNT)?;
        let channel = grpc::channel(&flags.ca, ca, bundle.clone()).context("--ca")?;
        let settings = CertificateSettings {
            client: CertificateClient::new(channel, token.clone()),
            lifetime: CERTIFICATE_LIFETIME,
            bundle: bundle.clone(),
            snapshots: parts.snapshots.clone(),
            telemetry: parts.telemetry.clone(),
        };
        let manager = CertificateManager::new(parts.certificates.clone(), settings);
        self.spawn("certificate manager", manager.run(self.first.child_token()));
        Ok(())
    }

    pub fn pods(
        &mut self,
        flags: &Flags,
        parts: &Parts,
        workers: &Workers,
        check: Check,
    ) -> anyhow::Result<()> {
        let settings = ManagerSettings {
            enrolment_socket: flags.enrolment_socket.clone(),
            state_dir: flags.state_dir.clone(),
            firewall: flags.firewall,
            places: Places { processes: flags.proc_dir.clone(), namespaces: flags.netns_dir.clone() },
        };
        let manager = Manager::new(
            settings,
            parts.snapshots.clone(),
            parts.certificates.clone(),
            workers.clone(),
            parts.telemetry.clone(),
        )?;
        self.spawn("reports of pods", forward_reports(manager.reports(), parts.pods.clone(), check));
        let cancel = self.first.child_token();
        self.spawn("pods manager", async move {
            if let Err(error) = manager.run(cancel).await {
                error!(%error, "pods cannot be managed");
            }
        });
        Ok(())
    }

    /// New pods are handed over from here on, also when their labels have them start past this process.
    pub fn cni(&mut self, flags: &Flags, node: &str, check: Check) {
        let entry = Entry {
            enrolment_socket: flags.enrolment_socket.clone(),
            state_directory: flags.state_dir.clone(),
            node: node.to_owned(),
            unknown_namespaces: flags.cni_unknown_namespaces,
            host_conf_dir: flags.cni_host_conf_dir.clone().unwrap_or_else(|| flags.cni.cni_conf_dir.clone()),
        };
        check.missing(NO_NETWORK);
        let (installed, told) = watch::channel(Installed::Waiting);
        let (token, tokens) = watch::channel(PluginToken::Awaited);
        match TokenSource::in_cluster(node) {
            Ok(source) => {
                self.spawn("token of the CNI plugin", source.keep(token, self.cancel.child_token()))
            }
            Err(error) => {
                info!(%error, "the CNI plugin asks no API server");
                token.send_replace(PluginToken::NodeProxys);
            }
        }
        let keep = install::keep(
            flags.cni.clone(),
            entry,
            Credentials::in_cluster(),
            tokens,
            installed,
            // One that drains may have been told to end for good.
            self.first.child_token(),
        );
        self.spawn("CNI plugin", keep);
        self.spawn("check of the CNI plugin", say_what_is_installed(told, check));
    }

    /// The check is held as long as the process runs: it fails when it is dropped.
    pub fn say_when_complete(&mut self, snapshots: Snapshots, state: Check) {
        let cancel = self.cancel.child_token();
        self.spawn("readiness", async move {
            if cancel.run_until_cancelled(complete_state(&snapshots, &state)).await.is_some() {
                state.ready();
                cancel.cancelled().await;
            }
        });
    }
}

/// Passes on what the manager reports, to whoever was there before it. Its first report comes when the pods of the
/// last process are known and the enrolment socket is served.
async fn forward_reports(mut from: watch::Receiver<PodReports>, to: watch::Sender<PodReports>, check: Check) {
    while from.changed().await.is_ok() {
        to.send_replace(from.borrow_and_update().clone());
        check.ready();
    }
}

async fn say_what_is_installed(mut installed: watch::Receiver<Installed>, check: Check) {
    while installed.changed().await.is_ok() {
        match &*installed.borrow_and_update() {
            Installed::After(_) => check.ready(),
            Installed::Waiting => check.missing(NO_NETWORK),
            Installed::Failed(error) => check.missing(error.clone()),
        }
    }
}

fn system_identity(trust_domain: &TrustDomain, service_account: &str) -> anyhow::Result<Identity> {
    Ok(Identity::new(trust_domain, SYSTEM_NAMESPACE, service_account)?)
}
