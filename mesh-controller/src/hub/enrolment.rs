//! Who is enrolled, and what peers are told of it.
//!
//! Enrolling: a pod is wanted, its own node is told so; when that node reports it enrolled, peers are told HBONE. From
//! then on peers are told HBONE for as long as the pod is wanted and its node does not say that it no longer captures
//! it: a lost stream, a node proxy that waits for a certificate again, or a restarted controller never turn traffic
//! between enrolled pods into plaintext.
//!
//! A controller that has just started does not know yet who was enrolled. Until a pod's own node has spoken of it, or
//! [`SPOKEN_OF_WITHIN`] has passed, peers are told that it is undecided, and hold their connections. So it is for as long as
//! another replica, whose node proxies may have reported it enrolled, cannot be followed ([`Sight`]).
//!
//! Leaving: peers are told plaintext and the own node LEAVING; when every connected node proxy has applied that, or
//! 10 s have passed, the own node is told NOT_ENROLLED.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use culvert_api::mesh as pb;
use culvert_objects::enrolment::Wanted;
use prometheus_client::encoding::EncodeLabelValue;
use tokio::time::Instant;

use crate::translate::Facts;

/// How long peers may take to apply that a pod is leaving.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(10);

/// How long a wanted pod stays undecided when its own node says nothing of it. Where no node proxy runs there are no
/// rules either, and the pod must stay reachable; where one ran, its rules drop plaintext until it is back.
const SPOKEN_OF_WITHIN: Duration = Duration::from_secs(60);

/// What is told about a pod: to its own node, and to its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub enrolment: pb::Enrolment,
    pub tunnel: pb::Tunnel,
}

/// One pod.
#[derive(Clone, Debug)]
pub struct Entry {
    pub node: String,
    pub wanted: Wanted,
    /// Peers are, or may have been, told HBONE.
    reached: bool,
    leaving: Option<Leaving>,
    /// Until then peers hold their connections, unless its own node speaks of it first.
    undecided_until: Option<Instant>,
    /// Its own node may have spoken of it to a replica that is not heard.
    is_unseen: bool,
    /// The newest of its own node.
    pub report: Option<pb::WorkloadEnrolment>,
    /// Its own node refused what it was told, with this reason.
    pub refused: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Leaving {
    since: Instant,
    /// The first generation that says so.
    generation: Option<u64>,
}

/// Why a pod that is wanted in the mesh is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelValue)]
pub enum Missing {
    /// Its node has said nothing of it.
    NotReported,
    /// Its node waits for something.
    Waiting,
    /// Its node cannot do it, or refused what it was told.
    Failed,
}

impl Missing {
    pub const ALL: [Self; 3] = [Self::NotReported, Self::Waiting, Self::Failed];
}

impl Entry {
    /// None for a pod that is in the mesh, or shall not be.
    pub fn missing(&self) -> Option<Missing> {
        use pb::EnrolmentPhase as Phase;
        let phase = self.report.as_ref().map(pb::WorkloadEnrolment::phase);
        match phase.filter(|_| self.wanted.is_enrolled()) {
            Some(Phase::Enrolled) => None,
            Some(Phase::Failed) => Some(Missing::Failed),
            _ if !self.wanted.is_enrolled() => None,
            _ if self.refused.is_some() => Some(Missing::Failed),
            Some(_) => Some(Missing::Waiting),
            None => Some(Missing::NotReported),
        }
    }

    pub fn decision(&self) -> Decision {
        let (enrolment, tunnel) = match (self.wanted.is_enrolled(), self.reached, self.leaving) {
            (true, true, _) => (pb::Enrolment::Enrolled, pb::Tunnel::Hbone),
            (true, false, _) if self.undecided_until.is_some() || self.is_unseen => {
                (pb::Enrolment::Enrolled, pb::Tunnel::Unspecified)
            }
            (true, false, _) => (pb::Enrolment::Enrolled, pb::Tunnel::None),
            (false, _, Some(_)) => (pb::Enrolment::Leaving, pb::Tunnel::None),
            (false, _, None) => (pb::Enrolment::NotEnrolled, pb::Tunnel::None),
        };
        Decision { enrolment, tunnel }
    }

