//! Running a program inside a pod's namespace.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::intercept::Netns;

/// A rule program that takes longer hangs on a lock or a name look-up.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why a program did not do its work.
#[derive(Debug, Error)]
pub enum ProgramError {
    #[error("cannot run {program} in the pod's namespace: {error}")]
    Start { program: PathBuf, error: io::Error },
    #[error("{program} was not done after {} s", DEADLINE.as_secs())]
    Late { program: PathBuf },
    #[error("{program} failed ({status}): {stderr}")]
    Failed { program: PathBuf, status: std::process::ExitStatus, stderr: String },
}

/// Runs a program inside the namespace with the input on its standard input; gives its standard output.
pub(super) async fn run<S: AsRef<OsStr>>(
    netns: &Netns,
    program: &Path,
    arguments: &[S],
    input: &str,
) -> Result<String, ProgramError> {
    let start = |error| ProgramError::Start { program: program.to_owned(), error };
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The child inherits the namespace of the thread that starts it.
    let child = netns.run(|| command.spawn()).and_then(|spawned| spawned).map_err(start)?;
    let output = match tokio::time::timeout(DEADLINE, converse(child, input)).await {
        Ok(output) => output.map_err(start)?,
        Err(_) => return Err(ProgramError::Late { program: program.to_owned() }),
    };
    if !output.status.success() {
        return Err(ProgramError::Failed {
            program: program.to_owned(),
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn converse(mut child: Child, input: &str) -> io::Result<Output> {
    let stdin = child.stdin.take();
    let write = async {
        if let Some(mut stdin) = stdin {
            match stdin.write_all(input.as_bytes()).await {
                // It ended without reading everything: its status says why.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                result => result?,
            }
        }
        io::Result::Ok(())
    };
    let (written, output) = tokio::join!(write, child.wait_with_output());
    written?;
    output
}
