//! Many commands in one process: starting a process for each costs more than what it does.

use super::hold::stdin_lines;
use super::{ClientCommand, Succeeded, print};
use clap::Parser;
use serde_json::json;

/// A line as a client command.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Line {
    #[command(subcommand)]
    command: ClientCommand,
}

impl Line {
    fn parse_words(line: &str) -> anyhow::Result<Self> {
        let words: Vec<String> = serde_json::from_str(line)?;
        Ok(Self::try_parse_from(words)?)
    }
}

/// Runs each line to its end before the next; one that cannot be run is answered with `error`.
pub(crate) async fn run() -> anyhow::Result<Succeeded> {
    let mut lines = stdin_lines();
    let mut succeeded = 0;
    while let Some(line) = lines.recv().await {
        let outcome = match Line::parse_words(&line) {
            Ok(Line { command }) => Box::pin(super::perform(command)).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(Succeeded::Something) => succeeded += 1,
            Ok(Succeeded::Nothing) => {}
            Err(error) => print(&json!({"error": error.to_string()}))?,
        }
    }
    Ok(Succeeded::count(succeeded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_the_words_of_a_command() {
        let line = Line::parse_words(r#"["get", "http://cart/a b", "--header", "x: y z"]"#);
        assert!(line.is_err(), "a URL has no space");
        let line = Line::parse_words(r#"["get", "http://cart/%2F?q=", "--header", "x: y z"]"#).unwrap();
        assert!(matches!(line.command, ClientCommand::Get(_)));
        assert!(Line::parse_words("get http://cart/").is_err(), "no JSON");
        assert!(Line::parse_words(r#"["serve"]"#).is_err());
    }
}
