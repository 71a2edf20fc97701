//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use culvert_identity::TrustDomain;
use culvert_identity::logging::{DEFAULT_FILTER, FILTER_VARIABLE};

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
    RotateRoot {
        /// Data directory of the authority
        #[arg(long)]
        data_dir: PathBuf,
    },
}

#[derive(Clone, Debug, Args)]
pub struct RunFlags {
    /// Directory with the cluster's objects, pods and nodes among them
    #[arg(long)]
    pub objects: PathBuf,
    /// Directory for the root's key; made if missing, readable by the owner only
    #[arg(long)]
    pub data_dir: PathBuf,
    /// Address to serve the certificate RPC on
    #[arg(long)]
    pub listen: SocketAddr,
    /// JSON Web Key Set that tokens are checked with; read again when it changes
    #[arg(long)]
    pub token_keys: PathBuf,
    /// Issuer that tokens must name
    #[arg(long)]
    pub token_issuer: String,
    /// Trust domain of every identity signed here
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: TrustDomain,
    /// File the roots in force are written to, PEM
    #[arg(long)]
    pub trust_bundle_out: PathBuf,
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
    #[arg(long, default_value = "Kubernetes")]
    pub cluster: String,
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
