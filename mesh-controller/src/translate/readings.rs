//! What reading objects came to, from one pass to the next: an object never changes, so it is read once.

use std::collections::HashMap;
use std::sync::Arc;

use culvert_objects::Object;

/// Of the objects of the pass before, and of this one as far as it has come.
#[derive(Debug)]
pub struct Readings<T> {
    before: HashMap<usize, Reading<T>>,
    now: HashMap<usize, Reading<T>>,
}

/// Holds the object, so that no other can have its address meanwhile.
#[derive(Debug)]
struct Reading<T> {
    object: Arc<Object>,
    /// None where it cannot be read.
    value: Option<Arc<T>>,
}

impl<T> Default for Readings<T> {
    fn default() -> Self {
        Self { before: HashMap::new(), now: HashMap::new() }
    }
}

impl<T> Readings<T> {
    /// What an object says; `read` is asked only where the pass before did not have the object. It must depend on nothing else.
    pub fn of(&mut self, object: &Arc<Object>, read: impl FnOnce(&Object) -> Option<T>) -> Option<Arc<T>> {
        let address = Arc::as_ptr(object).addr();
        let known = self.before.remove(&address);
        let reading =
            known.unwrap_or_else(|| Reading { object: object.clone(), value: read(object).map(Arc::new) });
        debug_assert!(Arc::ptr_eq(&reading.object, object));
        let value = reading.value.clone();
        self.now.insert(address, reading);
        value
    }

    /// Ends a pass: what it did not ask for is forgotten.
    pub fn end_pass(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_objects::{Kind, ObjectKey};

    #[test]
    fn an_object_is_read_once_while_every_pass_has_it() {
        let object = |name: &str| Arc::new(Object::new(ObjectKey::namespaced(Kind::Pod, "shop", name)));
        let (a, b) = (object("a"), object("b"));
        let mut readings = Readings::default();
        let mut pass = |objects: &[&Arc<Object>]| {
            let mut read = Vec::new();
            for object in objects {
                let said = readings.of(object, |object| {
                    read.push(object.name().to_owned());
                    Some(object.name().to_owned())
                });
                assert_eq!(said.as_deref().map(String::as_str), Some(object.name()));
            }
            readings.end_pass();
            read
        };
        assert_eq!(pass(&[&a, &b]), ["a", "b"]);
        assert_eq!(pass(&[&a]), [""; 0]);
        assert_eq!(pass(&[&a, &b, &object("a")]), ["b", "a"]);
    }
}
