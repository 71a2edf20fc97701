//! gRPC requests.

use super::stats::{Counts, Latencies, Percentiles};
use super::{Succeeded, print};
use crate::errors::kind_of;
use crate::proto::echo::{EchoReply, EchoRequest, StreamRequest};
use crate::proto::health::{HealthCheckRequest, HealthCheckResponse};
use anyhow::Context;
use clap::{Args, ValueEnum};
use http::uri::PathAndQuery;
use serde::Serialize;
use serde_json::{Map, Value};
use std::error::Error;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

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
    /// Calls this service instead; the echo server answers every one of them.
    #[arg(long)]
    service: Option<String>,
    /// Calls this method instead.
    #[arg(long)]
    method: Option<String>,
    /// NAME: VALUE
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// The server is to answer with this status instead of a reply.
    #[arg(long, default_value_t = 0)]
    code: u32,
    /// Milliseconds the server is to wait before its reply.
    #[arg(long, default_value_t = 0)]
    delay: u32,
    /// Milliseconds for the connection, and for each call.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

#[derive(Serialize, Default)]
struct Report {
    ok: u64,
    pods: Counts,
    /// By number, as they came over the wire.
    statuses: Counts,
    errors: Counts,
    latency_ms: Option<Percentiles>,
    /// Of the last call: `grpc-status`, and its message.
    status: Option<i32>,
    message: String,
    pod: String,
    /// Headers of the last answer, and its trailers when it is nothing but a status.
    last_headers: Map<String, Value>,
    /// The last reply.
    last: Value,
}

pub(crate) async fn run(args: GrpcArgs) -> anyhow::Result<Succeeded> {
    let deadline = Duration::from_millis(args.timeout);
    let headers = headers(&args.headers)?;
    let path = path(&args)?;
    let endpoint = Endpoint::from_shared(format!("http://{}", args.target))?.connect_timeout(deadline);
    let mut report = Report::default();
    match endpoint.connect().await {
        Ok(channel) => {
            let caller = Caller { args: &args, headers, path, channel, deadline };
            caller.all(&mut report).await;
        }
        Err(error) => report.errors.add(kind_of(&error)),
    }
    print(&report)?;
    Ok(Succeeded::count(report.ok))
}

fn headers(lines: &[String]) -> anyhow::Result<MetadataMap> {
    let mut headers = MetadataMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').context("a header is NAME: VALUE")?;
        let name: AsciiMetadataKey = name.trim().to_ascii_lowercase().parse()?;
        headers.append(name, value.trim().parse()?);
    }
    Ok(headers)
}

fn path(args: &GrpcArgs) -> anyhow::Result<PathAndQuery> {
    let (service, method) = match args.call {
        Call::Unary => ("culvert.echo.v1.Echo", "Unary"),
        Call::Stream => ("culvert.echo.v1.Echo", "ServerStream"),
        Call::Health => ("grpc.health.v1.Health", "Check"),
    };
    let service = args.service.as_deref().unwrap_or(service);
    let method = args.method.as_deref().unwrap_or(method);
    Ok(format!("/{service}/{method}").parse()?)
}

struct Caller<'a> {
    args: &'a GrpcArgs,
    headers: MetadataMap,
    path: PathAndQuery,
    channel: Channel,
    deadline: Duration,
}

