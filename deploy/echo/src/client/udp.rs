//! One UDP exchange.

use super::connect::lookup_one;
use super::{Succeeded, print};
use crate::errors::kind_of;
use clap::Args;
use serde::Serialize;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::timeout;

#[derive(Args)]
pub(crate) struct UdpArgs {
    /// HOST:PORT
    target: String,
    #[arg(long, default_value = "hello")]
    data: String,
    /// Milliseconds to wait for the answer; asked again three times in that time.
    #[arg(long, default_value_t = 3000)]
    timeout: u64,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    received: String,
    error: Option<&'static str>,
}

pub(crate) async fn run(args: UdpArgs) -> anyhow::Result<Succeeded> {
    let report = match exchange(&args).await {
        Ok(received) => Report { ok: received == args.data, received, error: None },
        Err(error) => Report { ok: false, received: String::new(), error: Some(kind_of(&error)) },
    };
    print(&report)?;
    Ok(Succeeded::count(u64::from(report.ok)))
}

async fn exchange(args: &UdpArgs) -> io::Result<String> {
    const ATTEMPTS: u32 = 3;
    let deadline = Duration::from_millis(args.timeout);
    let address = lookup_one(&args.target, deadline).await?;
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(address).await?;
    let mut buffer = vec![0; 64 * 1024];
    for _ in 0..ATTEMPTS {
        socket.send(args.data.as_bytes()).await?;
        if let Ok(received) = timeout(deadline / ATTEMPTS, socket.recv(&mut buffer)).await {
            return Ok(String::from_utf8_lossy(&buffer[..received?]).into_owned());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}
