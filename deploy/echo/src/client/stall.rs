//! Readers that stopped reading.

use super::connect::{lookup_one, open};
use super::hold::stdin_lines;
use super::stats::Counts;
use super::{Succeeded, print};
use crate::errors::kind_of;
use clap::Args;
use futures::future::join_all;
use serde::Serialize;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A connection that took no byte for so long is full.
const FULL_AFTER: Duration = Duration::from_millis(700);

#[derive(Args)]
pub(crate) struct StallArgs {
    /// HOST:PORT of an echo or chargen port.
    target: String,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Only open and never read; nothing is written (chargen ports).
    #[arg(long)]
    silent: bool,
    /// Milliseconds for a connection to open.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

#[derive(Serialize)]
struct Report {
    event: &'static str,
    stalled: usize,
    bytes_sent: u64,
    errors: Counts,
}

pub(crate) async fn run(args: StallArgs) -> anyhow::Result<Succeeded> {
    let address = lookup_one(&args.target, Duration::from_millis(args.timeout)).await?;
    let mut errors = Counts::default();
    let mut stalled = Vec::new();
    let mut bytes_sent = 0;
    for outcome in join_all((0..args.connections).map(|_| fill(&args, address))).await {
        match outcome {
            Ok((stream, bytes)) => {
                stalled.push(stream);
                bytes_sent += bytes;
            }
            Err(error) => errors.add(kind_of(&error)),
        }
    }
    print(&Report { event: "stalled", stalled: stalled.len(), bytes_sent, errors })?;
    let mut lines = stdin_lines();
    while lines.recv().await.is_some() {}
    Ok(Succeeded::count(stalled.len() as u64))
}

async fn fill(args: &StallArgs, address: SocketAddr) -> io::Result<(TcpStream, u64)> {
    let mut stream = open(address, Duration::from_millis(args.timeout)).await?;
    let mut bytes = 0;
    if args.silent {
        tokio::time::sleep(FULL_AFTER).await;
        return Ok((stream, bytes));
    }
    let block = vec![b's'; 64 * 1024];
    while let Ok(written) = timeout(FULL_AFTER, stream.write(&block)).await {
        bytes += written? as u64;
    }
    Ok((stream, bytes))
}
