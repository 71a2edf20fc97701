//! What every node may see at one moment: immutable, with versions that are content hashes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use culvert_api::mesh as pb;
use pb::resource::Body;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

/// Names a resource. Ordered as batches are: settings, workloads, services, listeners, routes, namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    kind: i32,
    name: Arc<str>,
}

impl Key {
    /// The settings of the mesh.
    pub fn mesh() -> Self {
        Self::new(pb::ResourceType::MeshSettings, "mesh")
    }

    pub fn workload(uid: &str) -> Self {
        Self::new(pb::ResourceType::Workload, uid)
    }

    /// `name` as `namespace/name`.
    pub fn service(name: &str) -> Self {
        Self::new(pb::ResourceType::Service, name)
    }

    /// `name` as `GATEWAY_NAMESPACE/GATEWAY/LISTENER`.
    pub fn listener(name: &str) -> Self {
        Self::new(pb::ResourceType::Listener, name)
    }

    /// `name` as `KIND/NAMESPACE/NAME@PARENT`.
    pub fn route(name: &str) -> Self {
        Self::new(pb::ResourceType::Route, name)
    }

    pub fn namespace(name: &str) -> Self {
        Self::new(pb::ResourceType::Namespace, name)
    }

    fn new(kind: pb::ResourceType, name: &str) -> Self {
        Self { kind: kind.into(), name: name.into() }
    }

