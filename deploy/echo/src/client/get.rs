//! HTTP requests.

use super::connect::{lookup_one, open};
use super::stats::{Counts, Latencies, Percentiles};
use super::{Succeeded, print};
use crate::errors::kind_of;
use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use futures::future::join_all;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::error::Error;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::time::{sleep_until, timeout};

/// Bodies up to this many bytes are looked into for the pod that answered.
const LOOK_INTO: usize = 64 * 1024;

#[derive(Args)]
pub(crate) struct GetArgs {
    /// http://HOST[:PORT][/PATH]
    url: Uri,
    /// Requests in all.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Stop after so many seconds, whatever the count.
    #[arg(long)]
    seconds: Option<f64>,
    /// Requests per second in all; latency then counts from when a request was due.
    #[arg(long)]
    rate: Option<f64>,
    /// Connections used at once.
    #[arg(long, default_value_t = 1)]
    connections: u64,
    /// A connection for every request.
    #[arg(long)]
    new_connection: bool,
    /// HTTP/2 with prior knowledge.
    #[arg(long)]
    http2: bool,
    #[arg(long, default_value = "GET")]
    method: http::Method,
    /// NAME: VALUE
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// Milliseconds for each step: name, connection, answer.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

/// What came of the requests.
#[derive(Serialize)]
struct Report {
    requests: u64,
    ok: u64,
    statuses: Counts,
    errors: Counts,
    pods: Counts,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<Percentiles>,
    seconds: f64,
    rps: f64,
    bytes: u64,
    /// The longest time without any answer, in milliseconds: how long an outage was.
    longest_gap_ms: u64,
    /// The last answer, parsed if it is JSON.
    last: serde_json::Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
}

struct Plan {
    args: GetArgs,
    target: String,
    started: Instant,
    next: Cell<u64>,
    sum: RefCell<Sum>,
}

#[derive(Default)]
struct Sum {
    requests: u64,
    ok: u64,
    bytes: u64,
    statuses: Counts,
    errors: Counts,
    pods: Counts,
    latencies: Latencies,
    last: serde_json::Value,
    last_error: Option<String>,
    last_answer: Option<Instant>,
    longest_gap: Duration,
}

type Failure = Box<dyn Error>;

pub(crate) async fn run(args: GetArgs) -> anyhow::Result<Succeeded> {
    if args.url.scheme_str() != Some("http") {
        bail!("{}: expected http://...", args.url);
    }
    let authority = args.url.authority().context("the URL has no host")?;
    let target = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let started = Instant::now();
    let connections = args.connections.clamp(1, args.count.max(1));
    let plan = Rc::new(Plan { args, target, started, next: Cell::new(0), sum: RefCell::default() });
    let workers = (0..connections).map(|_| worker(Rc::clone(&plan)));
    tokio::task::LocalSet::new().run_until(join_all(workers)).await;
    let mut sum = plan.sum.take();
    let seconds = plan.started.elapsed().as_secs_f64();
    let report = Report {
        requests: sum.requests,
        ok: sum.ok,
        statuses: sum.statuses,
        errors: sum.errors,
        pods: sum.pods,
        latency_ms: sum.latencies.percentiles(),
        seconds,
        rps: sum.requests as f64 / seconds,
        bytes: sum.bytes,
        longest_gap_ms: u64::try_from(sum.longest_gap.as_millis()).unwrap_or(u64::MAX),
        last: sum.last,
        last_error: sum.last_error,
    };
    print(&report)?;
    Ok(Succeeded::count(report.ok))
}

async fn worker(plan: Rc<Plan>) {
    let mut connection = None;
    while let Some(due) = plan.take_turn() {
        let mut from = due;
        if due > Instant::now() {
            sleep_until(due.into()).await;
            // The timer's own lateness (up to a millisecond) is not the server's.
            from = Instant::now();
        }
        let outcome = exchange(&plan, &mut connection).await;
        plan.note(from, outcome);
        if plan.args.new_connection {
            connection = None;
        }
    }
}

impl Plan {
    /// When the next request is due; none when enough were made.
    fn take_turn(&self) -> Option<Instant> {
        let turn = self.next.get();
        let due = match self.args.rate {
            Some(rate) => self.started + Duration::from_secs_f64(turn as f64 / rate),
            None => Instant::now(),
        };
        let over = self.args.seconds.is_some_and(|seconds| (due - self.started).as_secs_f64() >= seconds);
        // With a time limit and no count given, time alone decides.
        let enough = turn >= self.args.count && (self.args.seconds.is_none() || self.args.count > 1);
        if over || enough {
            return None;
        }
        self.next.set(turn + 1);
        Some(due)
    }

