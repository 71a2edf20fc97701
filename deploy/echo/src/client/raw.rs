//! Bytes that mean nothing, and connections reset on the way.

use super::connect::{lookup_one, open};
use super::stats::Counts;
use super::{Succeeded, print};
use crate::errors::kind_of;
use crate::hex;
use anyhow::Context;
use clap::{Args, ValueEnum};
use futures::stream::{self, StreamExt};
use rand::RngCore;
use serde::Serialize;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

#[derive(Args)]
pub(crate) struct RawArgs {
    /// HOST:PORT
    target: String,
    /// These bytes, in hexadecimal.
    #[arg(long, default_value = "")]
    hex: String,
    /// These characters, with \r, \n, \t, \0, \\ and \xHH, before those of --hex.
    #[arg(long, default_value = "")]
    text: String,
    /// These, as --text, once the peer has said something.
    #[arg(long, default_value = "", value_name = "TEXT")]
    then: String,
    /// So many random bytes after them.
    #[arg(long, default_value_t = 0)]
    random: usize,
    /// Milliseconds between one byte and the next; 0: all at once.
    #[arg(long, default_value_t = 0)]
    drip: u64,
    /// Connections at the same time.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Milliseconds to wait for the peer to end the connection after the last byte.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

/// `outcomes`: `closed`, `reset`, `timeout` (still open) and the words for failed connections.
#[derive(Serialize)]
struct Report {
    connections: usize,
    outcomes: Counts,
    bytes_received: u64,
    /// The first 256 bytes of the first answer, in hexadecimal.
    answer: String,
    /// The first 8192 bytes of it, as text.
    answer_text: String,
    /// Of the connection that lasted longest.
    longest_ms: u64,
}

struct Ended {
    how: &'static str,
    answer: Vec<u8>,
    received: u64,
    lasted: Duration,
}

pub(crate) async fn run(args: RawArgs) -> anyhow::Result<Succeeded> {
    let deadline = Duration::from_millis(args.timeout);
    let address = lookup_one(&args.target, deadline).await?;
    let mut prefix = hex::unescape(&args.text).context("--text")?;
    prefix.extend(hex::decode(&args.hex).context("--hex")?);
    let then = hex::unescape(&args.then).context("--then")?;
    let ended: Vec<_> = stream::iter(0..args.connections)
        .map(|_| {
            let mut bytes = prefix.clone();
            bytes.resize(prefix.len() + args.random, 0);
            rand::rng().fill_bytes(&mut bytes[prefix.len()..]);
            send(address, Script { bytes, then: &then, drip: Duration::from_millis(args.drip) }, deadline)
        })
        .buffer_unordered(256)
        .collect()
        .await;
    let mut outcomes = Counts::default();
    for one in &ended {
        outcomes.add(one.how);
    }
    let answer = ended.iter().find(|one| !one.answer.is_empty()).map_or(&[][..], |one| &one.answer);
    let longest = ended.iter().map(|one| one.lasted).max().unwrap_or_default();
    print(&Report {
        connections: ended.len(),
        outcomes,
        bytes_received: ended.iter().map(|one| one.received).sum(),
        answer: hex::encode(&answer[..answer.len().min(256)]),
        answer_text: String::from_utf8_lossy(answer).into_owned(),
        longest_ms: u64::try_from(longest.as_millis()).unwrap_or(u64::MAX),
    })?;
    Ok(Succeeded::Something)
}

/// What is sent on a connection.
struct Script<'a> {
    bytes: Vec<u8>,
    /// Once the peer has said something.
    then: &'a [u8],
    drip: Duration,
}

/// Bytes of an answer that are kept.
const KEPT: usize = 8192;

async fn send(address: SocketAddr, script: Script<'_>, deadline: Duration) -> Ended {
    let started = Instant::now();
    let mut answer = Vec::new();
    let mut received = 0;
    let outcome = converse(address, &script, deadline, &mut answer, &mut received).await;
    let how = match &outcome {
        Ok(()) => "closed",
        Err(error) => kind_of(error),
    };
    Ended { how, answer, received, lasted: started.elapsed() }
}

