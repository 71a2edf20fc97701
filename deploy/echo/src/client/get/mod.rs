//! HTTP requests.

mod exchange;

use super::stats::{Counts, Latencies, Percentiles};
use super::{Succeeded, print};
use crate::errors::kind_of;
use anyhow::{Context, bail};
use clap::Args;
use exchange::{Answer, Failure, exchange};
use futures::future::join_all;
use http::header::SET_COOKIE;
use http::{HeaderMap, Uri};
use serde::Serialize;
use serde_json::{Map, Value};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::time::sleep_until;

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// http://HOST[:PORT][/PATH]; the path is sent as it is written.
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
    /// NAME: VALUE; Host takes the place of the URL's.
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// Sends back the cookies of earlier answers, whatever their path.
    #[arg(long)]
    cookies: bool,
    /// Body of each request.
    #[arg(long, default_value = "")]
    body: String,
    /// Sends the body so many times, without saying its length in advance.
    #[arg(long, value_name = "TIMES", num_args = 0..=1, default_missing_value = "1")]
    chunked: Option<u32>,
    /// Milliseconds between two chunks.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    every: u64,
    /// NAME: VALUE after a chunked body.
    #[arg(long = "trailer", value_name = "TRAILER", requires = "chunked")]
    trailers: Vec<String>,
    /// Sends the whole URL as the target (HTTP/1.1).
    #[arg(long, conflicts_with = "http2")]
    absolute: bool,
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
    last: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_status: Option<u16>,
    /// By name in lower case; several values of one name joined by ", ".
    last_headers: Map<String, Value>,
    last_trailers: Map<String, Value>,
    /// From the request to the first byte of the body, and to the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_first_byte_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
}

struct Plan {
    args: GetArgs,
    target: String,
    started: Instant,
    next: Cell<u64>,
    sum: RefCell<Sum>,
    /// By name.
    cookies: RefCell<BTreeMap<String, String>>,
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
    last: Option<Answer>,
    last_error: Option<String>,
    last_answer: Option<Instant>,
    longest_gap: Duration,
}

pub(crate) async fn run(args: GetArgs) -> anyhow::Result<Succeeded> {
    if args.url.scheme_str() != Some("http") {
        bail!("{}: expected http://...", args.url);
    }
    let authority = args.url.authority().context("the URL has no host")?;
    let target = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let started = Instant::now();
    let connections = args.workers();
    let plan = Rc::new(Plan {
        args,
        target,
        started,
        next: Cell::new(0),
        sum: RefCell::default(),
        cookies: RefCell::default(),
    });
    let workers = (0..connections).map(|_| worker(Rc::clone(&plan)));
    tokio::task::LocalSet::new().run_until(join_all(workers)).await;
    let report = report(plan.sum.take(), plan.started.elapsed());
    print(&report)?;
    Ok(Succeeded::count(report.ok))
}