    fn note(&self, from: Instant, outcome: Result<(u16, Bytes, u64), Failure>) {
        let mut sum = self.sum.borrow_mut();
        sum.requests += 1;
        let (status, body, bytes) = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                sum.errors.add(kind_of(error.as_ref()));
                let seconds = from.elapsed().as_secs_f64();
                sum.last_error = Some(format!("after {seconds:.1} s: {error}"));
                return;
            }
        };
        let now = Instant::now();
        let gap = now - sum.last_answer.unwrap_or(self.started);
        sum.longest_gap = sum.longest_gap.max(gap);
        sum.last_answer = Some(now);
        sum.latencies.add(now - from);
        sum.statuses.add(status.to_string());
        sum.ok += u64::from((200..300).contains(&status));
        sum.bytes += bytes;
        if let Ok(json) = serde_json::from_slice::<serde_json::Value>(&body) {
            if let Some(pod) = json.get("pod").and_then(|pod| pod.as_str()) {
                sum.pods.add(pod);
            }
            sum.last = json;
        } else {
            sum.last = String::from_utf8_lossy(&body[..body.len().min(1024)]).into_owned().into();
        }
    }
}

enum Sender {
    Http1(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    Http2(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<http::Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}

/// One request; a connection that failed is forgotten, so that the next request makes a new one.
async fn exchange(plan: &Plan, connection: &mut Option<Sender>) -> Result<(u16, Bytes, u64), Failure> {
    let deadline = Duration::from_millis(plan.args.timeout);
    let mut sender = match connection.take().filter(|sender| !sender.is_closed()) {
        Some(sender) => sender,
        None => connect(plan, deadline).await?,
    };
    let answered = timeout(deadline, async {
        let response = sender.send(request(plan)?).await?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut kept = Vec::new();
        let mut total = 0;
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame?.data_ref() {
                total += data.len() as u64;
                kept.extend_from_slice(&data[..data.len().min(LOOK_INTO - kept.len().min(LOOK_INTO))]);
            }
        }
        Ok::<_, Failure>((status, Bytes::from(kept), total))
    });
    let answer = answered.await??;
    *connection = Some(sender);
    Ok(answer)
}

async fn connect(plan: &Plan, deadline: Duration) -> Result<Sender, Failure> {
    let address = lookup_one(&plan.target, deadline).await?;
    let io = TokioIo::new(open(address, deadline).await?);
    if plan.args.http2 {
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
        let (sender, driver) = timeout(deadline, handshake).await??;
        tokio::task::spawn_local(driver);
        return Ok(Sender::Http2(sender));
    }
    let (sender, driver) = hyper::client::conn::http1::handshake(io).await?;
    tokio::task::spawn_local(driver);
    Ok(Sender::Http1(sender))
}

fn request(plan: &Plan) -> Result<Request<Full<Bytes>>, Failure> {
    let url = &plan.args.url;
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let mut request = Request::builder().method(plan.args.method.clone());
    if plan.args.http2 {
        request = request.uri(url.clone());
    } else {
        request = request
            .uri(url.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, authority);
    }
    for line in &plan.args.headers {
        let (name, value) =
            line.split_once(':').ok_or_else(|| format!("header {line:?}: expected NAME: VALUE"))?;
        request = request.header(name.trim(), value.trim());
    }
    Ok(request.body(Full::default())?)
}
