//! `culvert-controller`: translates objects, serves node proxies, writes statuses.

use clap::{Parser, Subcommand};
use culvert_controller::run;
use culvert_identity::logging;

/// The controller of a Culvert mesh.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// What is logged, as `info,culvert_controller=debug`.
    #[arg(long, global = true, env = logging::FILTER_VARIABLE, default_value = logging::DEFAULT_FILTER)]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reads objects from a directory or an API server, serves node proxies and writes statuses.
    Run(run::Flags),
}

fn main() -> anyhow::Result<()> {
    let Cli { log, command: Command::Run(flags) } = Cli::parse();
    let log = logging::init(&log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run::run(flags, log))
}
