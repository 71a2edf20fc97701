//! Which addresses of a node's pod range are taken.

use std::collections::BTreeSet;

/// First place for a pod: 0 is the network, 1 the gateway.
const FIRST: u8 = 2;
/// Last place: 255 would be the broadcast address.
const LAST: u8 = 254;

/// Places of pods in a node's ranges, the same in both families. The lowest free place is taken first, so that an
/// address is used again as soon as it is free.
#[derive(Debug, Default)]
pub struct Pool {
    taken: BTreeSet<u8>,
}

impl Pool {
    /// Takes the lowest free place. None when all are taken.
    pub fn take(&mut self) -> Option<u8> {
        let place = (FIRST..=LAST).find(|place| !self.taken.contains(place))?;
        self.taken.insert(place);
        Some(place)
    }

    /// Gives a place back.
    pub fn give_back(&mut self, place: u8) {
        self.taken.remove(&place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_place_is_taken_next() {
        let mut pool = Pool::default();
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(2), Some(3), Some(4)]);
        pool.give_back(3);
        assert_eq!([pool.take(), pool.take()], [Some(3), Some(5)]);
    }

    #[test]
    fn a_full_node_says_so() {
        let mut pool = Pool::default();
        assert_eq!(std::iter::from_fn(|| pool.take()).count(), 253);
        assert_eq!(pool.take(), None);
    }
}
