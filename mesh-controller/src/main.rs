//! `culvert-controller`: translates objects, serves node proxies, writes statuses.

use clap::{Parser, Subcommand};
use culvert_controller::{run, uninstall};
use culvert_identity::logging;
use mimalloc::MiMalloc;

// With 10,000 pods and 5,000 routes more than half of a pass was the C library's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

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
    Run(Box<run::Flags>),
    /// Takes the mesh of the cluster away, before its objects are deleted: lets all pods go, ends the programs, has the nodes
    /// cleaned, and deletes what the programs made.
    Uninstall(uninstall::Flags),
}

fn main() -> anyhow::Result<()> {
    let Cli { log, command } = Cli::parse();
    let log = logging::init(&log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        Command::Run(flags) => runtime.block_on(run::run(*flags, log)),
        Command::Uninstall(flags) => runtime.block_on(uninstall::run(&flags)),
    }
}
