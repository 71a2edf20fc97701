//! Service addresses for everybody who is not captured by the mesh: rules in every node's namespace, translated from
//! the objects and replaced when they change.

mod frontends;
pub mod outside;
mod rules;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_objects::Objects;
use parking_lot::Mutex;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::sandbox::cluster::{Cluster, load_balancer_range};
use crate::sandbox::namespaces::Netns;
use crate::sandbox::store::Store;

/// How long changes are gathered before rules follow.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Before rules that were refused are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// For one run of `nft`.
const DEADLINE: Duration = Duration::from_secs(20);
/// Where `nft` is on systems that leave it out of an ordinary user's search path.
const MORE_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// The rules that are in force on every node. Cheap to clone.
#[derive(Clone, Default)]
pub struct ServiceRules {
    by_node: Arc<Mutex<BTreeMap<String, String>>>,
}

impl ServiceRules {
    /// Nodes whose rules are not yet those that the objects ask for.
    #[must_use]
    pub fn behind<'a>(&self, objects: &Objects, cluster: &'a Cluster) -> Vec<&'a str> {
        let is_behind = |node: &&str| !self.are_in_force(node, &wanted(objects, cluster, node));
        cluster.nodes.iter().map(|node| node.name.as_str()).filter(is_behind).collect()
    }

    fn are_in_force(&self, node: &str, rules: &str) -> bool {
        self.by_node.lock().get(node).is_some_and(|in_force| in_force == rules)
    }

    /// Keeps the rules of every node equal to the store until cancelled.
    pub async fn run(self, store: Store, cluster: Arc<Cluster>, cancel: CancellationToken) {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.follow(store, &cluster) => {}
        }
    }

    async fn follow(&self, store: Store, cluster: &Cluster) {
        let mut changed = store.changed();
        loop {
            changed.mark_unchanged();
            let objects = store.objects();
            let mut failed = false;
            for node in &cluster.nodes {
                if let Err(error) = self.put_in_force(&node.name, wanted(&objects, cluster, &node.name)).await
                {
                    warn!(node = node.name, %error, "Service addresses do not follow");
                    failed = true;
                }
            }
            if failed {
                sleep(RETRY).await;
            } else if changed.changed().await.is_err() {
                return;
            } else {
                sleep(DEBOUNCE).await;
            }
        }
    }

    async fn put_in_force(&self, node: &str, rules: String) -> io::Result<()> {
        if self.are_in_force(node, &rules) {
            return Ok(());
        }
        let (name, text) = (node.to_owned(), rules.clone());
        let applied = tokio::task::spawn_blocking(move || apply(&name, &text)).await;
        applied.map_err(io::Error::other)??;
        self.by_node.lock().insert(node.to_owned(), rules);
        Ok(())
    }
}

fn wanted(objects: &Objects, cluster: &Cluster, node: &str) -> String {
    rules::render(&frontends::frontends(objects, node), [&cluster.service_cidr, &load_balancer_range()])
}

/// Loads rules inside a node's namespace.
fn apply(node: &str, rules: &str) -> io::Result<()> {
    Netns::named(node)?.run(|| nft(rules))?
}

/// One transaction of `nft`; an error carries what it said.
pub(crate) fn nft(rules: &str) -> io::Result<()> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .env("PATH", format!("{path}:{MORE_PATH}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("nft (Debian package nftables): {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // It reads everything before it does anything; when it dies first, its exit code tells.
        let _ = stdin.write_all(rules.as_bytes());
    }
    let began = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if began.elapsed() > DEADLINE => {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "nft did not end"));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(4096).read_to_string(&mut said)?;
    }
    Err(io::Error::other(format!("nft: {}", said.trim())))
}