impl Caller<'_> {
    async fn all(&self, report: &mut Report) {
        let mut latencies = Latencies::default();
        let rounds = if self.args.call == Call::Stream { 1 } else { self.args.count };
        for _ in 0..rounds {
            let started = Instant::now();
            let outcome = match self.args.call {
                Call::Stream => self.stream(report).await,
                Call::Unary => self.within(self.unary(report)).await,
                Call::Health => self.within(self.health(report)).await,
            };
            match outcome {
                Ok(()) => latencies.add(started.elapsed()),
                Err(word) => report.errors.add(word),
            }
        }
        report.latency_ms = latencies.percentiles();
    }

    async fn within(&self, call: impl Future<Output = Result<(), String>>) -> Result<(), String> {
        timeout(self.deadline, call).await.unwrap_or_else(|_| Err("timeout".into()))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        Request::from_parts(self.headers.clone(), tonic::Extensions::default(), message)
    }

    async fn call<T, R>(&self, message: T, report: &mut Report) -> Result<Response<R>, String>
    where
        T: prost::Message + Default + 'static,
        R: prost::Message + Default + 'static,
    {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| kind_of(&error).to_owned())?;
        let codec = ProstCodec::<T, R>::default();
        match client.unary(self.request(message), self.path.clone(), codec).await {
            Ok(response) => {
                report.note_status(0, "", response.metadata());
                Ok(response)
            }
            Err(status) => Err(report.failed(status)),
        }
    }

    async fn unary(&self, report: &mut Report) -> Result<(), String> {
        let args = self.args;
        let request = EchoRequest { message: args.message.clone(), delay_ms: args.delay, code: args.code };
        let reply: Response<EchoReply> = self.call(request, report).await?;
        report.note(reply.into_inner(), &args.message)
    }

    async fn health(&self, report: &mut Report) -> Result<(), String> {
        let request = HealthCheckRequest { service: String::new() };
        let reply: Response<HealthCheckResponse> = self.call(request, report).await?;
        report.ok += 1;
        report.pods.add(reply.get_ref().status().as_str_name());
        Ok(())
    }

    async fn stream(&self, report: &mut Report) -> Result<(), String> {
        let args = self.args;
        let request =
            StreamRequest { message: args.message.clone(), count: args.count, interval_ms: args.interval };
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| kind_of(&error).to_owned())?;
        let codec = ProstCodec::<StreamRequest, EchoReply>::default();
        let response = client.server_streaming(self.request(request), self.path.clone(), codec).await;
        let (headers, mut replies, _) = response.map_err(|status| report.failed(status))?.into_parts();
        loop {
            let next = timeout(self.deadline, replies.message()).await.map_err(|_| "timeout")?;
            match next.map_err(|status| report.failed(status))? {
                Some(reply) => report.note(reply, &args.message)?,
                None => break,
            }
        }
        report.note_status(0, "", &headers);
        Ok(())
    }
}

impl Report {
    fn note(&mut self, reply: EchoReply, sent: &str) -> Result<(), String> {
        if reply.message != sent {
            return Err("wrong-bytes".into());
        }
        self.ok += 1;
        self.pods.add(&reply.pod);
        self.pod.clone_from(&reply.pod);
        self.last = serde_json::json!({
            "message": reply.message, "pod": reply.pod, "namespace": reply.namespace, "node": reply.node,
            "service_account": reply.service_account, "remote": reply.remote, "sequence": reply.sequence,
            "path": reply.path, "headers": reply.headers,
        });
        Ok(())
    }

    fn note_status(&mut self, code: i32, message: &str, headers: &MetadataMap) {
        self.statuses.add(code.to_string());
        self.status = Some(code);
        message.clone_into(&mut self.message);
        self.last_headers = joined(headers);
        if let Some(pod) = headers.get("x-echo-pod").and_then(|pod| pod.to_str().ok()) {
            pod.clone_into(&mut self.pod);
        }
    }

    /// The transport's word when it failed there, else the status code's name.
    fn failed(&mut self, status: Status) -> String {
        if let Some(word) = status.source().map(kind_of).filter(|word| *word != "other") {
            return word.to_owned();
        }
        self.note_status(status.code().into(), status.message(), status.metadata());
        format!("{:?}", status.code())
    }
}

fn joined(headers: &MetadataMap) -> Map<String, Value> {
    let headers = headers.as_ref();
    let one = |name: &http::HeaderName| {
        let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        (name.to_string(), Value::from(values.collect::<Vec<_>>().join(", ")))
    };
    headers.keys().map(one).collect()
}
