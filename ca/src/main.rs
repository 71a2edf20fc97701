//! The certificate authority.

use std::process::ExitCode;

use clap::Parser;
use culvert_ca::flags::{Command, Flags};
use culvert_ca::run;
use culvert_identity::logging;

fn main() -> ExitCode {
    let flags = Flags::parse();
    match start(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may be what failed, and a person may have typed this: words, not JSON.
            eprintln!("culvert-ca: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(flags: Flags) -> anyhow::Result<()> {
    match flags.command {
        Command::Run(flags_of_run) => {
            let log = logging::init(&flags.log)?;
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(run::run(*flags_of_run, log))
        }
        Command::RotateRoot(flags) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let place = runtime.block_on(run::rotate_root(&flags))?;
            eprintln!("the next root is in {place}; a running authority takes it up within seconds");
            Ok(())
        }
    }
}
