//! The requests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use crate::percentiles::Latencies;

/// A response that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(10);
/// More header fields than any server of the benchmarks sends.
const FIELDS: usize = 64;

#[derive(Args, Clone)]
pub struct Options {
    /// http://HOST:PORT/PATH
    url: String,
    /// Requests per second, over all connections
    #[arg(long)]
    rate: u32,
    #[arg(long)]
    seconds: f64,
    /// Connections; a request waits for the one whose turn it is
    #[arg(long, default_value_t = 16)]
    connections: u32,
}

#[derive(Serialize)]
pub struct Report {
    seconds: f64,
    answered: usize,
    failed: usize,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
}

/// Where requests go.
struct Target {
    address: SocketAddr,
    request: Vec<u8>,
}

impl Target {
    fn parse(url: &str) -> anyhow::Result<Self> {
        let rest = url.strip_prefix("http://").context("the URL must begin with http://")?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let dialled = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        let address = dialled.to_socket_addrs()?.next().with_context(|| format!("{host} has no address"))?;
        let request = format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\n\r\n").into_bytes();
        Ok(Self { address, request })
    }
}

/// What one connection saw.
#[derive(Default)]
struct Seen {
    latencies: Vec<Duration>,
    failed: usize,
}

/// Sends the requests.
///
/// # Errors
/// When the URL makes no sense or a connection cannot be opened.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    if options.rate == 0 || options.connections == 0 {
        bail!("rate and connections must be positive");
    }
    let target = Target::parse(&options.url)?;
    // All connections exist before the first request is due.
    let connections: Vec<Connection> =
        (0..options.connections).map(|_| Connection::open(&target)).collect::<anyhow::Result<_>>()?;
    let total = (f64::from(options.rate) * options.seconds).round() as u32;
    let began = Instant::now() + Duration::from_millis(10);
    let due = |number: u32| began + Duration::from_secs_f64(f64::from(number) / f64::from(options.rate));
    let seen: Vec<Seen> = thread::scope(|scope| {
        let started: Vec<_> = connections
            .into_iter()
            .zip(0..)
            .map(|(connection, first)| {
                let turns = (first..total).step_by(options.connections as usize).map(due);
                let target = &target;
                scope.spawn(move || send(connection, target, turns))
            })
            .collect();
        started.into_iter().map(|one| one.join().unwrap_or_default()).collect()
    });
    let failed = seen.iter().map(|one| one.failed).sum();
    let latencies: Vec<Duration> = seen.into_iter().flat_map(|one| one.latencies).collect();
    let answered = latencies.len();
    if answered + failed != total as usize {
        bail!("a connection's thread ended early: {answered} answered and {failed} failed of {total}");
    }
    let seconds = began.elapsed().as_secs_f64();
    let latencies = Latencies::from(latencies);
    let [p50_ms, p99_ms, p999_ms] = [500, 990, 999].map(|share| latencies.permille(share));
    Ok(Report { seconds, answered, failed, p50_ms, p99_ms, p999_ms })
}

fn send(connection: Connection, target: &Target, turns: impl Iterator<Item = Instant>) -> Seen {
    let mut seen = Seen::default();
    let mut connection = Some(connection);
    for due in turns {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut current = match connection.take().map_or_else(|| Connection::open(target), Ok) {
            Ok(current) => current,
            Err(_) => {
                seen.failed += 1;
                continue;
            }
        };
        match current.exchange(&target.request) {
            Ok(200) => {
                seen.latencies.push(due.elapsed());
                connection = Some(current);
            }
            _ => seen.failed += 1,
        }
    }
    seen
}

struct Connection {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    fn open(target: &Target) -> anyhow::Result<Self> {
        let socket = TcpStream::connect_timeout(&target.address, TIMEOUT)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { socket, buffer: vec![0; 16 << 10] })
    }

    /// The status of the response, which was read to its end.
    fn exchange(&mut self, request: &[u8]) -> anyhow::Result<u16> {
        self.socket.write_all(request)?;
        let mut filled = 0;
        loop {
            if filled == self.buffer.len() {
                bail!("a response is longer than {filled} bytes");
            }
            let read = self.socket.read(&mut self.buffer[filled..])?;
            if read == 0 {
                bail!("the connection was closed before the response was complete");
            }
            filled += read;
            if let Some((status, length)) = complete(&self.buffer[..filled])? {
                if length != filled {
                    bail!("bytes follow the response");
                }
                return Ok(status);
            }
        }
    }
}

/// Status and length of a response, head and body, once all of it is there. Its body must have a `Content-Length`.
fn complete(bytes: &[u8]) -> anyhow::Result<Option<(u16, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(head) = response.parse(bytes)? else { return Ok(None) };
    let status = response.code.context("a response without a status")?;
    let length = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length: usize = match length {
        Some(field) => std::str::from_utf8(field.value)?.trim().parse()?,
        None => bail!("a response without Content-Length, status {status}"),
    };
    Ok((bytes.len() >= head + length).then_some((status, head + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_complete_with_its_last_byte() {
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        for end in 0..response.len() {
            assert!(complete(&response[..end]).unwrap().is_none(), "{end}");
        }
        assert_eq!(complete(response).unwrap(), Some((200, response.len())));
        assert!(complete(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(complete(b"SSH-2.0\r\n").is_err());
    }

    /// A server that answers the second request of each connection late: what was due meanwhile is late, too.
    #[test]
    fn a_stall_is_charged_to_every_request_that_was_due() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        const STALL: Duration = Duration::from_millis(400);
        thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut bytes = [0; 1024];
            for number in 0.. {
                if matches!(socket.read(&mut bytes), Ok(0) | Err(_)) {
                    return;
                }
                if number == 1 {
                    thread::sleep(STALL);
                }
                socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
        });
        let options = Options { url: format!("http://{address}/"), rate: 100, seconds: 0.4, connections: 1 };
        let report = run(&options).unwrap();
        assert_eq!((report.answered, report.failed), (40, 0));
        // Uncorrected, one of 40 would be late and the median nothing.
        assert!(report.p50_ms > 100.0, "{}", report.p50_ms);
    }
}
