//! As many bytes as fit through.

use super::connect::{lookup_one, open};
use super::stats::Counts;
use super::{Succeeded, print};
use crate::errors::kind_of;
use clap::{Args, ValueEnum};
use futures::future::join_all;
use serde::Serialize;
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant as Clock, timeout_at};

const BUFFER: usize = 256 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// Writes only: a discard port.
    Up,
    /// Reads only: a chargen port.
    Down,
    /// Writes and reads: an echo port.
    Both,
}

#[derive(Args)]
pub(crate) struct BulkArgs {
    /// HOST:PORT
    target: String,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    #[arg(long, default_value_t = 1)]
    streams: usize,
    #[arg(long, value_enum, default_value_t = Direction::Both)]
    direction: Direction,
    /// Milliseconds for a connection to open.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

#[derive(Serialize)]
struct Report {
    bytes_sent: u64,
    bytes_received: u64,
    seconds: f64,
    /// Both directions together.
    gbit_per_second: f64,
    errors: Counts,
}

#[derive(Default)]
struct Totals {
    sent: Cell<u64>,
    received: Cell<u64>,
}

pub(crate) async fn run(args: BulkArgs) -> anyhow::Result<Succeeded> {
    let deadline = Duration::from_millis(args.timeout);
    let address = lookup_one(&args.target, deadline).await?;
    let totals = Totals::default();
    let started = Instant::now();
    let end = Clock::now() + Duration::from_secs_f64(args.seconds);
    let streams = (0..args.streams).map(|_| one(args.direction, address, deadline, end, &totals));
    let mut errors = Counts::default();
    for outcome in join_all(streams).await {
        if let Err(error) = outcome {
            errors.add(kind_of(&error));
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let (sent, received) = (totals.sent.get(), totals.received.get());
    print(&Report {
        bytes_sent: sent,
        bytes_received: received,
        seconds,
        gbit_per_second: (sent + received) as f64 * 8.0 / seconds / 1e9,
        errors,
    })?;
    Ok(Succeeded::count(sent + received))
}

async fn one(
    direction: Direction,
    address: SocketAddr,
    deadline: Duration,
    end: Clock,
    totals: &Totals,
) -> io::Result<()> {
    let stream = open(address, deadline).await?;
    let (mut reader, mut writer) = stream.into_split();
    let up = async {
        let block = vec![b'u'; BUFFER];
        loop {
            let written = writer.write(&block).await?;
            totals.sent.set(totals.sent.get() + written as u64);
        }
    };
    let down = async {
        let mut block = vec![0; BUFFER];
        loop {
            match reader.read(&mut block).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => totals.received.set(totals.received.get() + read as u64),
            }
        }
    };
    let outcome: Result<io::Result<()>, _> = match direction {
        Direction::Up => timeout_at(end, up).await,
        Direction::Down => timeout_at(end, down).await,
        Direction::Both => timeout_at(end, async { tokio::try_join!(up, down).map(|((), ())| ()) }).await,
    };
    // Running until the end is success.
    outcome.unwrap_or(Ok(()))
}
