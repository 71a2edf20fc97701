//! A pod that ends (its endpoints are terminating) keeps the connections to it for its drain deadline. Whoever has many
//! long ones may want them to move before the pod's grace period is over, and sets the deadline below that.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use crate::state::model::{OwnWorkload, Workload, WorkloadUid};

/// When connections to the pod are to be cut.
#[derive(Default)]
pub(super) enum EndDrain {
    /// The pod does not end.
    #[default]
    None,
    Until(Instant, WorkloadUid),
    Over,
}

impl EndDrain {
    /// Starts when every endpoint of the pod is terminating; a deadline that runs is not moved.
    pub fn follow(&mut self, own: Option<(Arc<Workload>, Arc<OwnWorkload>)>) {
        let Some((workload, own)) = own else { return };
        let memberships = &workload.memberships;
        let is_ending =
            !memberships.is_empty() && memberships.iter().all(|membership| membership.terminating);
        match (is_ending, &self) {
            (false, _) => *self = Self::None,
            (true, Self::None) => {
                *self = Self::Until(Instant::now() + own.settings.timeouts.drain, workload.uid.clone());
            }
            (true, Self::Until(..) | Self::Over) => {}
        }
    }

    /// Returns once, at the deadline.
    pub async fn over(&mut self) -> WorkloadUid {
        let Self::Until(at, uid) = self else { return std::future::pending().await };
        sleep_until(*at).await;
        let uid = uid.clone();
        *self = Self::Over;
        uid
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::state::model::Membership;
    use crate::state::testing::{self, member, uid};

    /// In two Services; a drain deadline of one second.
    fn pod(terminating: [bool; 2]) -> Option<(Arc<Workload>, Arc<OwnWorkload>)> {
        let of = |terminating| Membership { terminating, ..member("shop/cart") };
        let workload =
            Workload { memberships: terminating.map(of).to_vec(), ..testing::workload("web", &[1]) };
        Some((Arc::new(workload), Arc::new(testing::own())))
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_ends_is_cut_once_at_its_deadline() {
        let mut drain = EndDrain::default();
        let began = Instant::now();
        drain.follow(pod([true, true]));
        tokio::time::sleep(Duration::from_millis(500)).await;
        drain.follow(pod([true, true]));
        assert_eq!(drain.over().await, uid("web"));
        assert_eq!(began.elapsed(), Duration::from_secs(1), "what comes later does not move it");
        drain.follow(pod([true, true]));
        assert!(timeout(Duration::from_secs(3600), drain.over()).await.is_err(), "once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_serves_a_service_still_is_not_cut() {
        let mut drain = EndDrain::default();
        for standing in [pod([true, false]), pod([false, false]), None] {
            drain.follow(standing);
            assert!(timeout(Duration::from_secs(3600), drain.over()).await.is_err());
        }
        drain.follow(pod([true, true]));
        drain.follow(pod([false, true]));
        assert!(timeout(Duration::from_secs(3600), drain.over()).await.is_err(), "it came back");
    }
}
