//! What is told to the controller about the pods of this node: everything when a stream begins, then what changed.

use culvert_api::mesh::EnrolmentReport;
use tokio::sync::watch;

use crate::pods::PodReports;

/// Finds what to report.
#[derive(Debug)]
pub(super) struct EnrolmentReporter {
    pods: watch::Receiver<PodReports>,
    /// What the controller was told over this stream; none before the pods are known for the first time.
    told: Option<PodReports>,
}

impl EnrolmentReporter {
    pub fn new(pods: watch::Receiver<PodReports>) -> Self {
        Self { pods, told: None }
    }

    /// Every pod, for the start of a stream. `None` until the pods are known.
    pub fn complete(&mut self) -> Option<EnrolmentReport> {
        if self.told.is_none() && !self.pods.has_changed().unwrap_or(false) {
            return None;
        }
        let pods = self.pods.borrow_and_update().clone();
        let report = complete(&pods);
        self.told = Some(pods);
        Some(report)
    }

    /// Waits for the next change. Cancel safe. Waits for ever once nobody reports any more.
    pub async fn next(&mut self) -> EnrolmentReport {
        loop {
            if self.pods.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let pods = self.pods.borrow_and_update().clone();
            let report = match &self.told {
                Some(told) => difference(told, &pods),
                None => Some(complete(&pods)),
            };
            self.told = Some(pods);
            if let Some(report) = report {
                return report;
            }
        }
    }
}

fn complete(pods: &PodReports) -> EnrolmentReport {
    EnrolmentReport { complete: true, workloads: pods.iter().map(|(uid, pod)| pod.to_wire(uid)).collect() }
}

/// The pods that changed. That one is gone can only be said by naming all the others.
fn difference(told: &PodReports, pods: &PodReports) -> Option<EnrolmentReport> {
    if told.keys().any(|uid| !pods.contains_key(uid)) {
        return Some(complete(pods));
    }
    let changed: Vec<_> = pods
        .iter()
        .filter(|(uid, pod)| told.get(*uid).is_none_or(|told| told.to_wire(uid) != pod.to_wire(uid)))
        .map(|(uid, pod)| pod.to_wire(uid))
        .collect();
    (!changed.is_empty()).then_some(EnrolmentReport { complete: false, workloads: changed })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::pods::{Phase, PodReport};
    use crate::state::model::WorkloadUid;

    fn pods(all: &[(&str, Phase)]) -> PodReports {
        let report = |phase| PodReport {
            phase,
            message: String::new(),
            uncaptured_connections: 0,
            identity: None,
            certificate_not_after: None,
            listeners: BTreeMap::new(),
        };
        all.iter().map(|(uid, phase)| (WorkloadUid((*uid).into()), report(*phase))).collect()
    }

    fn named(report: &EnrolmentReport) -> (bool, Vec<&str>) {
        (report.complete, report.workloads.iter().map(|workload| workload.uid.as_str()).collect())
    }

    #[tokio::test]
    async fn nothing_is_said_before_the_pods_are_known() {
        let (sender, receiver) = watch::channel(PodReports::new());
        let mut reporter = EnrolmentReporter::new(receiver);
        assert!(reporter.complete().is_none());
        sender.send_replace(PodReports::new());
        let report = reporter.next().await;
        assert_eq!(
            named(&report),
            (true, vec![]),
            "an empty node is worth a word once it is known to be empty"
        );
        assert!(reporter.complete().is_some(), "and again on the next stream");
    }

    #[tokio::test]
    async fn changes_are_told_alone_and_a_loss_by_naming_the_rest() {
        let (sender, receiver) = watch::channel(PodReports::new());
        let mut reporter = EnrolmentReporter::new(receiver);
        sender.send_replace(pods(&[("a", Phase::Waiting), ("b", Phase::Enrolled)]));
        assert_eq!(named(&reporter.complete().unwrap()), (true, vec!["a", "b"]));
        sender.send_replace(pods(&[("a", Phase::Enrolled), ("b", Phase::Enrolled)]));
        assert_eq!(named(&reporter.next().await), (false, vec!["a"]));
        sender.send_replace(pods(&[("b", Phase::Enrolled)]));
        assert_eq!(named(&reporter.next().await), (true, vec!["b"]));
    }
}