/// Ends well when the peer closes.
async fn converse(
    address: SocketAddr,
    script: &Script<'_>,
    deadline: Duration,
    answer: &mut Vec<u8>,
    received: &mut u64,
) -> io::Result<()> {
    let stream = open(address, deadline).await?;
    let (mut reader, mut writer) = stream.into_split();
    let spoke = tokio::sync::Notify::new();
    let write = async {
        if script.drip.is_zero() {
            writer.write_all(&script.bytes).await?;
        } else {
            for byte in &script.bytes {
                writer.write_all(&[*byte]).await?;
                sleep(script.drip).await;
            }
        }
        if !script.then.is_empty() {
            timeout(deadline, spoke.notified()).await?;
            writer.write_all(script.then).await?;
        }
        sleep(deadline).await;
        Err::<(), _>(io::ErrorKind::TimedOut.into())
    };
    let read = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match reader.read(&mut buffer).await? {
                0 => return Ok(()),
                read => {
                    *received += read as u64;
                    let keep = read.min(KEPT.saturating_sub(answer.len()));
                    answer.extend_from_slice(&buffer[..keep]);
                    spoke.notify_one();
                }
            }
        }
    };
    tokio::select! { result = write => result, result = read => result }
}

/// When the client resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// Right after the connection is up.
    Connected,
    /// After part of a TLS ClientHello.
    Hello,
    /// After data was sent, before any answer.
    Sent,
    /// After the first answered byte.
    Answered,
    /// While bytes are flying both ways.
    Midstream,
}

#[derive(Args)]
pub(crate) struct ResetArgs {
    /// HOST:PORT
    target: String,
    #[arg(long, value_enum, default_value_t = Stage::Connected)]
    stage: Stage,
    #[arg(long, default_value_t = 1)]
    count: usize,
    #[arg(long, default_value_t = 32)]
    parallel: usize,
    /// Milliseconds for each step.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

#[derive(Serialize)]
struct ResetReport {
    connections: usize,
    /// Got as far as the stage, then were reset.
    reset: u64,
    errors: Counts,
}

pub(crate) async fn run_resets(args: ResetArgs) -> anyhow::Result<Succeeded> {
    let deadline = Duration::from_millis(args.timeout);
    let address = lookup_one(&args.target, deadline).await?;
    let outcomes: Vec<_> = stream::iter(0..args.count)
        .map(|_| reset_at(address, args.stage, deadline))
        .buffer_unordered(args.parallel.max(1))
        .collect()
        .await;
    let mut errors = Counts::default();
    for error in outcomes.into_iter().filter_map(Result::err) {
        errors.add(kind_of(&error));
    }
    let reset = args.count as u64 - errors.total();
    print(&ResetReport { connections: args.count, reset, errors })?;
    Ok(Succeeded::count(reset))
}

async fn reset_at(address: SocketAddr, stage: Stage, deadline: Duration) -> io::Result<()> {
    /// The start of a TLS record with a ClientHello of 512 bytes.
    const HELLO: [u8; 11] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let mut stream = open(address, deadline).await?;
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    timeout(deadline, async {
        match stage {
            Stage::Connected => Ok(()),
            Stage::Hello => stream.write_all(&HELLO).await,
            Stage::Sent => stream.write_all(b"sent and gone").await,
            Stage::Answered => {
                stream.write_all(b"answer me").await?;
                stream.read_u8().await.map(|_| ())
            }
            Stage::Midstream => midstream(&mut stream).await,
        }
    })
    .await?
}

/// Some hundred kilobytes each way, the peer still sending when this side goes.
async fn midstream(stream: &mut TcpStream) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    let block = vec![b'm'; 256 * 1024];
    let write = writer.write_all(&block);
    let read = async {
        let mut seen = 0;
        let mut buffer = vec![0; 16 * 1024];
        while seen < 64 * 1024 {
            match reader.read(&mut buffer).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => seen += read,
            }
        }
        Ok(())
    };
    tokio::select! {
        result = read => result,
        // All written and not yet answered in full: as good a moment as any.
        result = write => result,
    }
}
