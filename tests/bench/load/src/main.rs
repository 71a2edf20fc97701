//! What the benchmarks send beside what wrk, h2load and iperf3 do. One thread per connection with blocking sockets: the
//! kernel's timers wake it to within a tenth of a millisecond, where event loops count in whole ones.

mod connection;
mod first;
mod percentiles;
mod rate;
mod report;
mod watch;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// HTTP/1.1 requests for a URL at a fixed rate
    Rate(rate::Options),
    /// One request from each client to each server
    First(first::Options),
    /// Requests until standard input ends, and when their answers changed
    Watch(watch::Options),
}

fn main() -> anyhow::Result<()> {
    let report = match Options::parse().command {
        Command::Rate(options) => rate::run(&options)?,
        Command::First(options) => first::run(&options)?,
        Command::Watch(options) => return watch::run(&options),
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
