//! Requests at a fixed rate, their latency counted from when they were due, so that a server that stalls is charged for
//! every request that should have been sent meanwhile (coordinated omission).
//!
//! One thread per connection with blocking sockets: the kernel's timers wake it to within a tenth of a millisecond, where
//! event loops count in whole ones.

mod percentiles;
mod rate;

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
}

fn main() -> anyhow::Result<()> {
    let Command::Rate(options) = Options::parse().command;
    println!("{}", serde_json::to_string(&rate::run(&options)?)?);
    Ok(())
}
