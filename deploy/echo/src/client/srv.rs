//! SRV records, which the system's resolver does not give out.

use super::{Succeeded, print};
use anyhow::{Context, bail};
use clap::Args;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use serde::Serialize;
use std::net::IpAddr;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::timeout;

#[derive(Args)]
pub(crate) struct SrvArgs {
    /// _PORT._PROTOCOL.SERVICE...
    name: String,
    /// Milliseconds.
    #[arg(long, default_value_t = 3000)]
    timeout: u64,
}

#[derive(Serialize)]
struct Report {
    records: Vec<Record>,
}

#[derive(Serialize)]
struct Record {
    priority: u16,
    weight: u16,
    port: u16,
    target: String,
}

pub(crate) async fn run(args: SrvArgs) -> anyhow::Result<Succeeded> {
    let server = nameserver()?;
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(&args.name)?, RecordType::SRV));
    let socket = UdpSocket::bind((if server.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).await?;
    socket.connect((server, 53)).await?;
    socket.send(&question.to_vec()?).await?;
    let mut buffer = vec![0; 4096];
    let length = timeout(Duration::from_millis(args.timeout), socket.recv(&mut buffer)).await??;
    let answer = Message::from_vec(&buffer[..length])?;
    let records = answer.answers.iter().filter_map(|record| match &record.data {
        RData::SRV(srv) => Some(Record {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            target: srv.target.to_ascii(),
        }),
        _ => None,
    });
    let report = Report { records: records.collect() };
    print(&report)?;
    Ok(Succeeded::count(report.records.len() as u64))
}

/// The first one of `/etc/resolv.conf`.
fn nameserver() -> anyhow::Result<IpAddr> {
    const FILE: &str = "/etc/resolv.conf";
    let text = std::fs::read_to_string(FILE).context(FILE)?;
    let first = text.lines().find_map(|line| line.trim().strip_prefix("nameserver"));
    match first.map(str::trim) {
        Some(address) => address.parse().with_context(|| format!("{FILE}: {address}")),
        None => bail!("{FILE} names no server"),
    }
}
