//! Processes that the supervisor starts: each leads a process group, so that what it left behind can be ended with it.

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, ChildStderr, ChildStdout};

use crate::sandbox::namespaces::Entry;

/// Grace period used where nobody asked for one.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);
/// A killed process is gone at once, unless the kernel is stuck in it.
const AFTER_KILL: Duration = Duration::from_secs(5);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

impl Exit {
    /// As a shell gives it: the code, or 128 plus the signal.
    #[must_use]
    pub fn shell_code(self) -> i32 {
        self.code.unwrap_or_else(|| 128 + self.signal.unwrap_or(0))
    }
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        Self { code: status.code(), signal: status.signal() }
    }
}

/// A running process. Dropping it kills its group.
#[derive(Debug)]
pub struct Process {
    child: Child,
    group: Pid,
}

/// Where a process's streams go.
pub struct Streams {
    pub stdin: Stdio,
    pub stdout: Stdio,
    pub stderr: Stdio,
}

impl Streams {
    /// No input; output and errors to be read by the supervisor.
    #[must_use]
    pub fn captured() -> Self {
        Self { stdin: Stdio::null(), stdout: Stdio::piped(), stderr: Stdio::piped() }
    }

    /// Nothing at all.
    #[must_use]
    pub fn none() -> Self {
        Self { stdin: Stdio::null(), stdout: Stdio::null(), stderr: Stdio::null() }
    }
}

impl Process {
    /// Starts the entry's command in its place.
    ///
    /// # Errors
    /// As `fork(2)`. Errors on the way to the place show as exit codes 125 to 127, with a line on stderr.
    pub fn spawn(entry: &Entry, streams: Streams) -> io::Result<Self> {
        let mut command = entry.command()?;
        command.stdin(streams.stdin).stdout(streams.stdout).stderr(streams.stderr);
        let child = tokio::process::Command::from(command).spawn()?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let group = group.ok_or_else(|| io::Error::other("the process has no id"))?;
        Ok(Self { child, group })
    }

    /// The process's number, in the sandbox's PID namespace.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.group.as_raw()
    }

    /// What the process writes, if the streams were [`Streams::captured`]. Once.
    pub fn output(&mut self) -> Option<(ChildStdout, ChildStderr)> {
        Some((self.child.stdout.take()?, self.child.stderr.take()?))
    }

    /// Waits for its end. What it started and left behind is killed then.
    ///
    /// # Errors
    /// As `waitpid(2)`.
    pub async fn wait(&mut self) -> io::Result<Exit> {
        let status = self.child.wait().await?;
        self.signal_group(Signal::SIGKILL);
        Ok(status.into())
    }

    /// Sends a signal to the process alone. Nothing happens after its end.
    pub fn signal(&self, signal: Signal) {
        if self.child.id().is_some() {
            let _ = kill(self.group, signal);
        }
    }

    /// Sends a signal to the process and everything in its group.
    pub fn signal_group(&self, signal: Signal) {
        let _ = killpg(self.group, signal);
    }

    /// Asks it to end, kills it after `grace`, and waits.
    ///
    /// # Errors
    /// `TimedOut` when even a killed process does not go away; as `waitpid(2)`.
    pub async fn stop(&mut self, grace: Duration) -> io::Result<Exit> {
        self.signal(Signal::SIGTERM);
        if let Ok(exit) = tokio::time::timeout(grace, self.wait()).await {
            return exit;
        }
        self.signal_group(Signal::SIGKILL);
        tokio::time::timeout(AFTER_KILL, self.wait()).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.id().is_some() {
            self.signal_group(Signal::SIGKILL);
        }
    }
}
