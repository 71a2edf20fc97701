//! One TCP exchange.

use super::connect::{lookup_one, open};
use super::{Succeeded, print};
use crate::errors::kind_of;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use std::io;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// What is kept of an answer.
const MAX_ANSWER: usize = 64 * 1024;

#[derive(Subcommand)]
pub(crate) enum TcpCommand {
    /// Sends a token and reads the answer.
    Send(SendArgs),
}

/// When the client has seen enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Until {
    /// As many bytes came back as were sent.
    Echo,
    /// The peer closed, after this side had half-closed.
    Eof,
    /// The first line of the peer, before anything is sent.
    Banner,
    /// The connection is up; nothing is sent.
    Connected,
}

#[derive(Args)]
pub(crate) struct SendArgs {
    /// HOST:PORT
    target: String,
    #[arg(long, default_value = "hello")]
    data: String,
    #[arg(long, value_enum, default_value_t = Until::Echo)]
    until: Until,
    /// Milliseconds of silence between the connection and the data, and again before the end.
    #[arg(long, default_value_t = 0)]
    idle: u64,
    /// Milliseconds for each step.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

#[derive(Serialize, Default)]
struct Report {
    ok: bool,
    received: String,
    banner: String,
    local: String,
    remote: String,
    millis: f64,
    error: Option<&'static str>,
    /// Where it failed.
    stage: &'static str,
}

pub(crate) async fn run(command: TcpCommand) -> anyhow::Result<Succeeded> {
    let TcpCommand::Send(args) = command;
    let started = Instant::now();
    let mut report = Report::default();
    let result = exchange(&args, &mut report).await;
    report.millis = started.elapsed().as_secs_f64() * 1000.0;
    match result {
        Ok(()) => report.ok = true,
        Err(error) => report.error = Some(kind_of(&error)),
    }
    print(&report)?;
    Ok(Succeeded::count(u64::from(report.ok)))
}

async fn exchange(args: &SendArgs, report: &mut Report) -> io::Result<()> {
    let deadline = Duration::from_millis(args.timeout);
    report.stage = "connect";
    let address = lookup_one(&args.target, deadline).await?;
    report.remote = address.to_string();
    let mut stream = open(address, deadline).await?;
    report.local = stream.local_addr()?.to_string();
    if args.until == Until::Connected {
        return Ok(());
    }
    report.stage = "banner";
    if args.until == Until::Banner {
        report.banner = timeout(deadline, read_line(&mut stream)).await??;
    }
    pause(args.idle).await;
    report.stage = "send";
    timeout(deadline, stream.write_all(args.data.as_bytes())).await??;
    report.stage = "answer";
    if args.until == Until::Eof {
        pause(args.idle).await;
        stream.shutdown().await?;
    }
    let wanted = if args.until == Until::Eof { MAX_ANSWER } else { args.data.len() };
    let mut answer = Vec::new();
    let mut limited = (&mut stream).take(wanted as u64);
    let outcome = timeout(deadline, limited.read_to_end(&mut answer)).await;
    report.received = String::from_utf8_lossy(&answer).into_owned();
    outcome??;
    if args.until != Until::Eof && answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if args.until != Until::Eof && answer != args.data.as_bytes() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    report.stage = "done";
    Ok(())
}

async fn pause(millis: u64) {
    // A sleep of nothing still takes a tick of the timer.
    if millis > 0 {
        sleep(Duration::from_millis(millis)).await;
    }
}

async fn read_line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") && line.len() < 1024 {
        line.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}
