//! The commands of `culvert`, and how they reach a running sandbox.

pub(crate) mod client;
mod exec;
pub(crate) mod output;
mod requests;
mod sandbox;
mod up;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

use crate::{capture, check, demo, explain, live};

/// A Kubernetes service mesh without sidecars; and a whole mesh on one machine.
#[derive(Parser)]
#[command(name = "culvert", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A cluster with its mesh on this machine, without Kubernetes and without root.
    Sandbox(Box<sandbox::SandboxArgs>),
    Explain(Box<explain::ExplainArgs>),
    Check(check::CheckArgs),
    Status(live::status::StatusArgs),
    Proxy(live::proxy::ProxyArgs),
    Config(live::config::ConfigArgs),
    Node(live::node::NodeArgs),
    Capture(capture::command::CaptureArgs),
    Demo(demo::DemoArgs),
}

/// Reads the command line and runs it. Exit codes: 0 done, 1 failed, 2 not understood; `sandbox exec` that of its
/// command.
#[must_use]
pub fn run() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Sandbox(arguments) => sandbox::run(*arguments),
        Command::Explain(arguments) => explain::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Check(arguments) => check::run(&arguments),
        Command::Status(arguments) => block_on(live::status::run(&arguments)),
        Command::Proxy(arguments) => block_on(live::proxy::run(&arguments)),
        Command::Config(arguments) => block_on(live::config::run(&arguments)),
        Command::Node(arguments) => block_on(live::node::run(&arguments)),
        Command::Capture(arguments) => capture::command::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Demo(arguments) => demo::run(arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Box::pin(command)).map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
