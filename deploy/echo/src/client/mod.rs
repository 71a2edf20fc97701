//! The traffic client: every command (but `fetch`) prints one JSON document per result on standard output, whatever
//! happened, and ends with code 1 when nothing at all succeeded.

mod bulk;
mod connect;
mod each;
mod fetch;
mod get;
mod greet;
mod grpc;
mod hold;
mod raw;
mod srv;
mod stall;
mod stats;
mod storm;
mod tcp;
mod udp;
mod ws;

use clap::Subcommand;
use serde::Serialize;
use std::process::ExitCode;

#[derive(Subcommand)]
pub(crate) enum ClientCommand {
    /// HTTP requests: latency percentiles, status counts, the pods that answered.
    Get(get::GetArgs),
    /// One HTTP request; its body as it is, on standard output.
    Fetch(fetch::FetchArgs),
    /// gRPC echo or health requests.
    Grpc(grpc::GrpcArgs),
    /// A WebSocket conversation.
    Ws(ws::WsArgs),
    /// One TCP exchange.
    #[command(subcommand)]
    Tcp(tcp::TcpCommand),
    /// Connections to servers that say their name first, over TLS or not: the pods that answered.
    Greet(greet::GreetArgs),
    /// One UDP exchange.
    Udp(udp::UdpArgs),
    /// Opens echo connections; for every line on stdin exchanges a byte on each and prints how many succeeded.
    Hold(hold::HoldArgs),
    /// Many short connections.
    Storm(storm::StormArgs),
    /// As many bytes as fit through.
    Bulk(bulk::BulkArgs),
    /// Opens connections, fills them and never reads, until stdin closes.
    Stall(stall::StallArgs),
    /// Sends bytes that mean nothing, perhaps slowly, and says how the connection ended.
    Raw(raw::RawArgs),
    /// Connections reset by the client at a chosen stage.
    Reset(raw::ResetArgs),
    /// The addresses a name resolves to.
    Resolve(connect::ResolveArgs),
    /// The SRV records of a name.
    Srv(srv::SrvArgs),
    /// Runs the commands of standard input one after the other: every line is a JSON array of words, as
    /// ["get", "http://cart/", "--method", "POST"].
    Each,
}

/// Runs one command.
///
/// # Errors
/// When the arguments make no sense; failed traffic is a result, not an error.
pub(crate) async fn run(command: ClientCommand) -> anyhow::Result<ExitCode> {
    Ok(match perform(command).await? {
        Succeeded::Something => ExitCode::SUCCESS,
        Succeeded::Nothing => ExitCode::FAILURE,
    })
}

async fn perform(command: ClientCommand) -> anyhow::Result<Succeeded> {
    match command {
        ClientCommand::Get(args) => get::run(args).await,
        ClientCommand::Fetch(args) => fetch::run(args).await,
        ClientCommand::Grpc(args) => grpc::run(args).await,
        ClientCommand::Ws(args) => ws::run(args).await,
        ClientCommand::Tcp(command) => tcp::run(command).await,
        ClientCommand::Greet(args) => greet::run(args).await,
        ClientCommand::Udp(args) => udp::run(args).await,
        ClientCommand::Hold(args) => hold::run(args).await,
        ClientCommand::Storm(args) => storm::run(args).await,
        ClientCommand::Bulk(args) => bulk::run(args).await,
        ClientCommand::Stall(args) => stall::run(args).await,
        ClientCommand::Raw(args) => raw::run(args).await,
        ClientCommand::Reset(args) => raw::run_resets(args).await,
        ClientCommand::Resolve(args) => connect::run(args).await,
        ClientCommand::Srv(args) => srv::run(args).await,
        ClientCommand::Each => each::run().await,
    }
}

/// Whether any of the asked-for traffic got through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Succeeded {
    Something,
    Nothing,
}

impl Succeeded {
    fn count(successes: u64) -> Self {
        if successes > 0 { Self::Something } else { Self::Nothing }
    }
}

/// One line of JSON.
fn print(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}
