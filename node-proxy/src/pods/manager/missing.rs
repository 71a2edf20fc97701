//! Pods that shall be enrolled and whose namespace nobody handed over: reported, and looked for.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use culvert_api::enrolment::{PodRef, Reply};

use super::Manager;
use crate::pods::report::{Phase, PodReport};
use crate::pods::search::{Found, SearchError, Sought};
use crate::state::Snapshot;
use crate::state::model::{Enrolment, Workload, WorkloadUid};

const NOT_HANDED_OVER: &str = "the pod's network namespace has not been handed over to the node proxy";

impl Manager {
    /// Says who is missing, and has them looked for. Pods on the node's network are never among them.
    pub(super) fn report_missing(&self, snapshot: &Snapshot) {
        let missing: Vec<&Arc<Workload>> = snapshot
            .own_workloads()
            .filter(|workload| is_wanted(workload) && !self.pods.contains_key(workload.uid.pod_uid()))
            .collect();
        let uids: HashSet<&WorkloadUid> = missing.iter().map(|workload| &workload.uid).collect();
        self.reports.send_if_modified(|all| {
            let before = all.len();
            all.retain(|uid, _| uids.contains(uid) || self.pods.contains_key(uid.pod_uid()));
            let mut changed = all.len() != before;
            for uid in uids {
                changed |= !all.contains_key(uid);
                all.entry(uid.clone()).or_insert_with(|| report(Phase::Waiting, NOT_HANDED_OVER.to_owned()));
            }
            changed
        });
        // Before it has an address there is nothing to know its namespace by.
        let known = missing.into_iter().filter(|workload| !workload.addresses.is_empty());
        let mut sought: Vec<Sought> = known.map(|workload| sought(workload)).collect();
        sought.sort_by(|a, b| a.workload.cmp(&b.workload));
        self.search.seek(sought);
    }

    /// Takes up a pod that was found, or says why it was not.
    pub(super) async fn found(&mut self, sought: Sought, outcome: Result<Found, SearchError>) {
        let snapshot = self.node.snapshots.load_full();
        let is_still = |workload: &Arc<Workload>| is_wanted(workload) && self::sought(workload) == sought;
        let current = snapshot.own_workload_by_pod_uid(&sought.pod.uid).is_some_and(is_still);
        if !current || self.pods.contains_key(&sought.pod.uid) {
            return;
        }
        let Sought { workload, pod, addresses } = sought;
        let (phase, why) = match outcome {
            Ok(Found { netns, path }) => {
                tracing::info!(pod = pod.uid, path = %path.display(), "a pod's network namespace was found");
                match self.add(pod, path, addresses, Some(netns)).await {
                    Ok(_) => return,
                    Err(Reply::Invalid { message } | Reply::Wait { message, .. }) => (Phase::Failed, message),
                    Err(Reply::Enrolled | Reply::NotEnrolled | Reply::Removed) => return,
                }
            }
            Err(error) if error.is_patient() => (Phase::Waiting, error.to_string()),
            Err(error) => (Phase::Failed, error.to_string()),
        };
        let new = report(phase, format!("{NOT_HANDED_OVER}, and it is not found: {why}"));
        self.reports.send_if_modified(|all| {
            let differs = all.get(&workload) != Some(&new);
            if differs {
                tracing::warn!(%workload, reason = new.message, "a pod that is wanted in the mesh cannot be captured");
                all.insert(workload, new);
            }
            differs
        });
    }
}

fn is_wanted(workload: &Workload) -> bool {
    let enrolled = workload.own.as_ref().is_some_and(|own| own.enrolment == Enrolment::Enrolled);
    enrolled && !workload.host_network
}

fn sought(workload: &Workload) -> Sought {
    let pod = PodRef {
        uid: workload.uid.pod_uid().to_owned(),
        namespace: workload.namespace.to_string(),
        name: workload.name.to_string(),
    };
    Sought { workload: workload.uid.clone(), pod, addresses: workload.addresses.clone() }
}

fn report(phase: Phase, message: String) -> PodReport {
    PodReport {
        phase,
        message,
        uncaptured_connections: 0,
        identity: None,
        certificate_not_after: None,
        listeners: BTreeMap::new(),
    }
}
