//! Service addresses for everybody who is not captured by the mesh: rules in every node's namespace, translated from
//! the objects and replaced when they change.

mod frontend;
mod frontends;
pub mod outside;
mod table;
mod transactions;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_objects::Objects;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::sandbox::cluster::{Cluster, load_balancer_range};
use crate::sandbox::namespaces::Netns;
use crate::sandbox::store::Store;
use table::Table;

/// How long changes are gathered before rules follow.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Before rules that were refused are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// For one run of `nft`.
const DEADLINE: Duration = Duration::from_secs(20);
/// Where `nft` is on systems that leave it out of an ordinary user's search path.
const MORE_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// The Service addresses that are in force on every node. Cheap to clone.
#[derive(Clone, Default)]
pub struct ServiceRules {
    by_node: Arc<Mutex<BTreeMap<String, Arc<Table>>>>,
}

impl ServiceRules {
    /// Nodes whose rules are not yet those that the objects ask for.
    #[must_use]
    pub fn behind<'a>(&self, objects: &Objects, cluster: &'a Cluster) -> Vec<&'a str> {
        let in_force = self.by_node.lock().clone();
        let is_behind =
            |node: &&str| in_force.get(*node).is_none_or(|table| **table != wanted(objects, node));
        cluster.nodes.iter().map(|node| node.name.as_str()).filter(is_behind).collect()
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
            let nodes = cluster
                .nodes
                .iter()
                .map(|node| self.put_in_force(&node.name, wanted(&objects, &node.name), cluster));
            let failed = join_all(nodes).await.contains(&Outcome::Failed);
            if failed {
                sleep(RETRY).await;
            } else if changed.changed().await.is_err() {
                return;
            } else {
                sleep(DEBOUNCE).await;
            }
        }
    }

    /// What a failure left behind is not known: the next attempt begins with an empty table.
    async fn put_in_force(&self, node: &str, wanted: Table, cluster: &Cluster) -> Outcome {
        let (wanted, in_force) = (Arc::new(wanted), self.by_node.lock().get(node).cloned());
        let transactions = match &in_force {
            Some(table) => transactions::changes(table, &wanted),
            None => {
                let frame = transactions::frame([&cluster.service_cidr, &load_balancer_range()]);
                [vec![frame], transactions::changes(&Table::default(), &wanted)].concat()
            }
        };
        let name = node.to_owned();
        let applied = spawn_blocking(move || apply(&name, &transactions)).await;
        match applied.map_err(io::Error::other).flatten() {
            Ok(()) => {
                self.by_node.lock().insert(node.to_owned(), wanted);
                Outcome::InForce
            }
            Err(error) => {
                warn!(node, %error, "Service addresses do not follow");
                self.by_node.lock().remove(node);
                Outcome::Failed
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    InForce,
    Failed,
}

fn wanted(objects: &Objects, node: &str) -> Table {
    Table::new(&frontends::frontends(objects, node))
}

/// Loads transactions, one after the other, inside a node's namespace.
fn apply(node: &str, transactions: &[String]) -> io::Result<()> {
    if transactions.is_empty() {
        return Ok(());
    }
    Netns::named(node)?.run(|| transactions.iter().try_for_each(|transaction| nft(transaction)))?
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
