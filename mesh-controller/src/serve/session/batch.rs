//! Batches of one stream: differences to the newest snapshot, as fast as the proxy takes them, and what it has applied.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use culvert_api::mesh as pb;
use culvert_api::mesh::controller_message::Kind as Out;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::Status;

use super::{End, HEARTBEAT, Session, told};
use crate::hub::Event;
use crate::serve::difference::{Difference, Held};
use crate::snapshot::{Key, Snapshot};

/// The marks of a stream and what became of them.
#[derive(Debug, Default)]
pub struct Marks {
    sequence: u64,
    /// Sequence and generation of marks that are not applied yet.
    outstanding: VecDeque<(u64, u64)>,
    /// The newest generation that was sent, or needed nothing to be sent.
    generation: u64,
    pub refused: BTreeSet<Key>,
}

impl Marks {
    fn sent(&mut self, generation: u64) -> u64 {
        self.sequence += 1;
        self.outstanding.push_back((self.sequence, generation));
        self.generation = generation;
        self.sequence
    }

    fn needed_nothing(&mut self, generation: u64) -> u64 {
        self.generation = generation;
        self.applied_generation()
    }

    /// The proxy has applied a mark, and so every one before it. Returns the generation it is at.
    pub fn applied(&mut self, sequence: u64) -> u64 {
        while self.outstanding.front().is_some_and(|(mark, _)| *mark <= sequence) {
            self.outstanding.pop_front();
        }
        self.applied_generation()
    }

    fn applied_generation(&self) -> u64 {
        self.outstanding.front().map_or(self.generation, |(_, generation)| generation - 1)
    }
}

pub fn lock(marks: &Mutex<Marks>) -> MutexGuard<'_, Marks> {
    marks.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Sends differences to the newest snapshot. While the proxy takes none, nothing queues up: the next difference is
    /// made from whatever snapshot is the newest then.
    pub(super) async fn write(&self, mut held: Held, marks: &Mutex<Marks>) -> End {
        let mut snapshots = self.hub.snapshots.clone();
        let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut version = String::new();
        loop {
            let snapshot: Arc<Snapshot> = snapshots.borrow_and_update().clone();
            match self.batch(&mut held, &snapshot, marks).await {
                Ok(Some(sent)) => version = sent,
                Ok(None) => {}
                Err(end) => return end,
            }
            loop {
                tokio::select! {
                    changed = snapshots.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return told(Status::unavailable("the controller is ending")),
                    },
                    _ = heartbeat.tick() => {
                        let beat = pb::ControllerHeartbeat { version: version.clone() };
                        if let Err(end) = self.send(Out::Heartbeat(beat)).await {
                            return end;
                        }
                    }
                }
            }
        }
    }

    /// Sends what is missing and a mark, and returns the mark's version; nothing when nothing is missing, except that a
    /// first batch always has a mark.
    async fn batch(
        &self,
        held: &mut Held,
        snapshot: &Snapshot,
        marks: &Mutex<Marks>,
    ) -> Result<Option<String>, End> {
        let begins = !held.has_begun();
        let difference = held.take_difference(snapshot);
        if difference.is_empty() && !begins {
            let generation = lock(marks).needed_nothing(snapshot.generation);
            self.applied(generation).await?;
            return Ok(None);
        }
        self.forget_refused(&difference, marks).await?;
        for page in difference.pages() {
            self.send(Out::Page(page)).await?;
        }
        let version = snapshot.version(&self.node);
        // Noted before it is sent: the answer may be faster than we are.
        let sequence = lock(marks).sent(snapshot.generation);
        self.send(Out::Mark(pb::Mark { sequence, version: version.clone() })).await?;
        self.metrics.batch_sent(difference.len());
        Ok(Some(version))
    }

    /// What was refused and is replaced or removed now is not refused any more.
    async fn forget_refused(&self, difference: &Difference, marks: &Mutex<Marks>) -> Result<(), End> {
        let sent = difference.upserts.iter().map(|sealed| &sealed.key).chain(&difference.removals);
        let settled: Vec<Key> = {
            let mut marks = lock(marks);
            sent.filter(|key| marks.refused.remove(*key)).cloned().collect()
        };
        for key in settled {
            self.tell(Event::Refused { stream: self.id, key, reason: None }).await?;
        }
        Ok(())
    }

    pub(super) async fn applied(&self, generation: u64) -> Result<(), End> {
        self.tell(Event::Applied { stream: self.id, generation }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_at_the_generation_before_its_oldest_open_mark() {
        let mut marks = Marks::default();
        let first = marks.sent(3);
        let second = marks.sent(7);
        assert_eq!(marks.needed_nothing(9), 2);
        assert_eq!(marks.applied(first), 6);
        assert_eq!(marks.applied(second), 9);
        assert_eq!(marks.applied(second), 9);
        assert_eq!(marks.needed_nothing(10), 10);
    }
}
