//! `culvert-echo`: the server behind the image `culvert/echo`, and a traffic client whose results are JSON. It knows
//! nothing of the mesh: what it sees is what an application sees.

mod client;
mod errors;
mod hex;
mod identity;
mod ports;
mod serve;
mod session;
mod websocket;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "culvert-echo", version, about = "Echo server and traffic client")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve on every given port, or on those of CULVERT_ECHO_PORTS, or HTTP on 8080.
    Serve(serve::ServeArgs),
    /// Do nothing until SIGTERM, and then for a while longer: the pods of a Gateway, whose connections are their node
    /// proxy's.
    Wait(serve::WaitArgs),
    #[command(flatten)]
    Client(client::ClientCommand),
}

/// Generated from `proto/`.
mod proto {
    pub(crate) mod echo {
        tonic::include_proto!("culvert.echo.v1");
    }
    pub(crate) mod health {
        tonic::include_proto!("grpc.health.v1");
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    raise_descriptor_limit();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("culvert-echo: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = match cli.command {
        Command::Serve(args) => runtime.block_on(serve::run(args)).map(|()| ExitCode::SUCCESS),
        Command::Wait(args) => runtime.block_on(serve::wait(args)).map(|()| ExitCode::SUCCESS),
        Command::Client(command) => runtime.block_on(client::run(command)),
    };
    // Blocking readers of stdin must not keep the process alive.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| {
        eprintln!("culvert-echo: {error:#}");
        ExitCode::FAILURE
    })
}

/// Tens of thousands of connections are part of the job; the default of 1024 descriptors is not enough for them.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused only under unusual policies; then the default limit is what there is.
    let _ = setrlimit(Resource::Nofile, limit);
}
