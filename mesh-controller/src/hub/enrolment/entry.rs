//! One pod: whether it is wanted, what its own node says of it, and what is told of that.

use std::time::Duration;

use culvert_api::mesh as pb;
use culvert_objects::enrolment::Wanted;
use prometheus_client::encoding::EncodeLabelValue;
use tokio::time::Instant;

/// How long peers may take to apply that a pod is leaving.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(10);

/// How long a wanted pod stays undecided when its own node says nothing of it. Where no node proxy runs there are no
/// rules either, and the pod must stay reachable; where one ran, its rules drop plaintext until it is back.
pub(super) const SPOKEN_OF_WITHIN: Duration = Duration::from_secs(60);

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
    /// A pod that nothing has been said of yet.
    pub(super) fn new(node: &str, wanted: &Wanted, is_unseen: bool, now: Instant) -> Self {
        Self {
            node: node.to_owned(),
            wanted: wanted.clone(),
            reached: false,
            leaving: None,
            undecided_until: Some(now + SPOKEN_OF_WITHIN),
            is_unseen,
            report: None,
            refused: None,
        }
    }

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

    pub(super) fn set_wanted(&mut self, wanted: &Wanted, now: Instant) {
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
    pub(super) fn set_unseen(&mut self, is_unseen: bool, now: Instant) -> bool {
        if self.is_unseen && !is_unseen && !self.reached {
            self.undecided_until = Some(now + SPOKEN_OF_WITHIN);
        }
        std::mem::replace(&mut self.is_unseen, is_unseen) != is_unseen
    }

    fn is_reported_enrolled(&self) -> bool {
        self.report.as_ref().is_some_and(|report| report.phase() == pb::EnrolmentPhase::Enrolled)
    }

    pub(super) fn set_report(&mut self, report: pb::WorkloadEnrolment) {
        match report.phase() {
            pb::EnrolmentPhase::Enrolled => self.reached = self.wanted.is_enrolled(),
            // Only its own node's word that it does not capture the pod ends what peers rely on.
            pb::EnrolmentPhase::NotEnrolled | pb::EnrolmentPhase::Leaving => self.reached = false,
            pb::EnrolmentPhase::Waiting | pb::EnrolmentPhase::Failed | pb::EnrolmentPhase::Unspecified => {}
        }
        self.undecided_until = None;
        self.report = Some(report);
    }

    /// A proxy holds a version of it that speaks HBONE. Returns whether that changed anything.
    pub(super) fn was_enrolled(&mut self) -> bool {
        let believed = self.report.is_none() && self.wanted.is_enrolled() && !self.reached;
        self.reached |= believed;
        believed
    }

    pub(super) fn published(&mut self, generation: u64) {
        if let Some(leaving) = &mut self.leaving {
            leaving.generation.get_or_insert(generation);
        }
    }

    /// Decides what has waited long enough, and ends a leaving that every peer knows of. Returns whether it did.
    pub(super) fn progress(&mut self, applied: Option<u64>, now: Instant) -> bool {
        let decided = self.undecided_until.take_if(|until| now >= *until).is_some();
        let known = |leaving: &mut Leaving| {
            leaving.generation.is_some_and(|needed| applied.is_none_or(|applied| applied >= needed))
                || now >= leaving.since + ACKNOWLEDGED_WITHIN
        };
        let left = self.leaving.take_if(known).is_some();
        decided || left
    }

    /// When [`Entry::progress`] must be called at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let left = self.leaving.map(|leaving| leaving.since + ACKNOWLEDGED_WITHIN);
        left.into_iter().chain(self.undecided_until).min()
    }
}
