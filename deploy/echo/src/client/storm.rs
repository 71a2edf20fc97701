//! Many short connections.

use super::connect::{lookup_one, open};
use super::hold::exchange;
use super::stats::{Counts, Latencies, Percentiles};
use super::{Succeeded, print};
use crate::errors::kind_of;
use clap::{Args, ValueEnum};
use futures::stream::{self, StreamExt};
use serde::Serialize;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How the client ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Close {
    Fin,
    Reset,
    /// One in ten by FIN: a million FINs would need more ports than there are.
    Mixed,
}

/// What happens on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Exchange {
    /// One byte, echoed.
    Byte,
    /// Nothing.
    Nothing,
}

#[derive(Args)]
pub(crate) struct StormArgs {
    /// HOST:PORT
    target: String,
    #[arg(long, default_value_t = 1000)]
    total: u64,
    /// Connections at the same time.
    #[arg(long, default_value_t = 32)]
    parallel: usize,
    #[arg(long, value_enum, default_value_t = Close::Fin)]
    close: Close,
    #[arg(long, value_enum, default_value_t = Exchange::Byte)]
    exchange: Exchange,
    /// Print a line after every so many connections.
    #[arg(long)]
    progress: Option<u64>,
    /// Milliseconds for a connection to open, or a byte to come back.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

#[derive(Serialize)]
struct Report {
    connections: u64,
    ok: u64,
    errors: Counts,
    latency_ms: Option<Percentiles>,
    seconds: f64,
    rate: f64,
}

#[derive(Serialize)]
struct Progress {
    done: u64,
}

pub(crate) async fn run(args: StormArgs) -> anyhow::Result<Succeeded> {
    let address = lookup_one(&args.target, Duration::from_millis(args.timeout)).await?;
    let started = Instant::now();
    let mut errors = Counts::default();
    let mut latencies = Latencies::default();
    let mut ok = 0;
    let mut done = 0;
    let mut connections = stream::iter(0..args.total)
        .map(|turn| one(&args, address, turn))
        .buffer_unordered(args.parallel.max(1));
    while let Some(outcome) = connections.next().await {
        match outcome {
            Ok(latency) => {
                latencies.add(latency);
                ok += 1;
            }
            Err(error) => errors.add(kind_of(&error)),
        }
        done += 1;
        if args.progress.is_some_and(|every| done % every.max(1) == 0) {
            print(&Progress { done })?;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let latency_ms = latencies.percentiles();
    print(&Report { connections: done, ok, errors, latency_ms, seconds, rate: done as f64 / seconds })?;
    Ok(Succeeded::count(ok))
}

async fn one(args: &StormArgs, address: SocketAddr, turn: u64) -> io::Result<Duration> {
    let deadline = Duration::from_millis(args.timeout);
    let started = Instant::now();
    let mut stream = open(address, deadline).await?;
    let reset = match args.close {
        Close::Fin => false,
        Close::Reset => true,
        Close::Mixed => !turn.is_multiple_of(10),
    };
    if args.exchange == Exchange::Byte {
        exchange(&mut stream, deadline).await?;
    }
    let latency = started.elapsed();
    if reset {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    Ok(latency)
}
