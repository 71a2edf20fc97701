//! Connections that stay open while the world around them changes.

use super::connect::{lookup_one, open};
use super::stats::Counts;
use super::{Succeeded, print};
use crate::errors::kind_of;
use clap::Args;
use futures::stream::{self, StreamExt};
use serde::Serialize;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

#[derive(Args)]
pub(crate) struct HoldArgs {
    /// HOST:PORT of a TCP echo.
    target: String,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Connections opened at the same time.
    #[arg(long, default_value_t = 64)]
    parallel: usize,
    /// Milliseconds for a connection to open, or a byte to come back.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

/// Printed once when the connections are open (`event` is `open`), and for every line read.
#[derive(Serialize)]
struct Report {
    event: String,
    ok: usize,
    failed: usize,
    errors: Counts,
}

pub(crate) async fn run(args: HoldArgs) -> anyhow::Result<Succeeded> {
    let deadline = Duration::from_millis(args.timeout);
    let address = lookup_one(&args.target, deadline).await?;
    let mut errors = Counts::default();
    let opened: Vec<_> = stream::iter(0..args.connections)
        .map(|_| open_and_prove(address, deadline))
        .buffer_unordered(args.parallel.max(1))
        .collect()
        .await;
    let mut connections: Vec<TcpStream> = Vec::new();
    for outcome in opened {
        match outcome {
            Ok(stream) => connections.push(stream),
            Err(error) => errors.add(kind_of(&error)),
        }
    }
    let mut failed = args.connections - connections.len();
    let ok = connections.len();
    print(&Report { event: "open".into(), ok, failed, errors })?;
    let mut lines = stdin_lines();
    while let Some(event) = lines.recv().await {
        let mut errors = Counts::default();
        let exchanged: Vec<_> = stream::iter(connections.drain(..))
            .map(|mut stream| async move {
                exchange(&mut stream, deadline).await?;
                Ok::<_, io::Error>(stream)
            })
            .buffer_unordered(1024)
            .collect()
            .await;
        for outcome in exchanged {
            match outcome {
                Ok(stream) => connections.push(stream),
                Err(error) => {
                    failed += 1;
                    errors.add(kind_of(&error));
                }
            }
        }
        print(&Report { event, ok: connections.len(), failed, errors })?;
    }
    Ok(Succeeded::count(ok as u64))
}

/// An echo proves that the connection reaches an application and not just a listener on the way.
async fn open_and_prove(address: SocketAddr, deadline: Duration) -> io::Result<TcpStream> {
    let mut stream = open(address, deadline).await?;
    exchange(&mut stream, deadline).await?;
    Ok(stream)
}

pub(crate) async fn exchange(stream: &mut TcpStream, deadline: Duration) -> io::Result<()> {
    timeout(deadline, async {
        stream.write_all(b"e").await?;
        match stream.read_u8().await? {
            b'e' => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    })
    .await?
}

/// Lines of standard input, from a thread of its own: terminals and pipes alike have no readiness to wait for.
pub(crate) fn stdin_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { break };
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}
