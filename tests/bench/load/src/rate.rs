//! Requests at a fixed rate, their latency counted from when they were due, so that a server that stalls is charged for every
//! request that should have been sent meanwhile (coordinated omission).

use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;

use crate::connection::{Connection, Target};
use crate::report::Report;

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
    Ok(Report::new(began.elapsed(), latencies, failed))
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
            Ok(response) if response.status == 200 => {
                seen.latencies.push(due.elapsed());
                connection = Some(current);
            }
            _ => seen.failed += 1,
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

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
