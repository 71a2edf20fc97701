//! A recording of the link while something happens on it.

use crate::capture::{Summary, pcap};
use anyhow::Context;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// Starting and ending a recording takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Recording {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    path: PathBuf,
}

impl Recording {
    /// Returns when frames are being kept.
    pub(super) async fn start(mut command: Command, path: PathBuf) -> anyhow::Result<Self> {
        let mut child = command.spawn().context("start the recording")?;
        let output = child.stdout.take().context("the recording's output")?;
        let mut lines = BufReader::new(output).lines();
        let first = timeout(PATIENCE, lines.next_line()).await.context("the recording did not start")??;
        anyhow::ensure!(first.is_some_and(|line| line.contains("capturing")), "the recording did not start");
        Ok(Self { child, lines, path })
    }

    /// Ends it and looks at what is in it.
    pub(super) async fn finish(mut self, token: &str) -> anyhow::Result<Summary> {
        drop(self.child.stdin.take());
        let ended = timeout(PATIENCE, async {
            while self.lines.next_line().await?.is_some() {}
            self.child.wait().await
        });
        ended.await.context("the recording did not end")??;
        let frames = pcap::read(&self.path).with_context(|| self.path.display().to_string())?;
        Ok(Summary::of(&frames, token))
    }
}
