//! Who is enrolled, and what peers are told of it.
//!
//! Enrolling: a pod is wanted, its own node is told so; when that node reports it enrolled, peers are told HBONE. From
//! then on peers are told HBONE for as long as the pod is wanted and its node does not say that it no longer captures
//! it: a lost stream, a node proxy that waits for a certificate again, or a restarted controller never turn traffic
//! between enrolled pods into plaintext.
//!
//! A controller that has just started does not know yet who was enrolled. Until a pod's own node has spoken of it, or
//! a minute (`SPOKEN_OF_WITHIN`) has passed, peers are told that it is undecided, and hold their connections. So it is for as long as
//! another replica, whose node proxies may have reported it enrolled, cannot be followed ([`Sight`]).
//!
//! Leaving: peers are told plaintext and the own node LEAVING; when every connected node proxy has applied that, or
//! 10 s have passed, the own node is told NOT_ENROLLED.

mod entry;

use std::collections::{BTreeMap, BTreeSet};

use culvert_api::mesh as pb;
use tokio::time::Instant;

use crate::translate::FactsByUid;
pub use entry::{Decision, Entry, Missing};

/// Whose reports are heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// Another replica cannot be followed: what nodes tell it is not known here.
    pub is_partial: bool,
    /// Nodes whose proxies report here.
    pub here: BTreeSet<String>,
}

impl Sight {
    fn misses(&self, node: &str) -> bool {
        self.is_partial && !self.here.contains(node)
    }
}

/// Every pod by the uid of its workload.
#[derive(Debug, Default)]
pub struct Book {
    pods: BTreeMap<String, Entry>,
    sight: Sight,
}

/// The workloads whose decision or report may have changed.
pub type Touched = BTreeSet<String>;

impl Book {
    pub fn get(&self, uid: &str) -> Option<&Entry> {
        self.pods.get(uid)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.pods.iter()
    }

    /// How many pods are wanted in the mesh and not in it.
    pub fn missing(&self) -> BTreeMap<Missing, usize> {
        let mut counts: BTreeMap<Missing, usize> = Missing::ALL.map(|missing| (missing, 0)).into();
        for missing in self.pods.values().filter_map(Entry::missing) {
            *counts.entry(missing).or_default() += 1;
        }
        counts
    }

    /// Follows the objects: new pods, changed wishes; pods that are gone are forgotten.
    pub fn follow(&mut self, facts: &FactsByUid, now: Instant) {
        self.pods.retain(|uid, _| facts.contains_key(uid));
        for (uid, facts) in facts {
            let Some(pod) = &facts.pod else { continue };
            match self.pods.get_mut(uid) {
                Some(entry) => {
                    entry.set_wanted(&pod.wanted, now);
                    entry.node.clone_from(&facts.workload.node);
                }
                None => {
                    let node = &facts.workload.node;
                    let entry = Entry::new(node, &pod.wanted, self.sight.misses(node), now);
                    self.pods.insert(uid.clone(), entry);
                }
            }
        }
    }

    /// Follows who can be heard.
    pub fn see(&mut self, sight: Sight, now: Instant) -> Touched {
        let mut touched = Touched::new();
        if self.sight != sight {
            self.sight = sight;
            for (uid, entry) in &mut self.pods {
                if entry.set_unseen(self.sight.misses(&entry.node), now) {
                    touched.insert(uid.clone());
                }
            }
        }
        touched
    }

    /// Takes a node's report. Returns what it touched, and how many lines were about pods not of that node.
    ///
    /// A pod that a complete report leaves out stays as it is: a node proxy that lost its list of pods has not undone
    /// their capture, so nobody may speak plaintext to them.
    pub fn report(&mut self, node: &str, report: pb::EnrolmentReport) -> (Touched, usize) {
        let mut touched = Touched::new();
        let mut ignored = 0;
        for line in report.workloads {
            match self.pods.get_mut(&line.uid) {
                Some(entry) if entry.node == node => {
                    touched.insert(line.uid.clone());
                    entry.set_report(line);
                }
                _ => ignored += 1,
            }
        }
        (touched, ignored)
    }

    /// A proxy holds a version of the workload that speaks HBONE: it was enrolled before this controller started.
    pub fn was_enrolled(&mut self, uid: &str) -> bool {
        self.pods.get_mut(uid).is_some_and(Entry::was_enrolled)
    }

    /// The pod's own node refused what it was told about it, or took it after all.
    pub fn refused(&mut self, node: &str, uid: &str, reason: Option<String>) -> bool {
        match self.pods.get_mut(uid) {
            Some(entry) if entry.node == node && entry.refused != reason => {
                entry.refused = reason;
                true
            }
            _ => false,
        }
    }

    /// A snapshot with every decision as it is now has been published.
    pub fn published(&mut self, generation: u64) {
        self.pods.values_mut().for_each(|entry| entry.published(generation));
    }

    /// Ends the leaving of pods whose peers know. `applied` is the generation that every connected proxy has applied,
    /// None when none is connected.
    pub fn progress(&mut self, applied: Option<u64>, now: Instant) -> Touched {
        let progressed =
            |(uid, entry): (&String, &mut Entry)| entry.progress(applied, now).then(|| uid.clone());
        self.pods.iter_mut().filter_map(progressed).collect()
    }

    /// When [`Book::progress`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.pods.values().filter_map(Entry::deadline).min()
    }
}

#[cfg(test)]
mod tests;
