//! Printing results for people or programs.

use anyhow::Context;
use clap::ValueEnum;
use serde_json::Value;
use std::io::Write;

/// What `-o` takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

/// Prints a result: its text, or its value.
///
/// # Errors
/// When standard output cannot be written.
pub fn print(format: Format, text: &str, value: &Value) -> anyhow::Result<()> {
    let text = match format {
        Format::Table => text.to_owned(),
        Format::Json => serde_json::to_string_pretty(value)? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(value)?,
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
}
