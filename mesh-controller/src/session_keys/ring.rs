//! Session keys over time. Pure but for the dice.

use culvert_api::mesh as pb;
use serde::{Deserialize, Serialize};
use thiserror::Error;

const HOUR: u64 = 3600;
/// A key seals for so long, in seconds.
const SEALS_FOR: u64 = 30 * 24 * HOUR;
/// And is announced so long before.
const ANNOUNCED_FOR: u64 = HOUR;
/// Keys that open.
const KEPT: usize = 3;
const BYTES: usize = 32;

/// Why a ring is none.
#[derive(Debug, Error)]
pub enum RingError {
    #[error("damaged ({0})")]
    NotARing(serde_json::Error),
    #[error("damaged (no key)")]
    Empty,
    #[error("damaged (two keys are called {0:08x})")]
    Repeated(u32),
}

/// The keys that are kept, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    keys: Vec<Key>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    id: u32,
    secret: [u8; BYTES],
    /// Seconds since the epoch.
    made: u64,
}

/// Never the secret.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x} made {}", self.id, self.made)
    }
}

impl Ring {
    /// # Errors
    /// When somebody has damaged it.
    pub fn parse(text: &[u8]) -> Result<Self, RingError> {
        let ring: Self = serde_json::from_slice(text).map_err(RingError::NotARing)?;
        if ring.keys.is_empty() {
            return Err(RingError::Empty);
        }
        let repeats = |(index, key): (usize, &Key)| ring.keys[..index].iter().any(|other| other.id == key.id);
        match ring.keys.iter().enumerate().find(|(index, key)| repeats((*index, *key))) {
            Some((_, key)) => Err(RingError::Repeated(key.id)),
            None => Ok(ring),
        }
    }

    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("numbers and lists of them are JSON")
    }

    /// The ring that takes this one's place, when it is time for another key.
    pub fn due(&self, now: u64) -> Option<Self> {
        let newest = self.keys.last();
        if newest.is_some_and(|key| now.saturating_sub(key.made) < SEALS_FOR) {
            return None;
        }
        let id = std::iter::repeat_with(rand::random).find(|id| self.keys.iter().all(|key| key.id != *id))?;
        let mut keys = self.keys.clone();
        keys.push(Key { id, secret: rand::random(), made: now });
        keys.drain(..keys.len().saturating_sub(KEPT));
        Some(Self { keys })
    }

    /// What node proxies are told: the key that seals, then those that open.
    pub fn in_force(&self, now: u64) -> Vec<pb::SessionKey> {
        let is_known = |key: &Key| now.saturating_sub(key.made) >= ANNOUNCED_FOR;
        let sealing = self.keys.iter().rposition(is_known).unwrap_or(0);
        let told = |key: &Key| pb::SessionKey { id: key.id, secret: key.secret.to_vec() };
        let mut told: Vec<_> = self.keys.iter().map(told).collect();
        if !told.is_empty() {
            told[..=sealing].rotate_right(1);
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_announced_seals_and_opens_for_two_others() {
        let mut now = 1_800_000_000;
        let first = Ring::default().due(now).unwrap();
        assert_eq!(first.in_force(now).len(), 1, "the only one seals at once");
        let mut ring = first.clone();
        let mut sealing = first.in_force(now)[0].id;
        let mut rotations = 0;
        for _ in 0..24 * 100 {
            now += HOUR;
            let before = ring.in_force(now)[0].id;
            if let Some(next) = ring.due(now) {
                assert_eq!(next.in_force(now)[0].id, before, "announced first");
                assert!(next.in_force(now).len() <= KEPT);
                ring = next;
                rotations += 1;
            }
            let told = ring.in_force(now);
            assert!(told.iter().any(|key| key.id == sealing), "what sealed an hour ago opens");
            sealing = told[0].id;
        }
        assert_eq!(rotations, 3, "in a hundred days");
        assert!(ring.in_force(now).iter().all(|key| key.id != first.in_force(now)[0].id), "three are kept");
    }

    #[test]
    fn a_ring_is_read_as_it_was_written_and_nothing_else_is_one() {
        let ring = Ring::default().due(1).unwrap();
        assert_eq!(Ring::parse(ring.text().as_bytes()).unwrap(), ring);
        assert!(!format!("{ring:?}").contains("secret"));
        let twice = Ring { keys: [&ring.keys[..], &ring.keys[..]].concat() };
        for damaged in
            ["", "{}", r#"{"keys": []}"#, r#"{"keys": [{"id": 1, "secret": [1], "made": 0}]}"#, &twice.text()]
        {
            assert!(Ring::parse(damaged.as_bytes()).is_err(), "{damaged}");
        }
    }
}
