//! gRPC requests.

use super::stats::{Counts, Latencies, Percentiles};
use super::{Succeeded, print};
use crate::errors::kind_of;
use crate::proto::echo::echo_client::EchoClient;
use crate::proto::echo::{EchoReply, EchoRequest, StreamRequest};
use crate::proto::health::HealthCheckRequest;
use crate::proto::health::health_client::HealthClient;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::error::Error;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Call {
    Unary,
    Stream,
    Health,
}

#[derive(Args)]
pub(crate) struct GrpcArgs {
    /// HOST:PORT
    target: String,
    #[arg(long, value_enum, default_value_t = Call::Unary)]
    call: Call,
    /// Calls in all, or replies in the stream.
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Milliseconds between replies of a stream.
    #[arg(long, default_value_t = 0)]
    interval: u32,
    #[arg(long, default_value = "hello")]
    message: String,
    /// Milliseconds for the connection, and for each call.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

#[derive(Serialize, Default)]
struct Report {
    ok: u64,
    pods: Counts,
    errors: Counts,
    latency_ms: Option<Percentiles>,
}

pub(crate) async fn run(args: GrpcArgs) -> anyhow::Result<Succeeded> {
    let deadline = Duration::from_millis(args.timeout);
    let endpoint = Endpoint::from_shared(format!("http://{}", args.target))?.connect_timeout(deadline);
    let mut report = Report::default();
    match endpoint.connect().await {
        Ok(channel) => calls(&args, channel, deadline, &mut report).await,
        Err(error) => report.errors.add(kind_of(&error)),
    }
    print(&report)?;
    Ok(Succeeded::count(report.ok))
}

async fn calls(args: &GrpcArgs, channel: Channel, deadline: Duration, report: &mut Report) {
    let mut latencies = Latencies::default();
    let rounds = if args.call == Call::Stream { 1 } else { args.count };
    for _ in 0..rounds {
        let started = Instant::now();
        let outcome = match args.call {
            Call::Stream => stream(args, channel.clone(), deadline, report).await,
            Call::Unary => {
                timeout(deadline, unary(args, channel.clone(), report)).await.unwrap_or(Err("timeout".into()))
            }
            Call::Health => {
                timeout(deadline, health(channel.clone(), report)).await.unwrap_or(Err("timeout".into()))
            }
        };
        match outcome {
            Ok(()) => latencies.add(started.elapsed()),
            Err(word) => report.errors.add(word),
        }
    }
    report.latency_ms = latencies.percentiles();
}

async fn unary(args: &GrpcArgs, channel: Channel, report: &mut Report) -> Result<(), String> {
    let request = EchoRequest { message: args.message.clone(), delay_ms: 0, code: 0 };
    let reply = EchoClient::new(channel).unary(request).await.map_err(word)?.into_inner();
    note(reply, &args.message, report)
}

async fn health(channel: Channel, report: &mut Report) -> Result<(), String> {
    let request = HealthCheckRequest { service: String::new() };
    let reply = HealthClient::new(channel).check(request).await.map_err(word)?.into_inner();
    report.ok += 1;
    report.pods.add(reply.status().as_str_name());
    Ok(())
}

async fn stream(
    args: &GrpcArgs,
    channel: Channel,
    deadline: Duration,
    report: &mut Report,
) -> Result<(), String> {
    let request =
        StreamRequest { message: args.message.clone(), count: args.count, interval_ms: args.interval };
    let mut replies = EchoClient::new(channel).server_stream(request).await.map_err(word)?.into_inner();
    while let Some(reply) =
        timeout(deadline, replies.message()).await.map_err(|_| "timeout")?.map_err(word)?
    {
        note(reply, &args.message, report)?;
    }
    Ok(())
}

fn note(reply: EchoReply, sent: &str, report: &mut Report) -> Result<(), String> {
    if reply.message != sent {
        return Err("wrong-bytes".into());
    }
    report.ok += 1;
    report.pods.add(reply.pod);
    Ok(())
}

/// The transport's word when it failed there, else the status code.
fn word(status: tonic::Status) -> String {
    match status.source().map(kind_of) {
        Some(word) if word != "other" => word.to_owned(),
        _ => format!("{:?}", status.code()),
    }
}
