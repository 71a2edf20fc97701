use std::time::Duration;

use super::entry::SPOKEN_OF_WITHIN;
use super::*;
use crate::translate::{Facts, PodFacts};
use culvert_objects::enrolment::{Wanted, WhyNot};
use culvert_objects::{Kind, ObjectKey};
use pb::Enrolment as E;
use pb::EnrolmentPhase as P;
use pb::Tunnel as T;

fn facts(wanted: bool) -> FactsByUid {
    let wanted = if wanted { Wanted::Enrolled } else { Wanted::NotEnrolled(WhyNot::NotLabelled) };
    let workload = pb::Workload { uid: "w".into(), node: "n".into(), ..Default::default() };
    let pod = PodFacts { key: ObjectKey::namespaced(Kind::Pod, "a", "p"), wanted };
    BTreeMap::from([("w".to_owned(), Facts { workload, pod: Some(pod) }.into())])
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