    fn set_wanted(&mut self, wanted: &Wanted, now: Instant) {
        match (self.wanted.is_enrolled(), wanted.is_enrolled()) {
            (true, false) if self.reached => {
                self.leaving = Some(Leaving { since: now, generation: None });
                self.reached = false;
            }
            // Its node still captures it and has it in force.
            (false, true) if self.leaving.take().is_some() => self.reached = self.is_reported_enrolled(),
            _ => {}
        }
        self.wanted = wanted.clone();
    }

    /// Returns whether anything changed. What was not seen is said again by who is heard again, within a moment.
    fn set_unseen(&mut self, is_unseen: bool, now: Instant) -> bool {
        if self.is_unseen && !is_unseen && !self.reached {
            self.undecided_until = Some(now + SPOKEN_OF_WITHIN);
        }
        std::mem::replace(&mut self.is_unseen, is_unseen) != is_unseen
    }

    fn is_reported_enrolled(&self) -> bool {
        self.report.as_ref().is_some_and(|report| report.phase() == pb::EnrolmentPhase::Enrolled)
    }

    fn set_report(&mut self, report: pb::WorkloadEnrolment) {
        match report.phase() {
            pb::EnrolmentPhase::Enrolled => self.reached = self.wanted.is_enrolled(),
            // Only its own node's word that it does not capture the pod ends what peers rely on.
            pb::EnrolmentPhase::NotEnrolled | pb::EnrolmentPhase::Leaving => self.reached = false,
            pb::EnrolmentPhase::Waiting | pb::EnrolmentPhase::Failed | pb::EnrolmentPhase::Unspecified => {}
        }
        self.undecided_until = None;
        self.report = Some(report);
    }
}

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
    pub fn follow(&mut self, facts: &BTreeMap<String, Facts>, now: Instant) {
        self.pods.retain(|uid, _| facts.contains_key(uid));
        for (uid, facts) in facts {
            let Some(pod) = &facts.pod else { continue };
            match self.pods.get_mut(uid) {
                Some(entry) => {
                    entry.set_wanted(&pod.wanted, now);
                    entry.node.clone_from(&facts.workload.node);
                }
                None => {
                    let entry = Entry {
                        node: facts.workload.node.clone(),
                        wanted: pod.wanted.clone(),
                        reached: false,
                        leaving: None,
                        undecided_until: Some(now + SPOKEN_OF_WITHIN),
                        is_unseen: self.sight.misses(&facts.workload.node),
                        report: None,
                        refused: None,
                    };
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
        match self.pods.get_mut(uid) {
            Some(entry) if entry.report.is_none() && entry.wanted.is_enrolled() && !entry.reached => {
                entry.reached = true;
                true
            }
            _ => false,
        }
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
        for leaving in self.pods.values_mut().filter_map(|entry| entry.leaving.as_mut()) {
            leaving.generation.get_or_insert(generation);
        }
    }

    /// Ends the leaving of pods whose peers know. `applied` is the generation that every connected proxy has applied,
    /// None when none is connected.
    pub fn progress(&mut self, applied: Option<u64>, now: Instant) -> Touched {
        let mut touched = Touched::new();
        for (uid, entry) in &mut self.pods {
            if entry.undecided_until.is_some_and(|until| now >= until) {
                entry.undecided_until = None;
                touched.insert(uid.clone());
            }
            let Some(leaving) = entry.leaving else { continue };
            let known =
                leaving.generation.is_some_and(|needed| applied.is_none_or(|applied| applied >= needed));
            if known || now >= leaving.since + ACKNOWLEDGED_WITHIN {
                entry.leaving = None;
                touched.insert(uid.clone());
            }
        }
        touched
    }

    /// When [`Book::progress`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let leaving = self.pods.values().filter_map(|entry| entry.leaving);
        let undecided = self.pods.values().filter_map(|entry| entry.undecided_until);
        leaving.map(|leaving| leaving.since + ACKNOWLEDGED_WITHIN).chain(undecided).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::PodFacts;
    use culvert_objects::enrolment::WhyNot;
    use culvert_objects::{Kind, ObjectKey};
    use pb::Enrolment as E;
    use pb::EnrolmentPhase as P;
    use pb::Tunnel as T;

    fn facts(wanted: bool) -> BTreeMap<String, Facts> {
        let wanted = if wanted { Wanted::Enrolled } else { Wanted::NotEnrolled(WhyNot::NotLabelled) };
        let workload = pb::Workload { uid: "w".into(), node: "n".into(), ..Default::default() };
        let pod = PodFacts { key: ObjectKey::namespaced(Kind::Pod, "a", "p"), wanted };
        BTreeMap::from([("w".to_owned(), Facts { workload, pod: Some(pod) })])
    }

    struct Case {
        book: Book,
        now: Instant,
    }

    impl Case {
        fn new(wanted: bool) -> Self {
            let mut case = Self { book: Book::default(), now: Instant::now() };
            case.book.follow(&facts(wanted), case.now);
            case
        }

        fn wanted(&mut self, wanted: bool) {
            self.book.follow(&facts(wanted), self.now);
        }

        fn report(&mut self, node: &str, phase: P) {
            let line = pb::WorkloadEnrolment { uid: "w".into(), phase: phase.into(), ..Default::default() };
            self.book.report(node, pb::EnrolmentReport { complete: false, workloads: vec![line] });
        }

        fn told(&self) -> (E, T) {
            let decision = self.book.get("w").unwrap().decision();
            (decision.enrolment, decision.tunnel)
        }
    }

    #[tokio::test]
    async fn peers_are_told_hbone_only_after_the_own_nodes_report() {
        let mut case = Case::new(true);
        assert_eq!(case.told(), (E::Enrolled, T::Unspecified));
        case.report("n", P::Waiting);
        assert_eq!(case.told(), (E::Enrolled, T::None));
        case.report("other", P::Enrolled);
        assert_eq!(case.told(), (E::Enrolled, T::None));
        case.report("n", P::Enrolled);
        assert_eq!(case.told(), (E::Enrolled, T::Hbone));
        case.report("n", P::Waiting);
        assert_eq!(case.told(), (E::Enrolled, T::Hbone), "an enrolled destination is never downgraded");
        case.report("n", P::NotEnrolled);
        assert_eq!(case.told(), (E::Enrolled, T::None));
    }

    #[tokio::test]
    async fn leaving_waits_for_every_connected_proxy() {
        let mut case = Case::new(true);
        case.report("n", P::Enrolled);
        case.wanted(false);
        assert_eq!(case.told(), (E::Leaving, T::None));
        assert!(case.book.progress(Some(7), case.now).is_empty(), "nothing was published yet");
        case.book.published(8);
        case.book.published(9);
        case.report("n", P::Enrolled);
        assert!(case.book.progress(Some(7), case.now).is_empty());
        assert_eq!(case.told(), (E::Leaving, T::None));
        assert_eq!(case.book.progress(Some(8), case.now).len(), 1);
        assert_eq!(case.told(), (E::NotEnrolled, T::None));
        case.report("n", P::Enrolled);
        assert_eq!(case.told(), (E::NotEnrolled, T::None));
        case.report("n", P::Leaving);
        case.wanted(true);
        assert_eq!(case.told(), (E::Enrolled, T::None));
    }

    #[tokio::test]
    async fn leaving_ends_after_ten_seconds_and_can_be_taken_back() {
        let mut case = Case::new(true);
        case.report("n", P::Enrolled);
        case.wanted(false);
        case.book.published(1);
        case.wanted(true);
        assert_eq!(case.told(), (E::Enrolled, T::Hbone));
        assert_eq!(case.book.deadline(), None);
        case.wanted(false);
        case.book.published(2);
        let deadline = case.book.deadline().unwrap();
        assert_eq!(deadline, case.now + Duration::from_secs(10));
        assert!(case.book.progress(Some(1), deadline - Duration::from_millis(1)).is_empty());
        assert_eq!(case.book.progress(Some(1), deadline).len(), 1);
    }

    fn sight(is_partial: bool, here: &[&str]) -> Sight {
        Sight { is_partial, here: here.iter().map(|node| (*node).to_owned()).collect() }
    }

    #[tokio::test]
    async fn what_another_replica_may_know_stays_undecided_for_as_long_as_it_is_not_heard() {
        let mut case = Case::new(true);
        assert_eq!(case.book.see(sight(true, &["other"]), case.now).len(), 1);
        let late = case.now + SPOKEN_OF_WITHIN * 20;
        case.book.progress(None, late);
        assert_eq!(case.told(), (E::Enrolled, T::Unspecified), "however long it takes");
        case.report("n", P::Waiting);
        assert_eq!(
            case.told(),
            (E::Enrolled, T::Unspecified),
            "by way of a third replica, which it may have left"
        );
        case.book.see(sight(false, &["other"]), late);
        assert_eq!(case.told(), (E::Enrolled, T::Unspecified), "what it missed is being told");
        case.report("n", P::Waiting);
        assert_eq!(case.told(), (E::Enrolled, T::None));
        // Plaintext so far; its node may have it enrolled from now on.
        case.book.see(sight(true, &[]), late);
        assert_eq!(case.told(), (E::Enrolled, T::Unspecified));
        case.report("n", P::Enrolled);
        assert_eq!(case.told(), (E::Enrolled, T::Hbone));
        case.book.see(sight(false, &[]), late);
        assert_eq!(case.told(), (E::Enrolled, T::Hbone));
    }

    #[tokio::test]
    async fn nodes_that_report_here_and_pods_that_nobody_wants_need_no_other_replica() {
        let mut case = Case::new(true);
        assert!(case.book.see(sight(true, &["n"]), case.now).is_empty());
        case.report("n", P::Waiting);
        assert_eq!(case.told(), (E::Enrolled, T::None));
        case.book.see(sight(true, &[]), case.now);
        assert_eq!(case.told(), (E::Enrolled, T::Unspecified), "its stream has ended");
        case.wanted(false);
        assert_eq!(case.told(), (E::NotEnrolled, T::None));
        let mut later = Case { book: Book::default(), now: case.now };
        later.book.see(sight(true, &[]), case.now);
        later.wanted(true);
        later.book.progress(None, case.now + SPOKEN_OF_WITHIN * 2);
        assert_eq!(later.told(), (E::Enrolled, T::Unspecified), "one that came meanwhile");
    }

    #[tokio::test]
    async fn what_was_never_enrolled_leaves_at_once() {
        let mut case = Case::new(true);
        case.report("n", P::Waiting);
        case.wanted(false);
        assert_eq!(case.told(), (E::NotEnrolled, T::None));
    }

    #[tokio::test]
    async fn a_restarted_controller_believes_what_proxies_hold_until_the_own_node_reports() {
        let mut case = Case::new(true);
        assert!(case.book.was_enrolled("w"));
        assert_eq!(case.told(), (E::Enrolled, T::Hbone));
        case.report("n", P::NotEnrolled);
        assert_eq!(case.told(), (E::Enrolled, T::None));
        assert!(!case.book.was_enrolled("w"));
    }

    #[tokio::test]
    async fn a_pod_that_is_gone_is_forgotten() {
        let mut case = Case::new(true);
        case.report("n", P::Enrolled);
        case.book.follow(&BTreeMap::new(), case.now);
        assert!(case.book.get("w").is_none());
        case.wanted(true);
        assert_eq!(case.told(), (E::Enrolled, T::Unspecified));
    }

    #[tokio::test]
    async fn a_pod_that_its_node_never_speaks_of_is_decided_after_a_minute() {
        let mut case = Case::new(true);
        let deadline = case.book.deadline().unwrap();
        assert_eq!(deadline, case.now + Duration::from_secs(60));
        assert!(case.book.progress(None, deadline - Duration::from_millis(1)).is_empty());
        assert_eq!(case.told(), (E::Enrolled, T::Unspecified));
        assert_eq!(case.book.progress(None, deadline).len(), 1);
        assert_eq!(case.told(), (E::Enrolled, T::None));
        assert_eq!(case.book.deadline(), None);
    }
}
