//! `culvert demo`: a mesh of two nodes that shows what enrolling a namespace changes and what routes do, and that
//! fails when they do not.

mod canary;
mod checks;
mod evidence;
mod report;
mod sandbox;

use anyhow::Context;
use canary::{CANARY, CONSUMER};
use checks::{Demo, SHOP, SHOP_ENROLLED};
use clap::Args;
use report::Report;
use sandbox::DemoSandbox;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Bring up two nodes, send a word over the link before and after enrolling the namespace, compare; then route a canary;
/// tear down.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Print one JSON document instead of text.
    #[arg(long)]
    json: bool,
    /// Name of the demo's sandbox.
    #[arg(long, default_value = "demo")]
    name: String,
    /// HTTP requests for each latency measurement.
    #[arg(long, default_value_t = 4000, value_name = "N")]
    requests: u32,
}

/// Runs the demo. The sandbox is torn down whatever happens, also on SIGINT and SIGTERM.
///
/// # Errors
/// When the sandbox cannot be brought up; a failed check is an exit code of 1.
pub fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(show(&args))?;
    report.print(args.json)?;
    Ok(if report.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn show(args: &DemoArgs) -> anyhow::Result<Report> {
    let files = tempfile::tempdir().context("a directory for the demo's files")?;
    for (name, content) in [
        ("shop.yaml", SHOP),
        ("shop-enrolled.yaml", SHOP_ENROLLED),
        ("canary.yaml", CANARY),
        ("consumer.yaml", CONSUMER),
    ] {
        std::fs::write(files.path().join(name), content)?;
    }
    let sandbox = DemoSandbox::new(&args.name, files.path())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let demo = Demo::new(&sandbox, args.requests);
    let outcome = tokio::select! {
        outcome = demo.run() => outcome,
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
    };
    report::progress("tearing down");
    let torn_down = sandbox.down().await;
    let report = outcome?;
    torn_down.context("tear down")?;
    Ok(report)
}
