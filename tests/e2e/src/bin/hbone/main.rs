//! The other side of HBONE, written from the wire format alone and sharing nothing with the node proxy: HTTP/2 CONNECT
//! over mutual TLS 1.3 as a stock ztunnel speaks it, with any certificate one can think of. Prints JSON lines.

mod certificates;
mod client;
mod server;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Opens a tunnel and a stream in it.
    Client(client::ClientArgs),
    /// Accepts tunnels and connects their streams to a local port.
    Server(server::ServerArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("hbone: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Client(args) => client::run(args).await,
            Command::Server(args) => server::run(args).await,
        }
    });
    // A blocked reader of stdin must not keep the process.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hbone: {error:#}");
            ExitCode::FAILURE
        }
    }
}
