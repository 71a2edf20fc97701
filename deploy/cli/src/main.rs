//! `culvert`: the sandbox, captures, the demo.

use culvert_cli::cli;
use culvert_cli::sandbox::namespaces::{INIT_COMMAND, init};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    // Before anything starts a thread: entering namespaces needs a single-threaded process.
    match arguments.next() {
        Some(first) if first == INIT_COMMAND => init::run(&arguments.collect::<Vec<_>>()),
        _ => cli::run(),
    }
}