fn report(mut sum: Sum, elapsed: Duration) -> Report {
    let seconds = elapsed.as_secs_f64();
    let last = sum.last.as_ref();
    Report {
        requests: sum.requests,
        ok: sum.ok,
        latency_ms: sum.latencies.percentiles(),
        seconds,
        rps: sum.requests as f64 / seconds,
        bytes: sum.bytes,
        longest_gap_ms: millis(sum.longest_gap),
        last: last.map_or(Value::Null, content),
        last_status: last.map(|last| last.status),
        last_headers: last.map(|last| joined(&last.headers)).unwrap_or_default(),
        last_trailers: last.map(|last| joined(&last.trailers)).unwrap_or_default(),
        last_first_byte_ms: last.and_then(|last| last.first_byte).map(millis),
        last_ms: last.map(|last| millis(last.whole)),
        last_error: sum.last_error,
        statuses: sum.statuses,
        errors: sum.errors,
        pods: sum.pods,
    }
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

impl GetArgs {
    /// With a time limit and no count given, time alone decides.
    fn most_requests(&self) -> u64 {
        if self.seconds.is_some() && self.count <= 1 { u64::MAX } else { self.count }
    }

    /// No connection is opened that would have nothing to carry.
    fn workers(&self) -> u64 {
        self.connections.clamp(1, self.most_requests().max(1))
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
        let enough = turn >= self.args.most_requests();
        if over || enough {
            return None;
        }
        self.next.set(turn + 1);
        Some(due)
    }

    fn note(&self, from: Instant, outcome: Result<Answer, Failure>) {
        let mut sum = self.sum.borrow_mut();
        sum.requests += 1;
        let answer = match outcome {
            Ok(answer) => answer,
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
        sum.statuses.add(answer.status.to_string());
        sum.ok += u64::from((200..300).contains(&answer.status));
        sum.bytes += answer.bytes;
        if let Some(pod) = answer.pod() {
            sum.pods.add(pod);
        }
        if self.args.cookies {
            self.keep_cookies(&answer.headers);
        }
        sum.last = Some(answer);
    }

    fn keep_cookies(&self, headers: &HeaderMap) {
        let lines = headers.get_all(SET_COOKIE).iter().filter_map(|line| line.to_str().ok());
        let pairs = lines.filter_map(|line| line.split(';').next()?.split_once('='));
        self.cookies.borrow_mut().extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    /// The line of the next request, if there are any.
    fn cookie_line(&self) -> Option<String> {
        let cookies = self.cookies.borrow();
        let pairs: Vec<String> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        (!pairs.is_empty()).then(|| pairs.join("; "))
    }
}

/// The body's start, parsed if it is JSON.
fn content(answer: &Answer) -> Value {
    let text = |body: &[u8]| String::from_utf8_lossy(&body[..body.len().min(1024)]).into_owned().into();
    serde_json::from_slice(&answer.body).unwrap_or_else(|_| text(&answer.body))
}

fn joined(headers: &HeaderMap) -> Map<String, Value> {
    let one = |name: &http::HeaderName| {
        let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        let values: Vec<_> = values.collect();
        (name.to_string(), Value::from(values.join(", ")))
    };
    headers.keys().map(one).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn answer(body: &'static str, pod: Option<&'static str>) -> Answer {
        let mut headers = HeaderMap::new();
        headers.append("vary", "a".parse().unwrap());
        headers.append("vary", "b".parse().unwrap());
        pod.map(|pod| headers.insert("x-echo-pod", pod.parse().unwrap()));
        Answer { body: Bytes::from(body), headers, ..Answer::default() }
    }

    #[test]
    fn the_pod_is_read_from_the_header_or_the_body() {
        assert_eq!(answer("{\"pod\":\"a\"}", None).pod().as_deref(), Some("a"));
        assert_eq!(answer("not JSON", Some("b")).pod().as_deref(), Some("b"));
        assert_eq!(answer("not JSON", None).pod(), None);
    }

    #[test]
    fn the_last_answer_is_told_whole() {
        let sum = Sum { last: Some(answer("plain", None)), ..Sum::default() };
        let report = report(sum, Duration::from_secs(1));
        assert_eq!(report.last, "plain");
        assert_eq!(report.last_headers["vary"], "a, b");
    }

    #[test]
    fn a_time_without_a_count_uses_every_connection() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            get: GetArgs,
        }
        for (words, workers, most) in [
            ("--connections 8", 1, 1),
            ("--connections 8 --count 3", 3, 3),
            ("--connections 8 --count 30 --seconds 2", 8, 30),
            ("--connections 8 --rate 100 --seconds 2", 8, u64::MAX),
        ] {
            let words = ["get", "http://cart/"].into_iter().chain(words.split(' '));
            let get = <Line as clap::Parser>::parse_from(words).get;
            assert_eq!((get.workers(), get.most_requests()), (workers, most), "{get:?}");
        }
    }
}
