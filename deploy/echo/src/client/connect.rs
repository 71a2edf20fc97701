//! Names, addresses and connections, each under a deadline.

use super::{Succeeded, print};
use crate::errors::kind_of;
use clap::Args;
use serde::Serialize;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

#[derive(Args)]
pub(crate) struct ResolveArgs {
    name: String,
    /// Milliseconds.
    #[arg(long, default_value_t = 5000)]
    timeout: u64,
}

#[derive(Serialize)]
struct Resolved {
    ok: bool,
    addresses: Vec<String>,
    error: Option<&'static str>,
}

pub(crate) async fn run(args: ResolveArgs) -> anyhow::Result<Succeeded> {
    let looked_up = lookup(&format!("{}:0", args.name), Duration::from_millis(args.timeout)).await;
    let resolved = match looked_up {
        Ok(addresses) => {
            let addresses: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
            Resolved { ok: true, addresses, error: None }
        }
        Err(error) => Resolved { ok: false, addresses: Vec::new(), error: Some(kind_of(&error)) },
    };
    print(&resolved)?;
    Ok(Succeeded::count(u64::from(resolved.ok)))
}

/// All addresses of `HOST:PORT`, each once, in the resolver's order.
pub(crate) async fn lookup(target: &str, deadline: Duration) -> io::Result<Vec<SocketAddr>> {
    let found = timeout(deadline, tokio::net::lookup_host(target)).await?;
    let not_found = |error: io::Error| io::Error::new(io::ErrorKind::NotFound, error.to_string());
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found.map_err(not_found)? {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(addresses)
}

/// The first address of `HOST:PORT`.
pub(crate) async fn lookup_one(target: &str, deadline: Duration) -> io::Result<SocketAddr> {
    Ok(lookup(target, deadline).await?[0])
}

/// A connection with Nagle off.
pub(crate) async fn open(address: SocketAddr, deadline: Duration) -> io::Result<TcpStream> {
    let stream = timeout(deadline, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
