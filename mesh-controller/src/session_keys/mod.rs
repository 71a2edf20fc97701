//! The keys that node proxies seal sessions with (GEP-1619): made here, the same for all of them, for a client's next request
//! may come from another node. Kept in a Secret, in a file, or for as long as the process lives.
//!
//! A key opens from the moment it is made and seals an hour later, when every node proxy has it; the two before it go on opening,
//! so that a session lives on over a rotation when its client comes once in a month.

mod file;
mod ring;
mod secret;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use culvert_api::mesh as pb;
use culvert_kubernetes::Client;
use thiserror::Error;
use tokio::sync::watch;

use ring::Ring;

pub use secret::SECRET;

/// How often what is kept is looked at.
const LOOK: Duration = Duration::from_secs(30);

/// The keys in force, the one that seals first; empty: there are none (yet).
pub type SessionKeys = watch::Receiver<Vec<pb::SessionKey>>;

/// Where keys are kept.
pub enum Store {
    /// Nowhere: they live as long as the process.
    Process,
    /// In a file of the process's own.
    File(PathBuf),
    /// In the Secret that all replicas share.
    Cluster(Client),
}

/// Why keys cannot be kept.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error(transparent)]
    File(#[from] io::Error),
    #[error(transparent)]
    Secret(#[from] secret::SecretError),
}

/// The keys as they are kept, looked at once before this returns and from time to time after it. What was in force stays so
/// while nothing can be read.
pub async fn follow(store: Store) -> SessionKeys {
    let mut follower = Follower { store, ring: Ring::default(), said: String::new() };
    let (sender, receiver) = watch::channel(follower.look(now()).await);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = sender.closed() => return,
            }
            let keys = follower.look(now()).await;
            sender.send_if_modified(|current| {
                let differs = *current != keys;
                *current = keys;
                differs
            });
        }
    });
    receiver
}

struct Follower {
    store: Store,
    ring: Ring,
    /// The last failure, which is said once.
    said: String,
}

impl Follower {
    async fn look(&mut self, now: u64) -> Vec<pb::SessionKey> {
        match self.store.look(&self.ring, now).await {
            Ok(found) => {
                self.ring = found;
                self.said.clear();
            }
            Err(error) => self.complain(error.to_string()),
        }
        self.ring.in_force(now)
    }

    fn complain(&mut self, error: String) {
        if error != self.said {
            let effect = "those before stay in force; without any, rules that keep sessions answer 500";
            tracing::error!("session keys: {error}; {effect}");
            self.said = error;
        }
    }
}

impl Store {
    async fn look(&self, known: &Ring, now: u64) -> Result<Ring, StoreError> {
        Ok(match self {
            Self::Process => known.due(now).unwrap_or_else(|| known.clone()),
            Self::File(path) => file::look(path, now)?,
            Self::Cluster(client) => secret::look(client, now).await?,
        })
    }
}

/// Seconds since the epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
