//! `culvert-node-proxy`: carries the traffic of one node's enrolled pods.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use culvert_cni::install::{self, Directories};
use culvert_identity::logging;
use culvert_node_proxy::{run, uninstall};
use mimalloc::MiMalloc;

// With 19,000 connections and bulk traffic the C library's allocator held 200 MB and took a worker's largest buffers from
// the kernel anew for each use (50,000 page faults a second); this one holds 112 MB and takes none.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The node proxy of a Culvert mesh.
#[derive(Parser)]
#[command(name = "culvert-node-proxy", version)]
struct Cli {
    /// What is logged, e.g. info,culvert_node_proxy::pods=debug
    #[arg(long, global = true, env = logging::FILTER_VARIABLE, default_value = logging::DEFAULT_FILTER)]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the pods of this node until told to end.
    Run(Box<run::Flags>),
    /// Answer one call of a container runtime, as the CNI specification has it; so does this program under the name culvert-cni.
    Cni,
    /// Remove what `run --install-cni` put on this node.
    UninstallCni(Directories),
    /// Remove everything of Culvert from this node: the CNI plugin, interception rules in pods, and what was kept. Waits for
    /// the end of a node proxy that still runs.
    Uninstall(uninstall::Flags),
}

fn main() -> ExitCode {
    if culvert_cni::is_called() {
        return culvert_cni::run();
    }
    let Cli { log, command } = Cli::parse();
    let done = match command {
        Command::Run(flags) => start(&log, *flags),
        Command::Cni => return culvert_cni::run(),
        Command::UninstallCni(directories) => install::uninstall(&directories).map_err(Into::into),
        Command::Uninstall(flags) => remove_all(&log, &flags),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may be what failed, and a person may have typed this: words, not JSON.
            eprintln!("culvert-node-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(log: &str, flags: run::Flags) -> anyhow::Result<()> {
    let log = logging::init(log)?;
    // Control stream, certificates and pods; the data path has threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run::run(flags, log))
}

fn remove_all(log: &str, flags: &uninstall::Flags) -> anyhow::Result<()> {
    logging::init(log)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(uninstall::run(flags))
}