    pub fn proto(&self) -> pb::ResourceKey {
        pb::ResourceKey { r#type: self.kind, name: self.name.to_string() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name, if it names a route.
    pub fn route_name(&self) -> Option<&str> {
        (self.kind == i32::from(pb::ResourceType::Route)).then_some(&self.name)
    }

    /// The uid, if it names a workload.
    pub fn workload_uid(&self) -> Option<&str> {
        (self.kind == i32::from(pb::ResourceType::Workload)).then_some(&self.name)
    }
}

impl From<&Key> for pb::ResourceKey {
    fn from(key: &Key) -> Self {
        Self { r#type: key.kind, name: key.name.to_string() }
    }
}

impl From<pb::ResourceKey> for Key {
    fn from(key: pb::ResourceKey) -> Self {
        Self { kind: key.r#type, name: key.name.into() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = pb::ResourceType::try_from(self.kind).map_or("?", |kind| kind.as_str_name());
        write!(f, "{} {}", kind.trim_start_matches("RESOURCE_TYPE_"), self.name)
    }
}

/// Starts the version of a workload that speaks HBONE, so that a proxy's list of what it holds proves what it was told
/// last, whatever else of the workload has changed since.
const HBONE_VERSION: &str = "hbone-";

/// Whether a version is that of a workload which peers were told speaks HBONE.
pub fn is_hbone_version(version: &str) -> bool {
    version.starts_with(HBONE_VERSION)
}

/// A resource with its version.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub key: Key,
    pub version: Arc<str>,
    pub resource: pb::Resource,
    /// Encoded, in bytes.
    pub size: usize,
    sum: Sum,
}

impl Sealed {
    pub fn new(key: Key, body: Body) -> Self {
        let mut resource = pb::Resource { key: Some(key.proto()), version: String::new(), body: Some(body) };
        let digest = Sha256::digest(resource.encode_to_vec());
        let hbone = matches!(&resource.body, Some(Body::Workload(at)) if at.tunnel() == pb::Tunnel::Hbone);
        // Half of SHA-256 is plenty against chance, and versions are most of what is kept per stream.
        let version = format!("{}{}", if hbone { HBONE_VERSION } else { "" }, hex(&digest[..16]));
        resource.version.clone_from(&version);
        let size = resource.encoded_len();
        let mut hash = Sha256::new();
        hash.update(key.kind.to_be_bytes());
        hash.update(key.name.as_bytes());
        hash.update([0]);
        hash.update(version.as_bytes());
        let sum = Sum::of(&hash.finalize());
        Self { key, version: version.into(), resource, size, sum }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A hash of a set that does not depend on order and follows additions and removals: the sum of its elements' hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum([u64; 4]);

impl Sum {
    fn of(digest: &[u8]) -> Self {
        let mut lanes = [0; 4];
        for (lane, bytes) in lanes.iter_mut().zip(digest.chunks_exact(8)) {
            *lane = bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte));
        }
        Self(lanes)
    }

    fn add(&mut self, other: Sum) {
        self.0.iter_mut().zip(other.0).for_each(|(lane, other)| *lane = lane.wrapping_add(other));
    }

    fn subtract(&mut self, other: Sum) {
        self.0.iter_mut().zip(other.0).for_each(|(lane, other)| *lane = lane.wrapping_sub(other));
    }
}

type Resources = BTreeMap<Key, Arc<Sealed>>;

/// All resources: those that every node sees, and per node those that take their place or come on top.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts up by one from each snapshot to the next.
    pub generation: u64,
    shared: Arc<Resources>,
    shared_sum: Sum,
    own: BTreeMap<String, Arc<Resources>>,
    /// What differs, for some node, from the snapshot before.
    changed: Vec<Key>,
}

impl Snapshot {
    /// What a node sees under a key.
    pub fn get(&self, node: &str, key: &Key) -> Option<&Arc<Sealed>> {
        self.own.get(node).and_then(|own| own.get(key)).or_else(|| self.shared.get(key))
    }

    /// Everything a node sees, in no order.
    pub fn of_node(&self, node: &str) -> impl Iterator<Item = &Arc<Sealed>> {
        let own = self.own.get(node);
        let shared =
            self.shared.iter().filter(move |(key, _)| !own.is_some_and(|own| own.contains_key(*key)));
        own.into_iter().flat_map(|own| own.values()).chain(shared.map(|(_, sealed)| sealed))
    }

    /// What may differ from the snapshot of the generation before.
    pub fn changed(&self) -> &[Key] {
        &self.changed
    }

    /// The content hash over everything a node sees.
    pub fn version(&self, node: &str) -> String {
        let mut sum = self.shared_sum;
        for (key, own) in self.own.get(node).into_iter().flat_map(|own| own.iter()) {
            sum.add(own.sum);
            if let Some(hidden) = self.shared.get(key) {
                sum.subtract(hidden.sum);
            }
        }
        hex(&sum.0.map(u64::to_be_bytes).concat())
    }
}

/// Collects changes until the next snapshot.
#[derive(Debug, Default)]
pub struct Builder {
    next: Snapshot,
}

impl Builder {
    /// Puts a resource for every node in place, or takes it away.
    pub fn share(&mut self, key: &Key, sealed: Option<Arc<Sealed>>) {
        let before = match sealed {
            Some(sealed) => {
                self.next.shared_sum.add(sealed.sum);
                Arc::make_mut(&mut self.next.shared).insert(key.clone(), sealed)
            }
            None => Arc::make_mut(&mut self.next.shared).remove(key),
        };
        if let Some(before) = before {
            self.next.shared_sum.subtract(before.sum);
        }
        self.next.changed.push(key.clone());
    }

    /// Puts a resource for one node in place, or takes it away.
    pub fn give(&mut self, node: &str, key: &Key, sealed: Option<Arc<Sealed>>) {
        match sealed {
            Some(sealed) => {
                let own = self.next.own.entry(node.to_owned()).or_default();
                Arc::make_mut(own).insert(key.clone(), sealed);
            }
            None => {
                if let Some(own) = self.next.own.get_mut(node) {
                    Arc::make_mut(own).remove(key);
                    if own.is_empty() {
                        self.next.own.remove(node);
                    }
                }
            }
        }
        self.next.changed.push(key.clone());
    }

    /// The next snapshot; None when nothing has changed since the last.
    pub fn publish(&mut self) -> Option<Snapshot> {
        if self.next.changed.is_empty() && self.next.generation > 0 {
            return None;
        }
        self.next.generation += 1;
        self.next.changed.sort();
        self.next.changed.dedup();
        let snapshot = self.next.clone();
        self.next.changed.clear();
        Some(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, namespace: &str) -> (Key, Arc<Sealed>) {
        let service = pb::Service { name: name.into(), namespace: namespace.into(), ..Default::default() };
        let key = Key::service(name);
        (key.clone(), Arc::new(Sealed::new(key, Body::Service(service))))
    }

    #[test]
    fn versions_tell_content_and_not_history() {
        let (a, one) = service("a", "1");
        let (b, two) = service("b", "1");
        let (_, other) = service("a", "2");
        let mut builder = Builder::default();
        builder.share(&a, Some(other));
        builder.share(&b, Some(two.clone()));
        builder.share(&a, Some(one.clone()));
        let first = builder.publish().unwrap();
        let mut again = Builder::default();
        again.share(&b, Some(two.clone()));
        again.share(&a, Some(one.clone()));
        assert_eq!(first.version("n"), again.publish().unwrap().version("n"));
        builder.give("n", &a, Some(one.clone()));
        let same = builder.publish().unwrap();
        assert_eq!(same.version("n"), first.version("n"));
        builder.share(&a, None);
        let own_only = builder.publish().unwrap();
        assert_eq!(own_only.version("n"), first.version("n"));
        assert_ne!(own_only.version("m"), first.version("m"));
        builder.give("n", &a, None);
        builder.share(&b, None);
        let empty = builder.publish().unwrap();
        assert_eq!(empty.version("n"), Snapshot::default().version("n"));
        assert!(builder.publish().is_none());
    }

    #[test]
    fn a_version_tells_a_workload_that_speaks_hbone() {
        let sealed = |tunnel: pb::Tunnel| {
            let workload = pb::Workload { tunnel: tunnel.into(), ..Default::default() };
            Sealed::new(Key::workload("w"), Body::Workload(workload))
        };
        assert!(is_hbone_version(&sealed(pb::Tunnel::Hbone).version));
        assert!(!is_hbone_version(&sealed(pb::Tunnel::None).version));
    }
}
