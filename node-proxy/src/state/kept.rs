//! The last complete state, on the node's disk: a proxy that restarts while the controller is away goes on with it.
//!
//! The file: [`MAGIC`], the SHA-256 of everything after it, then the version, the node and the resources in the order
//! in which they claimed their addresses, each as length (32 bits, little endian) and bytes.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use culvert_api::mesh as wire;
use culvert_identity::files::{self, Readers};
use prost::Message;
use prost::bytes::Bytes;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::resources::{HeldResource, ResourceId};
use super::snapshot::Map;

/// Format and its version. Another one is not read.
const MAGIC: &[u8] = b"culvert kept state 1\n";
const DIGEST: usize = 32;
const FILE: &str = "mesh-state";
/// The file is written at most this often, and at most 5 % of the time. Short, because whoever ends without warning goes
/// on with what the file says, and a peer that was enrolled since would be spoken to in plaintext.
const DEBOUNCE: Duration = Duration::from_millis(100);
const WRITE_SHARE: u32 = 20;

/// A complete state.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    pub version: String,
    pub node: String,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    /// As it is held; sharing it costs nothing.
    Held(Map<ResourceId, HeldResource>, Map<ResourceId, HeldResource>),
    /// As it was read.
    Read(Vec<wire::Resource>),
}

impl Default for Content {
    fn default() -> Self {
        Self::Read(Vec::new())
    }
}

/// Why a kept state cannot be used.
#[derive(Debug, Error)]
pub enum KeptError {
    #[error("{path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path} is not a kept state of this version")]
    OtherFormat { path: PathBuf },
    #[error("{path} is damaged: its checksum is wrong")]
    Checksum { path: PathBuf },
    #[error("{path} is damaged: {what}")]
    Damaged { path: PathBuf, what: String },
}

impl Kept {
    /// `unusable` are resources that were refused, but change what is done.
    pub(super) fn new(
        version: &str,
        node: &str,
        held: Map<ResourceId, HeldResource>,
        unusable: Map<ResourceId, HeldResource>,
    ) -> Self {
        Self { version: version.to_owned(), node: node.to_owned(), content: Content::Held(held, unusable) }
    }

    /// The resources, in the order in which they claimed their addresses.
    pub(super) fn resources(&self) -> Vec<wire::Resource> {
        match &self.content {
            Content::Read(resources) => resources.clone(),
            Content::Held(..) => {
                self.encoded().iter().filter_map(|bytes| wire::Resource::decode(bytes.clone()).ok()).collect()
            }
        }
    }

    fn encoded(&self) -> Vec<Bytes> {
        match &self.content {
            Content::Read(resources) => {
                resources.iter().map(|resource| Bytes::from(resource.encode_to_vec())).collect()
            }
            Content::Held(held, unusable) => {
                let mut all: Vec<&HeldResource> = held.values().chain(unusable.values()).collect();
                all.sort_by_key(|resource| resource.claimed);
                all.into_iter().map(|resource| resource.encoded.clone()).collect()
            }
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        put(&mut body, self.version.as_bytes());
        put(&mut body, self.node.as_bytes());
        for resource in self.encoded() {
            put(&mut body, &resource);
        }
        [MAGIC, &Sha256::digest(&body), &body].concat()
    }

    fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, KeptError> {
        let path = || path.to_owned();
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| KeptError::OtherFormat { path: path() })?;
        let (digest, mut body) =
            rest.split_at_checked(DIGEST).ok_or_else(|| KeptError::Checksum { path: path() })?;
        if Sha256::digest(body).as_slice() != digest {
            return Err(KeptError::Checksum { path: path() });
        }
        let damaged = |what: &str| KeptError::Damaged { path: path(), what: what.to_owned() };
        let mut text = |what| {
            let bytes = take(&mut body).ok_or_else(|| damaged(what))?;
            String::from_utf8(bytes.to_vec()).map_err(|_| damaged(what))
        };
        let (version, node) = (text("no version")?, text("no node")?);
        let mut resources = Vec::new();
        while !body.is_empty() {
            let bytes = take(&mut body).ok_or_else(|| damaged("a resource is cut"))?;
            resources.push(wire::Resource::decode(bytes).map_err(|error| damaged(&error.to_string()))?);
        }
        Ok(Self { version, node, content: Content::Read(resources) })
    }
}

fn put(body: &mut Vec<u8>, bytes: &[u8]) {
    // A resource is part of a page of at most 1 MiB.
    body.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    body.extend(bytes);
}

fn take<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = body.split_first_chunk::<4>()?;
    let (bytes, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    *body = rest;
    Some(bytes)
}

/// Reads the state that an earlier process kept; `None` when there is none.
///
/// # Errors
/// When there is one that cannot be used.
pub fn load(directory: &Path) -> Result<Option<Kept>, KeptError> {
    let path = directory.join(FILE);
    match std::fs::read(&path) {
        Ok(bytes) => Kept::from_bytes(&path, &bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KeptError::Read { path, error }),
    }
}

/// Writes the newest state to disk, not more often than it is worth.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    newest: watch::Receiver<Kept>,
}

impl Keeper {
    pub fn new(directory: &Path, newest: watch::Receiver<Kept>) -> Self {
        Self { path: directory.join(FILE), newest }
    }

    /// Until cancelled; then what is not on disk yet is written.
    pub async fn run(mut self, cancel: CancellationToken) {
        while let Some(Ok(())) = cancel.run_until_cancelled(self.newest.changed()).await {
            let started = Instant::now();
            self.write().await;
            let pause = DEBOUNCE.max(started.elapsed() * WRITE_SHARE);
            if cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
        }
        if self.newest.has_changed().unwrap_or(false) {
            self.write().await;
        }
    }

    async fn write(&mut self) {
        let kept = self.newest.borrow_and_update().clone();
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || {
            files::replace(&path, &kept.to_bytes(), Readers::Owner).map(|()| kept.version)
        })
        .await;
        match written {
            Ok(Ok(version)) => tracing::debug!(version, "state kept on disk"),
            Ok(Err(error)) => tracing::warn!(
                %error,
                "the state is not kept: after a restart without a controller nothing would be served; \
                 check space and permissions of --state-dir"
            ),
            Err(error) => tracing::warn!(%error, "the state is not kept: writing it was cut short"),
        }
    }
}

#[cfg(test)]
mod tests;
