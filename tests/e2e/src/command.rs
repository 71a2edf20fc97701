//! Programs under a deadline.

use serde_json::Value;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Done {
    /// Exit code; 128 and the number for a signal, as a shell says it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    what: String,
}

impl Done {
    /// # Panics
    /// When it did not succeed.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.code == 0, "{}: code {}\n{}\n{}", self.what, self.code, self.stdout, self.stderr);
        self
    }

    /// # Panics
    /// When it did succeed.
    #[track_caller]
    pub fn failed(self) -> Self {
        assert!(self.code != 0, "{}: expected to fail\n{}\n{}", self.what, self.stdout, self.stderr);
        self
    }

    /// Standard output as one JSON document.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_str(&self.stdout) {
            Ok(value) => value,
            Err(error) => {
                panic!("{}: {error}; code {}\n{}\n{}", self.what, self.code, self.stdout, self.stderr)
            }
        }
    }

    /// Both streams.
    pub fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// A program of this workspace: in CULVERT_BIN_DIR, else (those that serve tests alone) beside the test programs.
///
/// # Panics
/// When it was not built.
pub fn binary(name: &str) -> PathBuf {
    // target/PROFILE/deps/TEST
    let test = std::env::current_exe().expect("the test program has a path");
    let beside = test.ancestors().nth(2).expect("it lies in target/PROFILE/deps").join(name);
    let chosen = std::env::var_os("CULVERT_BIN_DIR").map(|directory| PathBuf::from(directory).join(name));
    let path = chosen.filter(|path| path.exists()).unwrap_or(beside);
    assert!(path.exists(), "{} is missing; run tests/run, or cargo build", path.display());
    path
}

/// Runs to the end, standard input empty.
///
/// # Panics
/// When it takes longer than `patience`; it is killed then.
#[track_caller]
pub fn run(command: Command, patience: Duration) -> Done {
    run_with_input(command, "", patience)
}

/// Runs to the end with that standard input.
///
/// # Panics
/// When it takes longer than `patience`; it is killed then.
#[track_caller]
pub fn run_with_input(mut command: Command, input: &str, patience: Duration) -> Done {
    let what = describe(&command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => panic!("{what}: {error}"),
    };
    let mut stdin = child.stdin.take().expect("piped above");
    let input = input.to_owned();
    std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let stdout = collect(child.stdout.take().expect("piped above"));
    let stderr = collect(child.stderr.take().expect("piped above"));
    let deadline = Instant::now() + patience;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                panic!(
                    "{what}: still running after {} s\n{}\n{}",
                    patience.as_secs(),
                    stdout.join().unwrap_or_default(),
                    stderr.join().unwrap_or_default()
                );
            }
            Err(error) => panic!("{what}: {error}"),
        }
    };
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Done { code, stdout: stdout.join().unwrap_or_default(), stderr: stderr.join().unwrap_or_default(), what }
}

fn collect(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is what there is.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
