//! What a proxy lacks: the difference between what it holds and a snapshot, in pages.

use std::collections::HashMap;
use std::sync::Arc;

use culvert_api::mesh as pb;
use prost::Message as _;

use crate::snapshot::{Key, Sealed, Snapshot};

/// Encoded size that a page stays below, with room for its own framing under 1 MiB.
const PAGE: usize = 1_000_000;

/// What one proxy holds, as far as was told to it or by it.
pub struct Held {
    node: Arc<str>,
    versions: HashMap<Key, Arc<str>>,
    /// The generation up to which differences were taken.
    generation: Option<u64>,
}

/// Upserts in the order of batches, removals in reverse.
#[derive(Debug, Default)]
pub struct Difference {
    pub upserts: Vec<Arc<Sealed>>,
    pub removals: Vec<Key>,
}

impl Held {
    pub fn new(node: String) -> Self {
        Self { node: node.into(), versions: HashMap::new(), generation: None }
    }

    /// The proxy says that it holds this.
    pub fn hold(&mut self, key: Key, version: &str) {
        self.versions.insert(key, version.into());
    }

    pub fn len(&self) -> usize {
        self.versions.len()
    }

    /// Whether a difference was taken already.
    pub fn has_begun(&self) -> bool {
        self.generation.is_some()
    }

    /// What must be sent to hold the snapshot; held from then on.
    pub fn take_difference(&mut self, snapshot: &Snapshot) -> Difference {
        let follows = self.generation.is_some_and(|generation| generation + 1 == snapshot.generation);
        let mut difference = Difference::default();
        if follows {
            for key in snapshot.changed() {
                match snapshot.get(&self.node, key) {
                    Some(sealed) => self.upsert(sealed, &mut difference),
                    None if self.versions.contains_key(key) => difference.removals.push(key.clone()),
                    None => {}
                }
            }
        } else {
            let node = self.node.clone();
            for sealed in snapshot.of_node(&node) {
                self.upsert(sealed, &mut difference);
            }
            let gone = self.versions.keys().filter(|key| snapshot.get(&self.node, key).is_none());
            difference.removals.extend(gone.cloned());
        }
        for key in &difference.removals {
            self.versions.remove(key);
        }
        self.generation = Some(snapshot.generation);
        difference.upserts.sort_by(|a, b| a.key.cmp(&b.key));
        difference.removals.sort_by(|a, b| b.cmp(a));
        difference
    }

    fn upsert(&mut self, sealed: &Arc<Sealed>, difference: &mut Difference) {
        if self.versions.get(&sealed.key) != Some(&sealed.version) {
            self.versions.insert(sealed.key.clone(), sealed.version.clone());
            difference.upserts.push(sealed.clone());
        }
    }
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }

    pub fn len(&self) -> usize {
        self.upserts.len() + self.removals.len()
    }

    /// Pages below 1 MiB each, upserts before removals.
    pub fn pages(&self) -> Vec<pb::Page> {
        let mut pages: Vec<pb::Page> = Vec::new();
        let mut room = 0;
        let mut fit = |pages: &mut Vec<pb::Page>, size: usize| {
            // Tag and length of the element itself.
            let size = size + 8;
            if size > room || pages.is_empty() {
                pages.push(pb::Page::default());
                room = PAGE;
            }
            room = room.saturating_sub(size);
        };
        for sealed in &self.upserts {
            fit(&mut pages, sealed.size);
            if let Some(page) = pages.last_mut() {
                page.upserts.push(sealed.resource.clone());
            }
        }
        for key in self.removals.iter().map(Key::proto) {
            fit(&mut pages, key.encoded_len());
            if let Some(page) = pages.last_mut() {
                page.removals.push(key);
            }
        }
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Builder;
    use pb::resource::Body;

    fn share(builder: &mut Builder, name: &str, namespace: &str) {
        let key = Key::service(name);
        let service = pb::Service { name: name.into(), namespace: namespace.into(), ..Default::default() };
        builder.share(&key, Some(Arc::new(Sealed::new(key.clone(), Body::Service(service)))));
    }

    fn names(difference: &Difference) -> (Vec<&str>, Vec<&str>) {
        let upserts = difference.upserts.iter().map(|sealed| sealed.key.name());
        (upserts.collect(), difference.removals.iter().map(Key::name).collect())
    }

    #[test]
    fn only_differences_are_sent() {
        let mut builder = Builder::default();
        ["b", "a"].iter().for_each(|name| share(&mut builder, name, "1"));
        let first = builder.publish().unwrap();
        let mut held = Held::new("n".into());
        held.hold(Key::service("a"), &first.get("n", &Key::service("a")).unwrap().version);
        held.hold(Key::service("x"), "1");
        held.hold(Key::service("y"), "1");
        assert_eq!(names(&held.take_difference(&first)), (vec!["b"], vec!["y", "x"]));
        share(&mut builder, "c", "1");
        builder.share(&Key::service("b"), None);
        let second = builder.publish().unwrap();
        assert_eq!(names(&held.take_difference(&second)), (vec!["c"], vec!["b"]));
        assert!(held.take_difference(&second).is_empty());
        share(&mut builder, "a", "2");
        builder.publish().unwrap();
        share(&mut builder, "c", "2");
        let fourth = builder.publish().unwrap();
        assert_eq!(names(&held.take_difference(&fourth)), (vec!["a", "c"], vec![]));
    }

    #[test]
    fn pages_stay_below_a_mebibyte() {
        let mut builder = Builder::default();
        (0..3000).for_each(|n| share(&mut builder, &format!("{n:04}"), &"x".repeat(1000)));
        let mut held = Held::new("n".into());
        (0..50_000).for_each(|n| held.hold(Key::service(&format!("gone-{n}")), "1"));
        let pages = held.take_difference(&builder.publish().unwrap()).pages();
        assert!(pages.iter().all(|page| page.encoded_len() < 1 << 20), "{}", pages.len());
        assert_eq!(pages.iter().map(|page| page.upserts.len()).sum::<usize>(), 3000);
        assert_eq!(pages.iter().map(|page| page.removals.len()).sum::<usize>(), 50_000);
        assert!((4..=6).contains(&pages.len()));
    }
}
