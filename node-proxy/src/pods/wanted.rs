//! What is wanted of a pod.

use std::sync::Arc;

use super::kept::KeptPod;
use super::life::Wanted;
use crate::state::Snapshot;
use crate::state::model::{Enrolment, OwnWorkload, Workload};

/// A kept snapshot may be older than the kept list of pods: a pod that the last process had
/// enrolled stays so until a controller says otherwise, or peers' tunnels would end and its own traffic be plaintext.
pub fn wanted_of(snapshot: &Snapshot, kept: &KeptPod) -> Option<Wanted> {
    let workload = snapshot.own_workload_by_pod_uid(&kept.pod.uid)?;
    let was_enrolled = kept.capture.as_ref().is_some_and(|capture| capture.enrolled);
    let gateway = workload.gateway.as_ref().and_then(|gateway| snapshot.gateway(gateway)).cloned();
    let workload = match workload.own.as_deref() {
        Some(own) if snapshot.is_stale() && was_enrolled && own.enrolment == Enrolment::NotEnrolled => {
            let own = OwnWorkload { enrolment: Enrolment::Enrolled, ..own.clone() };
            Arc::new(Workload { own: Some(Arc::new(own)), ..(**workload).clone() })
        }
        _ => workload.clone(),
    };
    Some(Wanted { workload, gateway })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use culvert_api::enrolment::PodRef;
    use culvert_api::mesh as wire;

    use super::super::kept::KeptCapture;
    use super::*;
    use crate::intercept::Netns;
    use crate::intercept::rules::FirewallKind;
    use crate::state::testing::{mesh_resource, wire_mesh, wire_workload, workload_resource};
    use crate::state::{Origin, Resources};

    fn snapshot(origin: Origin) -> Arc<Snapshot> {
        let mut out = wire_workload("a", &[1]);
        out.enrolment = wire::Enrolment::NotEnrolled.into();
        let mut resources = Resources::default();
        resources.set_node("one");
        let upserts = vec![mesh_resource(wire_mesh()), workload_resource(out)];
        resources.apply(wire::Page { upserts, removals: Vec::new() });
        resources.freeze(origin, "v1").unwrap().0.into()
    }

    fn kept(snapshot: &Snapshot, enrolled: bool) -> KeptPod {
        let capture = KeptCapture {
            workload: crate::state::testing::uid("a").to_string(),
            interception: snapshot.mesh().interception,
            firewall: FirewallKind::Nft,
            enrolled,
            uncaptured: HashSet::new(),
        };
        KeptPod {
            pod: PodRef { namespace: "shop".into(), name: "a".into(), uid: "a-uid".into() },
            netns_path: "/nowhere".into(),
            netns: Netns::id_at(std::path::Path::new("/proc/self/ns/net")).unwrap().unwrap(),
            addresses: Vec::new(),
            capture: Some(capture),
        }
    }

    #[test]
    fn a_kept_snapshot_does_not_let_go_of_a_pod_that_was_enrolled() {
        for (origin, was_enrolled, expected) in [
            (Origin::Kept, true, Enrolment::Enrolled),
            (Origin::Kept, false, Enrolment::NotEnrolled),
            (Origin::Controller, true, Enrolment::NotEnrolled),
        ] {
            let snapshot = snapshot(origin);
            let wanted = wanted_of(&snapshot, &kept(&snapshot, was_enrolled)).unwrap();
            assert_eq!(wanted.workload.own.as_ref().unwrap().enrolment, expected, "{was_enrolled}");
        }
    }
}
