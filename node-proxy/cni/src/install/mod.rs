//! Keeps the plugin in force on a node: its program, its credentials, and a network configuration of its own that stands
//! before all others and is the first of them with the plugin added at its end.
//!
//! A file of its own outlives what another CNI does to its own when the node starts, so no pod starts past the mesh
//! meanwhile; and removing it leaves everything as it was.

mod conflist;
mod kubeconfig;
mod program;
mod token;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use culvert_identity::files::{self, Readers};
use culvert_objects::directory::watch_directory;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use crate::call::UnknownNamespaces;
pub use conflist::{ConflistError, NAMES};
pub use kubeconfig::Credentials;
pub use program::Program;
pub use token::{PluginToken, TokenError, TokenSource};

/// What others change is looked for at least this often, for directories that cannot be watched.
const RESCAN: Duration = Duration::from_secs(2);
/// Writers of configurations write more than once.
const SETTLE: Duration = Duration::from_millis(20);
/// Name of the plugin's credentials, beside the configurations; no runtime takes it for one.
const KUBECONFIG: &str = "culvert-kubeconfig";

/// Where the plugin is installed.
#[derive(Args, Clone, Debug)]
pub struct Directories {
    /// Directory of the container runtime's network configurations
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Directory of the container runtime's network plugins
    #[arg(long, default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
}

/// What the plugin's entry says; paths are the host's, as the container runtime calls the plugin there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub enrolment_socket: PathBuf,
    pub state_directory: PathBuf,
    pub node: String,
    pub unknown_namespaces: UnknownNamespaces,
    /// The host's path of the configurations' directory, where the plugin finds its credentials.
    pub host_conf_dir: PathBuf,
}

/// Why the plugin is not in force.
#[derive(Debug, Error)]
pub enum InstallError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Conflist(#[from] ConflistError),
}

/// What is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// Chained after the plugins of the file named.
    After(String),
    /// There is no other network configuration yet.
    Waiting,
    Failed(String),
}

/// Installs and keeps it so until cancelled; says what is in force whenever that changes.
pub async fn keep(
    directories: Directories,
    entry: Entry,
    credentials: Credentials,
    mut token: watch::Receiver<PluginToken>,
    installed: watch::Sender<Installed>,
    cancel: CancellationToken,
) {
    let (changed, mut changes) = mpsc::channel(1);
    let (mut watcher, mut program) = (None, Program::default());
    loop {
        if watcher.is_none() {
            watcher = watch_directory(&directories.cni_conf_dir, changed.clone()).ok();
        }
        let (where_to, what, with) = (directories.clone(), entry.clone(), credentials.clone());
        let whose = token.borrow_and_update().clone();
        let once = tokio::task::spawn_blocking(move || {
            let now = install(&where_to, &what, &with, &whose, &mut program);
            (program, now)
        });
        // Only a panic or the runtime's end stops the task.
        let Ok((back, now)) = once.await else { return };
        program = back;
        let now = now.unwrap_or_else(|error| Installed::Failed(error.to_string()));
        installed.send_if_modified(|known| {
            let differs = *known != now;
            if differs {
                say(&now);
                *known = now;
            }
            differs
        });
        tokio::select! {
            () = cancel.cancelled() => return,
            Some(()) = changes.recv() => tokio::time::sleep(SETTLE).await,
            Ok(()) = token.changed() => {}
            () = tokio::time::sleep(RESCAN) => {}
        }
        while changes.try_recv().is_ok() {}
    }
}

fn say(now: &Installed) {
    match now {
        Installed::After(file) => {
            tracing::info!(file, "the CNI plugin is chained after the plugins of this file")
        }
        Installed::Waiting => tracing::warn!("there is no CNI configuration to chain the plugin to yet"),
        Installed::Failed(error) => {
            tracing::error!(error, "the CNI plugin is not in force; new pods may start outside the mesh");
        }
    }
}

/// Puts in force what is not; changes nothing that is as it should be.
///
/// # Errors
/// When a directory cannot be read or written, or no configuration can be made of what is there.
pub fn install(
    directories: &Directories,
    entry: &Entry,
    credentials: &Credentials,
    token: &PluginToken,
    program: &mut Program,
) -> Result<Installed, InstallError> {
    // What is named in the configuration is there before it.
    program.install(&directories.cni_bin_dir)?;
    install_kubeconfig(&directories.cni_conf_dir.join(KUBECONFIG), credentials, token)?;
    let plan = conflist::plan(&read(&directories.cni_conf_dir)?, &plugin(entry))?;
    let Some(plan) = plan else { return Ok(Installed::Waiting) };
    for name in plan.obsolete {
        fs::remove_file(directories.cni_conf_dir.join(name))?;
    }
    replace_if_other(&directories.cni_conf_dir.join(plan.name), plan.text.as_bytes(), Readers::Owner)?;
    Ok(Installed::After(plan.primary))
}

fn install_kubeconfig(path: &Path, credentials: &Credentials, token: &PluginToken) -> io::Result<()> {
    let issued = match token {
        PluginToken::Issued(token) => Some(token.as_str()),
        // The one that is there may outlive this process; its own does not.
        PluginToken::Awaited if path.exists() => return Ok(()),
        PluginToken::Awaited | PluginToken::NodeProxys => None,
    };
    match credentials.kubeconfig(issued)? {
        Some(kubeconfig) => replace_if_other(path, kubeconfig.as_bytes(), Readers::Owner),
        None => Ok(()),
    }
}

/// Removes everything that [`install`] made. What is not there is no error.
///
/// # Errors
/// When something cannot be removed.
pub fn uninstall(directories: &Directories) -> io::Result<()> {
    // The configuration first: without it nobody calls the program.
    for name in NAMES.into_iter().chain([KUBECONFIG]) {
        remove(&directories.cni_conf_dir.join(name))?;
    }
    remove(&directories.cni_bin_dir.join(crate::PLUGIN))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(files::about(path, &error)),
        _ => Ok(()),
    }
}

fn plugin(entry: &Entry) -> serde_json::Value {
    serde_json::json!({
        "type": crate::PLUGIN,
        "enrolmentSocket": entry.enrolment_socket,
        "kubeconfig": entry.host_conf_dir.join(KUBECONFIG),
        "stateDirectory": entry.state_directory,
        "node": entry.node,
        "unknownNamespaces": entry.unknown_namespaces,
    })
}

/// Every file of the directory that a runtime may take for a configuration, by name.
fn read(directory: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut read = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| files::about(directory, &error))? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !conflist::is_configuration(&name) || !entry.path().is_file() {
            continue;
        }
        match fs::read(entry.path()) {
            Ok(bytes) => read.push((name, bytes)),
            // Gone since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(files::about(&entry.path(), &error)),
        }
    }
    Ok(read)
}

fn replace_if_other(path: &Path, content: &[u8], readers: Readers) -> io::Result<()> {
    if fs::read(path).is_ok_and(|known| known == content) {
        return Ok(());
    }
    files::replace(path, content, readers)
}
