//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use culvert_api::names::SYSTEM_NAMESPACE;
use culvert_identity::TrustDomain;
use culvert_identity::logging::{DEFAULT_FILTER, FILTER_VARIABLE};
use culvert_kubernetes::{Client, Server};

use crate::authority::SecretStore;

/// Culvert's certificate authority.
#[derive(Debug, Parser)]
#[command(name = "culvert-ca", version)]
pub struct Flags {
    /// What is logged, e.g. info,h2=warn
    #[arg(long, global = true, env = FILTER_VARIABLE, default_value = DEFAULT_FILTER)]
    pub log: String,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sign certificates.
    Run(Box<RunFlags>),
    /// Start to replace the root of a data directory. A running authority takes the new root up within a second,
    /// publishes it beside the old one, signs with it after --root-overlap, and drops the old one when everything it
    /// signed has ended.
    RotateRoot(RotateFlags),
}

#[derive(Clone, Debug, Args)]
pub struct RotateFlags {
    /// Data directory of the authority
    #[arg(long, required_unless_present_any = ["kubernetes", "kubeconfig"])]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub cluster: ClusterFlags,
}

/// The API server, where roots are kept in a Secret.
#[derive(Clone, Debug, Args)]
pub struct ClusterFlags {
    /// Use the API server of the cluster that the process runs in: pods and nodes, TokenReview, the root in a Secret and the
    /// trust bundle in a ConfigMap
    #[arg(long, conflicts_with = "data_dir")]
    pub kubernetes: bool,
    /// As --kubernetes, with the API server and the user of a kubeconfig file
    #[arg(long, conflicts_with = "data_dir")]
    pub kubeconfig: Option<PathBuf>,
    /// Secret that the roots are kept in, made if missing; in the mesh's namespace
    #[arg(long, default_value = "culvert-ca")]
    pub root_secret: String,
    /// ConfigMap that the trust bundle is published in, key roots.pem; in the mesh's namespace
    #[arg(long, default_value = "culvert-trust-bundle")]
    pub trust_bundle_config_map: String,
}

impl ClusterFlags {
    /// None: there is a data directory.
    pub fn server(&self) -> Option<Server> {
        match &self.kubeconfig {
            Some(path) => Some(Server::Kubeconfig(path.clone())),
            None => self.kubernetes.then_some(Server::InCluster),
        }
    }

    pub fn store(&self, client: &Client) -> SecretStore {
        SecretStore::new(client, SYSTEM_NAMESPACE, &self.root_secret, &self.trust_bundle_config_map)
    }
}

#[derive(Clone, Debug, Args)]
pub struct RunFlags {
    /// Directory with the cluster's objects, pods and nodes among them
    #[arg(long, requires = "data_dir")]
    pub objects: Option<PathBuf>,
    /// Directory for the root's key; made if missing, readable by the owner only
    #[arg(long, required_unless_present_any = ["kubernetes", "kubeconfig"],
        requires_all = ["objects", "token_keys", "token_issuer", "trust_bundle_out"])]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub cluster: ClusterFlags,
    /// Directory with a root or an intermediate that others look after, as cert-manager writes it: tls.crt, tls.key, ca.crt.
    /// Taken instead of making a root, and again whenever it has changed: announced, then signed with, as any next root
    #[arg(long)]
    pub provided: Option<PathBuf>,
    /// Address to serve the certificate RPC on
    #[arg(long)]
    pub listen: SocketAddr,
    /// JSON Web Key Set that tokens are checked with; read again when it changes
    #[arg(long, requires = "data_dir")]
    pub token_keys: Option<PathBuf>,
    /// Issuer that tokens must name
    #[arg(long, requires = "data_dir")]
    pub token_issuer: Option<String>,
    /// Trust domain of every identity signed here
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: TrustDomain,
    /// File the roots in force are written to, PEM
    #[arg(long, requires = "data_dir")]
    pub trust_bundle_out: Option<PathBuf>,
    /// Address of health checks, metrics and log filter
    #[arg(long)]
    pub admin: SocketAddr,
    /// Longest lifetime of a certificate, and the one given when none is asked for: 30s, 15m, 24h, 7d
    #[arg(long, default_value = "24h", value_parser = duration)]
    pub max_lifetime: Duration,
    /// Shortest lifetime of a certificate; a request for less gets this
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub min_lifetime: Duration,
    /// How long a new root is published before it signs: longer than the bundle needs to reach everybody
    #[arg(long, default_value = "1h", value_parser = duration)]
    pub root_overlap: Duration,
    /// Name of the cluster, for the log
    #[arg(long = "cluster", default_value = "Kubernetes")]
    pub cluster_name: String,
}

/// Reads `30s`, `15m`, `24h`, `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; 30s, 15m, 24h and 7d are");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    // A hundred years is no lifetime; beyond it, times of certificates overflow.
    number
        .checked_mul(seconds)
        .filter(|seconds| *seconds <= 100 * 365 * 86400)
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86400)));
        for wrong in ["", "5", "s", "-5s", "5 s", "1.5h", "99999999999999999999d", "99999999d", "5ü"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_flags_are_consistent() {
        Flags::command().debug_assert();
    }
}
