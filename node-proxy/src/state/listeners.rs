//! What is told to the controller about the listeners of Gateways in the pods of this node: everything when a stream
//! begins, then what changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_api::mesh::{ListenerReport, ListenerState, WorkloadListeners};
use tokio::sync::watch;

use super::model::WorkloadUid;
use crate::pods::PodReports;

/// Why each listener of a pod is not open, by the listener's resource.
type States = BTreeMap<Arc<str>, Option<String>>;

/// Finds what to report.
#[derive(Debug)]
pub(super) struct ListenerReporter {
    pods: watch::Receiver<PodReports>,
    /// What the controller was told over this stream; pods without listeners are not in it.
    told: BTreeMap<WorkloadUid, States>,
}

impl ListenerReporter {
    pub fn new(pods: watch::Receiver<PodReports>) -> Self {
        Self { pods, told: BTreeMap::new() }
    }

    /// Every pod of a Gateway, for the start of a stream. `None` when there is none.
    pub fn complete(&mut self) -> Option<ListenerReport> {
        // Whatever was said over an earlier stream is said again, also that a pod has none any more.
        self.told.values_mut().for_each(States::clear);
        self.difference()
    }

    /// Waits for the next change. Cancel safe. Waits for ever once nobody reports any more.
    pub async fn next(&mut self) -> ListenerReport {
        loop {
            if self.pods.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Some(report) = self.difference() {
                return report;
            }
        }
    }

    /// The pods whose listeners changed. Of one that has none any more, that is said once.
    fn difference(&mut self) -> Option<ListenerReport> {
        let now: BTreeMap<WorkloadUid, States> = self
            .pods
            .borrow_and_update()
            .iter()
            .filter(|(_, pod)| !pod.listeners.is_empty())
            .map(|(uid, pod)| (uid.clone(), pod.listeners.clone()))
            .collect();
        let changed = now.iter().filter(|(uid, states)| self.told.get(*uid) != Some(states));
        let changed = changed.map(|(uid, states)| to_wire(uid, states));
        let without = self.told.keys().filter(|uid| !now.contains_key(uid));
        let without = without.map(|uid| to_wire(uid, &States::new()));
        let workloads: Vec<WorkloadListeners> = changed.chain(without).collect();
        self.told = now;
        (!workloads.is_empty()).then_some(ListenerReport { workloads })
    }
}

fn to_wire(uid: &WorkloadUid, states: &States) -> WorkloadListeners {
    let state = |(name, failure): (&Arc<str>, &Option<String>)| ListenerState {
        listener: name.to_string(),
        failure: failure.clone().unwrap_or_default(),
    };
    WorkloadListeners { uid: uid.to_string(), listeners: states.iter().map(state).collect() }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::pods::{Phase, PodReport};

    type Named<'t> = (&'t str, Option<&'t str>);

    fn pods(all: &[(&str, &[Named<'_>])]) -> PodReports {
        let report = |listeners: &[Named<'_>]| PodReport {
            phase: Phase::Enrolled,
            message: String::new(),
            uncaptured_connections: 0,
            identity: None,
            certificate_not_after: None,
            listeners: listeners.iter().map(|(name, why)| ((*name).into(), why.map(Into::into))).collect(),
        };
        all.iter().map(|(uid, listeners)| (WorkloadUid((*uid).into()), report(listeners))).collect()
    }

    fn lines(report: &ListenerReport) -> Vec<String> {
        let line = |workload: &WorkloadListeners| {
            let states: Vec<_> = workload
                .listeners
                .iter()
                .map(|state| format!("{}={}", state.listener, state.failure))
                .collect();
            format!("{}: {}", workload.uid, states.join(" "))
        };
        report.workloads.iter().map(line).collect()
    }

    #[tokio::test]
    async fn all_is_said_at_the_start_and_then_what_changed() {
        let (sender, receiver) = watch::channel(PodReports::new());
        let mut reporter = ListenerReporter::new(receiver);
        assert!(reporter.complete().is_none(), "no pod is a Gateway's");
        sender.send_replace(pods(&[("a", &[]), ("b", &[("e/g/x", None), ("e/g/y", Some("in use"))])]));
        assert_eq!(lines(&reporter.next().await), ["b: e/g/x= e/g/y=in use"]);
        let both = pods(&[("a", &[("e/h/x", None)]), ("b", &[("e/g/x", None), ("e/g/y", Some("in use"))])]);
        sender.send_replace(both.clone());
        assert_eq!(lines(&reporter.next().await), ["a: e/h/x="]);
        assert_eq!(lines(&reporter.complete().unwrap()), ["a: e/h/x=", "b: e/g/x= e/g/y=in use"]);
        sender.send_replace(both);
        assert!(reporter.next().now_or_never().is_none(), "nothing changed");
        sender.send_replace(pods(&[("a", &[]), ("b", &[("e/g/x", None), ("e/g/y", None)])]));
        assert_eq!(lines(&reporter.next().await), ["b: e/g/x= e/g/y=", "a: "]);
        sender.send_replace(PodReports::new());
        assert_eq!(lines(&reporter.next().await), ["b: "]);
    }
}
