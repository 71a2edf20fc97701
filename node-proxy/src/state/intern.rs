//! Equal values held once.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// Values that are equal are held once.
#[derive(Debug)]
pub(super) struct Interner<T: ?Sized + Eq + Hash> {
    held: HashSet<Arc<T>>,
    prune_at: usize,
}

impl<T: ?Sized + Eq + Hash> Default for Interner<T> {
    fn default() -> Self {
        Self { held: HashSet::new(), prune_at: 1024 }
    }
}

impl<T: ?Sized + Eq + Hash> Interner<T> {
    pub fn share(&mut self, value: &T) -> Arc<T>
    where
        T: ToOwned,
        Arc<T>: From<T::Owned>,
    {
        if let Some(held) = self.held.get(value) {
            return held.clone();
        }
        let shared: Arc<T> = Arc::from(value.to_owned());
        self.held.insert(shared.clone());
        shared
    }

    /// Does nothing until the number of values has doubled since the last time.
    pub fn prune(&mut self) {
        if self.held.len() >= self.prune_at {
            self.held.retain(|value| Arc::strong_count(value) > 1);
            self.prune_at = (self.held.len() * 2).max(1024);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_unused_ones_are_let_go() {
        let mut texts = Interner::<str>::default();
        let kept = texts.share("kept");
        assert!(Arc::ptr_eq(&kept, &texts.share("kept")));
        for number in 0..2000 {
            texts.share(&format!("text {number}"));
        }
        texts.prune();
        assert_eq!(texts.held.len(), 1);
    }
}
