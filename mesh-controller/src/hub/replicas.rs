//! What other replicas are told: the reports of the node proxies that this one serves. Without it each would know of the pods
//! of its own node proxies only, and tell theirs that all others are not enrolled.

use std::collections::{BTreeMap, BTreeSet};

use culvert_api::mesh as pb;
use tokio::sync::mpsc;

use super::enrolment::Book;
use super::listeners::Listeners;
use crate::translate::FactsByUid;

/// Workloads in one message: far below the largest message there is.
const PAGE: usize = 2_000;

/// The replicas that follow this one.
#[derive(Debug, Default)]
pub struct Followers {
    all: Vec<mpsc::Sender<pb::ReplicaReports>>,
}

impl Followers {
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Takes in another one, after it was told what stands.
    pub fn add(&mut self, follower: mpsc::Sender<pb::ReplicaReports>, standing: Vec<pb::NodeReport>) {
        let told = pages(standing).into_iter().all(|nodes| tell(&follower, nodes));
        if told {
            self.all.push(follower);
        }
    }

    /// Passes on what a node proxy has reported. Who does not keep up is let go: it comes back and is told everything.
    pub fn tell(&mut self, report: &pb::NodeReport) {
        self.all.retain(|follower| tell(follower, vec![report.clone()]));
    }

    /// Forgets those that are gone.
    pub fn forget_closed(&mut self) {
        self.all.retain(|follower| !follower.is_closed());
    }
}

fn tell(follower: &mpsc::Sender<pb::ReplicaReports>, nodes: Vec<pb::NodeReport>) -> bool {
    follower.try_send(pb::ReplicaReports { replica: String::new(), nodes }).is_ok()
}

fn pages(standing: Vec<pb::NodeReport>) -> Vec<Vec<pb::NodeReport>> {
    let mut pages: Vec<Vec<pb::NodeReport>> = Vec::new();
    let mut filled = PAGE;
    for report in standing {
        let workloads = report.enrolment.as_ref().map_or(0, |report| report.workloads.len());
        let size = 1 + workloads + report.refusals.as_ref().map_or(0, |report| report.refused.len());
        if filled + size > PAGE {
            pages.push(Vec::new());
            filled = 0;
        }
        filled += size;
        if let Some(page) = pages.last_mut() {
            page.push(report);
        }
    }
    pages
}

/// What the node proxies of these nodes have reported and still stands.
pub fn standing(
    nodes: &BTreeSet<String>,
    book: &Book,
    listeners: &Listeners,
    facts: &FactsByUid,
) -> Vec<pb::NodeReport> {
    let mut all: BTreeMap<&str, pb::NodeReport> = BTreeMap::new();
    for (_, entry) in book.iter().filter(|(_, entry)| nodes.contains(&entry.node)) {
        let Some(report) = &entry.report else { continue };
        let of_node = all.entry(&entry.node).or_default();
        of_node.enrolment.get_or_insert_default().workloads.push(report.clone());
    }
    for line in listeners.reported() {
        let Some(facts) = facts.get(&line.uid).filter(|facts| nodes.contains(&facts.workload.node)) else {
            continue;
        };
        let of_node = all.entry(&facts.workload.node).or_default();
        of_node.listeners.get_or_insert_default().workloads.push(line);
    }
    all.into_iter().map(|(node, report)| pb::NodeReport { node: node.to_owned(), ..report }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(node: &str, workloads: usize) -> pb::NodeReport {
        let line = |n| pb::WorkloadEnrolment { uid: format!("{node}/{n}"), ..Default::default() };
        let workloads = (0..workloads).map(line).collect();
        let enrolment = Some(pb::EnrolmentReport { complete: false, workloads });
        pb::NodeReport { node: node.to_owned(), enrolment, ..Default::default() }
    }

    #[test]
    fn what_stands_is_told_in_pages_and_who_does_not_keep_up_is_let_go() {
        let (sender, mut told) = mpsc::channel(4);
        let mut followers = Followers::default();
        followers.add(sender, vec![report("a", 1_500), report("b", 600), report("c", 10)]);
        let sizes = [told.try_recv().unwrap(), told.try_recv().unwrap()].map(|page| page.nodes.len());
        assert_eq!(sizes, [1, 2]);
        for _ in 0..4 {
            followers.tell(&report("a", 1));
        }
        assert!(!followers.is_empty());
        followers.tell(&report("a", 1));
        assert!(followers.is_empty());
    }
}
