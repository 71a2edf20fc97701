//! One request for each pair of client and server, each on a connection of its own that is the first between the two. A
//! client is a network namespace.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use nix::sched::{CloneFlags, setns};

use crate::connection::{Connection, Target};
use crate::report::Report;

#[derive(Args, Clone)]
pub struct Options {
    /// http://HOST:PORT/PATH of a server; hosts are addresses
    #[arg(required = true)]
    urls: Vec<String>,
    /// A client's network namespace; repeated. All of them send at the same time
    #[arg(long, required = true)]
    from: Vec<PathBuf>,
}

/// Sends the requests: each client's one after the other.
///
/// # Errors
/// When a URL makes no sense or a namespace cannot be entered.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let targets: Vec<Target> =
        options.urls.iter().map(|url| Target::parse(url)).collect::<anyhow::Result<_>>()?;
    // Nobody sends before all are where they belong.
    let all_there = Barrier::new(options.from.len() + 1);
    let (took, seen) = thread::scope(|scope| {
        let send = |number: usize, namespace: &Path| {
            let entered = enter(namespace);
            all_there.wait();
            entered.map(|()| each(&targets, number))
        };
        let started: Vec<_> = options
            .from
            .iter()
            .enumerate()
            .map(|(number, namespace)| scope.spawn(move || send(number, namespace)))
            .collect();
        all_there.wait();
        let began = Instant::now();
        let seen: Vec<_> = started.into_iter().map(|one| one.join()).collect();
        (began.elapsed(), seen)
    });
    let mut latencies = Vec::new();
    for one in seen {
        match one {
            Ok(seen) => latencies.extend(seen?),
            Err(_) => bail!("a client's thread ended early"),
        }
    }
    let failed = latencies.iter().filter(|latency| latency.is_none()).count();
    Ok(Report::new(took, latencies.into_iter().flatten().collect(), failed))
}

/// This thread only.
fn enter(namespace: &Path) -> anyhow::Result<()> {
    let file = File::open(namespace).with_context(|| namespace.display().to_string())?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", namespace.display()))
}

/// From before the connection is opened until the response is complete; none where that failed. Clients begin with different
/// servers, so that they do not all ask the same one.
fn each(targets: &[Target], client: usize) -> Vec<Option<Duration>> {
    let order = (0..targets.len()).map(|number| &targets[(number + client) % targets.len()]);
    order
        .map(|target| {
            let began = Instant::now();
            let mut connection = Connection::open(target).ok()?;
            let response = connection.exchange(&target.request).ok()?;
            (response.status == 200).then(|| began.elapsed())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn every_server_is_asked_once_and_failures_count() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for (number, socket) in listener.incoming().enumerate() {
                let mut socket = socket.unwrap();
                let _ = socket.read(&mut [0; 1024]);
                let status = if number == 1 { "503 No" } else { "200 OK" };
                write!(socket, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
        });
        let urls = ["a", "b", "c"].map(|path| Target::parse(&format!("http://{address}/{path}")).unwrap());
        let seen = each(&urls, 1);
        assert_eq!(seen.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
    }

    #[test]
    fn a_namespace_that_is_not_there_is_named() {
        let urls = vec!["http://127.0.0.1:1/".to_owned()];
        let Err(error) = run(&Options { urls, from: vec!["/not/there".into()] }) else {
            panic!("it is not there")
        };
        assert!(format!("{error:#}").contains("/not/there"), "{error:#}");
    }
}
