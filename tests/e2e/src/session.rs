//! A program that is talked to line by line: `culvert-echo hold`, a recording.

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Killed when dropped.
pub struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    what: String,
}

impl Session {
    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Self {
        let what = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("piped above");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, stdin, lines, what }
    }

    /// The next line, as JSON.
    ///
    /// # Panics
    /// When none comes in time, or it is no JSON.
    #[track_caller]
    pub fn next(&self, patience: Duration) -> Value {
        match self.lines.recv_timeout(patience) {
            Ok(line) => match serde_json::from_str(&line) {
                Ok(value) => value,
                Err(_) => panic!("{}: {line}", self.what),
            },
            Err(RecvTimeoutError::Timeout) => panic!("{}: silent for {} s", self.what, patience.as_secs()),
            Err(RecvTimeoutError::Disconnected) => panic!("{}: ended", self.what),
        }
    }

    /// Sends a line.
    ///
    /// # Panics
    /// When the program is gone.
    #[track_caller]
    pub fn send(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("not ended");
        let sent = writeln!(stdin, "{line}").and_then(|()| stdin.flush());
        assert!(sent.is_ok(), "{}: gone", self.what);
    }

    /// Sends a line and reads the answer.
    #[track_caller]
    pub fn ask(&mut self, line: &str, patience: Duration) -> Value {
        self.send(line);
        self.next(patience)
    }

    /// The lines that have come and were not read yet.
    pub fn unread(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    /// Closes its input and waits for the last line and the end.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn end(mut self, patience: Duration) -> Vec<String> {
        drop(self.stdin.take());
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(patience) {
                Ok(line) => rest.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("{}: does not end", self.what),
            }
        }
        // Its output is closed, so it is ending.
        let _ = self.child.wait();
        rest
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
