//! Removed pods of Gateways: they take no more requests, and those under way may end before the pod goes.

use std::collections::HashMap;
use std::time::Duration;

use culvert_api::enrolment::Reply;
use culvert_api::names::NODE_PROXY_SERVICE_ACCOUNT;
use tokio::sync::watch;

use crate::state::model::WorkloadUid;
use crate::worker::Workers;

/// How long that may take: whoever removes the pod waits for the answer.
const LAST_REQUESTS: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Draining,
    Over,
}

/// By the pod's uid.
#[derive(Debug, Default)]
pub(super) struct Endings {
    all: HashMap<String, watch::Receiver<Ending>>,
}

impl Endings {
    /// For a pod whose listeners are closed. What is returned waits for its connections, cuts those that are left, and
    /// forgets the pod; it must be run.
    pub fn begin(
        &mut self,
        pod_uid: &str,
        workers: Workers,
        uid: WorkloadUid,
    ) -> impl Future<Output = ()> + use<> {
        let (over, ending) = watch::channel(Ending::Draining);
        self.all.insert(pod_uid.to_owned(), ending);
        async move {
            let _ = tokio::time::timeout(LAST_REQUESTS, workers.leave_pod(&uid)).await;
            workers.remove_pod(&uid).await;
            over.send_replace(Ending::Over);
        }
    }

    /// Returns when the pod is not there any more; at once for one that is not ending.
    pub fn over(&self, pod_uid: &str) -> impl Future<Output = ()> + use<> {
        let ending = self.all.get(pod_uid).cloned();
        async move {
            if let Some(mut ending) = ending {
                // Without a sender it is over, too.
                let _ = ending.wait_for(|ending| *ending == Ending::Over).await;
            }
        }
    }

    /// What to answer to somebody who adds a pod that is ending still.
    pub fn hinders(&self, pod_uid: &str) -> Option<Reply> {
        let ending = self.all.get(pod_uid)?;
        (*ending.borrow() == Ending::Draining).then(|| Reply::Wait {
            component: NODE_PROXY_SERVICE_ACCOUNT.into(),
            message: "connections to the pod as it was before are ending".into(),
            remedy: "it is asked again".into(),
        })
    }

    pub fn forget_those_over(&mut self) {
        self.all.retain(|_, ending| *ending.borrow() == Ending::Draining);
    }
}
