//! All objects at one moment: immutable, ordered, cheap to clone.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kinds::Kind;
use crate::manifest::ManifestError;
use crate::object::{Object, ObjectKey};

/// (namespace, name); the namespace of cluster-scoped objects is empty.
type Name = (String, String);

/// A set of objects by kind, namespace and name. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    kinds: BTreeMap<Kind, Arc<BTreeMap<Name, Arc<Object>>>>,
    problems: Arc<[ManifestError]>,
}

impl Objects {
    /// The newest objects could not be read; what is here for them is their last good version, if there was one.
    pub fn problems(&self) -> &[ManifestError] {
        &self.problems
    }

    #[must_use]
    pub fn with_problems(mut self, problems: Vec<ManifestError>) -> Self {
        self.problems = problems.into();
        self
    }

    pub fn insert(&mut self, object: Arc<Object>) {
        let name = (object.namespace().to_owned(), object.name().to_owned());
        Arc::make_mut(self.kinds.entry(object.kind).or_default()).insert(name, object);
    }

    pub fn remove(&mut self, key: &ObjectKey) {
        if let Some(objects) = self.kinds.get_mut(&key.kind) {
            let name = (key.namespace.clone().unwrap_or_default(), key.name.clone());
            Arc::make_mut(objects).remove(&name);
        }
    }

    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.find(key.kind, key.namespace.as_deref().unwrap_or_default(), &key.name)
    }

    /// An object by kind, namespace (empty for cluster-scoped kinds) and name.
    pub fn find(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.kinds.get(&kind)?.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// All objects of a kind, by namespace and name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        self.kinds.get(&kind).into_iter().flat_map(|objects| objects.values())
    }

    /// All objects of a kind in one namespace, by name.
    pub fn in_namespace<'a>(
        &'a self,
        kind: Kind,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        let from = (namespace.to_owned(), String::new());
        let objects = self.kinds.get(&kind).into_iter();
        objects
            .flat_map(move |objects| objects.range(from.clone()..))
            .take_while(move |((of, _), _)| of == namespace)
            .map(|(_, object)| object)
    }

    /// Whether the objects of a kind are the very ones of another set. They may be equal without that.
    pub fn shares(&self, kind: Kind, other: &Self) -> bool {
        match (self.kinds.get(&kind), other.kinds.get(&kind)) {
            (Some(here), Some(there)) => Arc::ptr_eq(here, there),
            (None, None) => true,
            _ => false,
        }
    }

    /// Every object, by kind, namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.kinds.values().flat_map(|objects| objects.values())
    }

    pub fn namespace(&self, name: &str) -> Option<&Arc<Object>> {
        self.find(Kind::Namespace, "", name)
    }

    pub fn len(&self) -> usize {
        self.kinds.values().map(|objects| objects.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FromIterator<Object> for Objects {
    fn from_iter<I: IntoIterator<Item = Object>>(objects: I) -> Self {
        let mut all = Objects::default();
        objects.into_iter().for_each(|object| all.insert(Arc::new(object)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_by_kind_namespace_and_name() {
        let key = |namespace: &str, name: &str| ObjectKey::namespaced(Kind::Pod, namespace, name);
        let all: Objects = [("b", "1"), ("a", "2"), ("a", "1"), ("c", "1")]
            .map(|(namespace, name)| Object::new(key(namespace, name)))
            .into_iter()
            .collect();
        let names = |namespace| {
            let pods = all.in_namespace(Kind::Pod, namespace);
            pods.map(|pod| pod.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names("a"), ["1", "2"]);
        assert_eq!(names("aa"), Vec::<String>::new());
        assert_eq!(all.len(), 4);
        let mut fewer = all.clone();
        fewer.remove(&key("b", "1"));
        assert!(fewer.get(&key("b", "1")).is_none() && all.get(&key("b", "1")).is_some());

        let mut more = all.clone();
        more.insert(Arc::new(Object::new(ObjectKey::namespaced(Kind::Service, "a", "1"))));
        assert!(
            all.shares(Kind::Pod, &more)
                && !all.shares(Kind::Service, &more)
                && !all.shares(Kind::Pod, &fewer)
        );
    }
}
