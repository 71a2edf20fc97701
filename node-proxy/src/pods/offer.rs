//! What the pods' manager does when one process takes over from another: the old one offers, the new one takes over.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::captured::{Captured, KnownPod, Node};
use super::kept::KeptPod;
use super::life::Wanted;
use super::manager::{known, open_again};
use super::parking::Mode;
use super::wanted::wanted_of;
use crate::handover::wire::{Family, Label};
use crate::handover::{Offer, Order};
use crate::worker::PodSocket;

/// For steps under way, such as loading rules, to be done.
const REST: Duration = Duration::from_secs(8);

/// What became of an offer.
pub(super) enum Offered {
    /// Nobody took it; everything goes on.
    Back,
    /// Answered when this process has given up.
    Taken(oneshot::Sender<()>),
}

/// Brings all lives to rest and offers the sockets; they go on unless somebody takes them.
pub(super) async fn offer(node: &Node, lives: usize, order: Order, enrolment: &OwnedFd) -> Offered {
    let Order::Offer(reply) = order;
    node.parking.set(Mode::Parked);
    let outcome = match at_rest(node, lives, enrolment).await {
        Ok(sockets) => {
            let (taken, outcome) = oneshot::channel();
            let _ = reply.send(Ok(Offer { sockets, taken }));
            // Without a receiver, too, the sender is gone.
            outcome.await.ok()
        }
        Err(reason) => {
            let _ = reply.send(Err(reason));
            None
        }
    };
    match outcome {
        Some(done) => {
            node.parking.set(Mode::Retired);
            Offered::Taken(done)
        }
        None => {
            node.parking.set(Mode::Working);
            Offered::Back
        }
    }
}

async fn at_rest(node: &Node, lives: usize, enrolment: &OwnedFd) -> Result<Vec<(Label, OwnedFd)>, String> {
    if timeout(REST, node.parking.parked(lives)).await.is_err() {
        return Err(format!("not all {lives} pods come to rest within {REST:?}"));
    }
    node.kept.flush().map_err(|error| format!("the list of pods cannot be written: {error}"))?;
    let sockets = node.workers.sockets().await.map_err(|error| error.to_string())?;
    let mut labelled: Vec<(Label, OwnedFd)> = sockets.into_iter().filter_map(label).collect();
    let enrolment = enrolment.try_clone().map_err(|error| format!("the enrolment socket: {error}"))?;
    labelled.push((Label::Enrolment, enrolment));
    Ok(labelled)
}

fn label(of: PodSocket) -> Option<(Label, OwnedFd)> {
    let PodSocket { uid, netns, kind, socket } = of;
    let address = SockRef::from(&socket).local_addr().ok()?.as_socket()?;
    let family = match address {
        SocketAddr::V4(_) => Family::V4,
        SocketAddr::V6(_) => Family::V6,
    };
    Some((Label::Pod { workload: uid.to_string(), netns, kind, family, port: address.port() }, socket))
}

/// A pod whose sockets are held, and not served yet.
pub(super) struct TakenOver {
    pub known: Arc<KnownPod>,
    pub captured: Captured,
}

/// Takes up a pod of the process in charge. `None` when it left no sockets of it, or the pod is gone; what can be done
/// about the pod is done later, as after a restart.
pub(super) async fn take_over(node: &Arc<Node>, kept: &KeptPod) -> Option<TakenOver> {
    let capture = kept.capture.clone()?;
    let uid = capture.uid();
    if !node.inheritance.has(&uid) {
        return None;
    }
    let Wanted { workload, gateway } = wanted_of(&node.snapshots.load(), kept)?;
    let known = known(kept, open_again(kept).ok()??);
    let taken = async {
        let mut captured = Captured::new(node.clone(), known.clone(), uid, Some(capture))?;
        captured.take_over(&workload, gateway.as_deref()).await?;
        Ok(captured)
    };
    match taken.await {
        Ok(captured) => Some(TakenOver { known, captured }),
        Err(error) => {
            let error: super::captured::StepError = error;
            tracing::warn!(pod = kept.pod.uid, %error, "a pod is not taken over at once; trying again");
            None
        }
    }
}
