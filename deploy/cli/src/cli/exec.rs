//! `culvert sandbox exec`: this process's streams and signals for a command in the sandbox.

use std::os::fd::AsFd;
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::client;
use crate::sandbox::control::place::Place as Sandbox;
use crate::sandbox::control::protocol::{Place, Request, Response};
use crate::sandbox::control::wire::Connection;

/// Runs a command there and returns its exit code.
///
/// # Errors
/// When it could not be started, or the sandbox ended under it.
pub async fn run(sandbox: &Sandbox, place: Place, command: Vec<String>) -> anyhow::Result<ExitCode> {
    let environment = match &place {
        // A pod has an environment of its own; only what the terminal is comes from here.
        Place::Pod { .. } => std::env::vars().filter(|(name, _)| name == "TERM").collect(),
        Place::Node(_) | Place::Component(_) => std::env::vars().collect(),
    };
    let directory = std::env::current_dir().ok();
    // Before the command can have done anything that makes somebody send one.
    let mut signals = Signals::catch()?;
    let connection = client::connect(sandbox)?;
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let request = Request::Exec { place, command, environment, directory };
    connection.send(&request, &[stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]).await?;
    loop {
        tokio::select! {
            answer = client::answer(&connection) => {
                if let Response::Exited { code } = answer? {
                    return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
                }
            }
            number = signals.next() => pass_on(&connection, number).await?,
        }
    }
}

async fn pass_on(connection: &Connection, number: i32) -> anyhow::Result<()> {
    Ok(connection.send(&Request::Signal { number }, &[]).await?)
}

/// The signals that a terminal or a caller sends to end or poke a command.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.hang_up.recv() => SignalKind::hangup().as_raw_value(),
            _ = self.quit.recv() => SignalKind::quit().as_raw_value(),
        }
    }
}
