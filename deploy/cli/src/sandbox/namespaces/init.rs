//! The hidden subcommand: what this binary executes itself for.

use std::process::ExitCode;

use super::Entry;
use super::keeper;
use crate::sandbox::supervisor::{self, SuperviseArguments};

/// Runs it: `keep NAME ARGUMENTS`, `supervise ARGUMENTS` or `enter ENTRY`, the last word as JSON. Must be called while the
/// process has one thread.
#[must_use]
pub fn run(arguments: &[String]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["keep", name, json] => {
            keeper::run(name, json).map(ExitCode::from).map_err(|error| error.to_string())
        }
        ["supervise", json] => read::<SuperviseArguments>(json)
            .and_then(|arguments| supervisor::run(&arguments))
            .map(|()| ExitCode::SUCCESS),
        ["enter", json] => read::<Entry>(json).map(|entry| {
            let error = entry.become_it();
            eprintln!("culvert: {error}");
            ExitCode::from(error.exit_code())
        }),
        _ => Err("this subcommand is for the sandbox's own use".to_owned()),
    };
    outcome.unwrap_or_else(|message| {
        eprintln!("error: {message}");
        ExitCode::FAILURE
    })
}

fn read<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| format!("the arguments are not understood: {error}"))
}
