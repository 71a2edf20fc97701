//! The demo uses the sandbox as a user would: by the `culvert` command.

use super::evidence::Recording;
use crate::sandbox::cluster::Cluster;
use anyhow::{Context, bail};
use culvert_api::names::ADMIN_PORT;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

/// A sandbox that was brought up takes this long at most; every other call a good deal less.
const PATIENCE: Duration = Duration::from_secs(60);
const NODES: u8 = 2;

pub(super) struct DemoSandbox {
    name: String,
    /// Holds the manifests and takes the recordings.
    pub(super) files: PathBuf,
    culvert: PathBuf,
}

impl DemoSandbox {
    pub(super) fn new(name: &str, files: &Path) -> anyhow::Result<Self> {
        let culvert = std::env::current_exe().context("where this program is")?;
        Ok(Self { name: name.to_owned(), files: files.to_owned(), culvert })
    }

    pub(super) async fn up(&self, manifest: &str) -> anyhow::Result<()> {
        let file = self.files.join(manifest).display().to_string();
        let nodes = NODES.to_string();
        self.succeed(&["up", "--detach", "--nodes", &nodes, "-f", &file]).await.map(|_| ())
    }

    pub(super) async fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        let file = self.files.join(manifest).display().to_string();
        self.succeed(&["apply", "-f", &file]).await.map(|_| ())
    }

    pub(super) async fn down(&self) -> anyhow::Result<()> {
        self.succeed(&["down"]).await.map(|_| ())
    }

    /// `get pods -o json`, the items.
    pub(super) async fn pods(&self) -> anyhow::Result<Vec<Value>> {
        let output = self.succeed(&["get", "pods", "-n", "shop", "-o", "json"]).await?;
        let list: Value = serde_json::from_slice(&output.stdout).context("the pods as JSON")?;
        Ok(list.get("items").and_then(Value::as_array).or(list.as_array()).cloned().unwrap_or_default())
    }

    /// Waits until every pod is ready and every labelled one enrolled.
    pub(super) async fn wait(&self) -> anyhow::Result<()> {
        self.succeed(&["wait", "--timeout", "40"]).await.map(|_| ())
    }

    /// Runs the traffic client in a pod and reads its JSON line, whatever its exit code.
    pub(super) async fn client(&self, namespace: &str, pod: &str, args: &[&str]) -> anyhow::Result<Value> {
        let echo = self.echo()?;
        let call = [&["exec", "-n", namespace, pod, "--", &echo], args].concat();
        let output = self.call(&call).await?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "`culvert-echo {}` in {pod}: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            )
        })
    }

    /// What the node proxy of `node` counts, in the text format of Prometheus.
    pub(super) async fn metrics(&self, node: &str) -> anyhow::Result<String> {
        let echo = self.echo()?;
        let cluster = Cluster::new(&self.name, NODES);
        let address = cluster.node(node).context("no such node")?.address.v4;
        let url = format!("http://{address}:{ADMIN_PORT}/metrics");
        let call = ["exec", "--node", node, "--", &echo, "fetch", &url];
        Ok(String::from_utf8_lossy(&self.succeed(&call).await?.stdout).into_owned())
    }

    /// Records the link between the nodes, from now until [`Recording::finish`].
    pub(super) async fn record(&self, file: &str) -> anyhow::Result<Recording> {
        let path = self.files.join(file);
        let culvert = self.culvert.display().to_string();
        let target = path.display().to_string();
        let inner = [&culvert, "capture", "--interface", "eth0", "--write", &target];
        let mut command = self.command(&[&["exec", "--node", "node1", "--"][..], &inner[..]].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        Recording::start(command, path).await
    }

    fn echo(&self) -> anyhow::Result<String> {
        let echo = self.culvert.with_file_name("culvert-echo");
        if !echo.exists() {
            bail!("{} is missing; build it with `cargo build --release`", echo.display());
        }
        Ok(echo.display().to_string())
    }

    async fn succeed(&self, args: &[&str]) -> anyhow::Result<Output> {
        let output = self.call(args).await?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`culvert sandbox {}` failed: {}", args.join(" "), said.trim());
        }
        Ok(output)
    }

    async fn call(&self, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.command(args);
        command.stdin(Stdio::null());
        let output = timeout(PATIENCE, command.output()).await;
        output
            .with_context(|| {
                format!("`culvert sandbox {}` took longer than {} s", args.join(" "), PATIENCE.as_secs())
            })?
            .context("start culvert")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.culvert);
        // `--name` right after the verb, before a `--` could hide it.
        command.arg("sandbox").arg(args[0]).args(["--name", &self.name]).args(&args[1..]);
        command.kill_on_drop(true);
        command
    }
}
