//! Requests that go on and on, and when their answers changed: what an edit of the mesh's configuration does, and whether it
//! costs a request.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;

use crate::connection::{Connection, Response, Target};

#[derive(Args, Clone)]
pub struct Options {
    /// http://HOST:PORT/PATH
    url: String,
    /// The header of the response whose value is watched; without it, the first word of the body
    #[arg(long)]
    header: Option<String>,
    #[arg(long, default_value_t = 4)]
    connections: u32,
    /// Milliseconds between the answer to a request and the next request on the same connection
    #[arg(long, default_value_t = 4)]
    pause: u64,
}

/// A line of standard output.
#[derive(Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
enum Line<'a> {
    /// The answer on a connection is another than the one before it.
    Changed {
        connection: u32,
        value: &'a str,
        /// When it was there, in nanoseconds since 1970.
        at_ns: u128,
    },
    /// Why a request has failed.
    Failed { connection: u32, why: &'a str },
    /// The last one.
    Ended { answered: usize, failed: usize },
}

#[derive(Default)]
struct Seen {
    answered: usize,
    failed: usize,
}

/// Sends requests until standard input ends, and prints what is to be told as it happens.
///
/// # Errors
/// When the URL makes no sense.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let is_over = AtomicBool::new(false);
    let lines = Mutex::new(std::io::stdout());
    let total = watch(options, &lines, &is_over, || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
    })?;
    print(&lines, &Line::Ended { answered: total.answered, failed: total.failed });
    Ok(())
}

/// `wait` returns when it is over.
fn watch<W: Write + Send>(
    options: &Options,
    lines: &Mutex<W>,
    is_over: &AtomicBool,
    wait: impl FnOnce(),
) -> anyhow::Result<Seen> {
    let target = Target::parse(&options.url)?;
    let seen: Vec<Seen> = thread::scope(|scope| {
        let target = &target;
        let started: Vec<_> = (0..options.connections)
            .map(|connection| scope.spawn(move || send(options, target, connection, lines, is_over)))
            .collect();
        wait();
        is_over.store(true, Ordering::Relaxed);
        // A thread that ended early is not forgotten: whatever it had under way has failed.
        started.into_iter().map(|one| one.join().unwrap_or(Seen { answered: 0, failed: 1 })).collect()
    });
    let sum = |all: Seen, one: &Seen| Seen {
        answered: all.answered + one.answered,
        failed: all.failed + one.failed,
    };
    Ok(seen.iter().fold(Seen::default(), sum))
}

fn send<W: Write>(
    options: &Options,
    target: &Target,
    connection: u32,
    lines: &Mutex<W>,
    is_over: &AtomicBool,
) -> Seen {
    let mut seen = Seen::default();
    let mut known: Option<String> = None;
    let mut kept: Option<Connection> = None;
    while !is_over.load(Ordering::Relaxed) {
        let attempt = kept.take().map_or_else(|| Connection::open(target), Ok);
        let asked = attempt.and_then(|mut open| {
            let value = value(&open.exchange(&target.request)?, options.header.as_deref())?;
            Ok((open, value))
        });
        match asked {
            Ok((open, value)) => {
                seen.answered += 1;
                kept = Some(open);
                if known.as_ref() != Some(&value) {
                    print(lines, &Line::Changed { connection, value: &value, at_ns: now() });
                    known = Some(value);
                }
            }
            Err(error) => {
                seen.failed += 1;
                print(lines, &Line::Failed { connection, why: &format!("{error:#}") });
            }
        }
        thread::sleep(Duration::from_millis(options.pause));
    }
    seen
}

fn value(response: &Response<'_>, header: Option<&str>) -> anyhow::Result<String> {
    anyhow::ensure!(response.status == 200, "answered {}", response.status);
    let body = || String::from_utf8_lossy(response.body).split(' ').next().unwrap_or_default().to_owned();
    Ok(header.map_or_else(body, |name| response.header(name).unwrap_or_default().to_owned()))
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

fn print<W: Write>(lines: &Mutex<W>, line: &Line<'_>) {
    // Nobody who reads is left: then nothing is to be told.
    if let (Ok(mut out), Ok(text)) = (lines.lock(), serde_json::to_string(line)) {
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Answers in turn; after the last one the connection is cut.
    fn serve(answers: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            for answer in answers {
                let _ = socket.read(&mut [0; 1024]);
                write!(socket, "HTTP/1.1 {answer}\r\n\r\nv1 x").unwrap();
            }
        });
        format!("http://{address}/")
    }

    fn lines(
        header: Option<&str>,
        answers: &'static [&'static str],
        count: usize,
    ) -> (Seen, Vec<serde_json::Value>) {
        let header = header.map(ToOwned::to_owned);
        let options = Options { url: serve(answers), header, connections: 1, pause: 1 };
        let lines = Mutex::new(Vec::new());
        let all = || String::from_utf8(lines.lock().unwrap().clone()).unwrap();
        let wait = || {
            while all().lines().count() < count {
                thread::sleep(Duration::from_millis(1));
            }
        };
        let seen = watch(&options, &lines, &AtomicBool::new(false), wait).unwrap();
        (seen, all().lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    #[test]
    fn a_change_is_told_once_and_a_failure_every_time() {
        const OLD: &str = "200 OK\r\nX-Edit: 1\r\nContent-Length: 4";
        const NEW: &str = "200 OK\r\nX-Edit: 2\r\nContent-Length: 4";
        let (seen, told) = lines(Some("x-edit"), &[OLD, OLD, NEW, NEW], 3);
        assert_eq!(seen.answered, 4);
        assert!(seen.failed >= 1, "the connection was cut");
        assert_eq!((&told[0]["value"], &told[1]["value"]), (&"1".into(), &"2".into()));
        assert!(told[2..].iter().all(|line| line["event"] == "failed"), "{told:?}");
    }

    #[test]
    fn without_a_header_it_is_the_first_word() {
        let (_, told) = lines(None, &["200 OK\r\nContent-Length: 4", "503 No\r\nContent-Length: 4"], 2);
        assert_eq!(told[0]["value"], "v1");
        assert_eq!(told[1]["why"], "answered 503");
    }
}
