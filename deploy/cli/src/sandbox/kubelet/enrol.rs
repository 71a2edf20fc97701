//! Handing a pod's namespace to its node's proxy before anything runs in it, as the CNI plugin does.

use culvert_api::enrolment::{self, PodRef, Reply, Request};
use culvert_objects::enrolment::wanted;
use culvert_objects::{Kind, Object};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tracing::warn;

use super::board::Board;
use super::stop::Stop;
use crate::sandbox::files::Files;
use crate::sandbox::namespaces::Netns;
use crate::sandbox::store::Store;

/// The node proxy answers within 10 s; this is the deadline of the socket.
const ANSWER: Duration = Duration::from_secs(15);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(250);
/// How long a pod that is not to be enrolled waits for the proxy's answer before it starts without.
const PATIENCE: Duration = Duration::from_millis(500);

/// Reason of the pod condition while the mesh is not there for a pod that needs it.
const WAITING: &str = "WaitingForMesh";

/// What is handed over.
#[derive(Clone)]
pub struct Handover {
    pub pod: PodRef,
    pub node: String,
    pub netns: Netns,
    pub addresses: Vec<IpAddr>,
}

/// Why a pod has not been taken over.
struct NotYet {
    component: String,
    message: String,
    remedy: String,
}

impl Handover {
    /// Hands the pod over and returns when it may start. A pod that the rule of enrolment leaves out starts also
    /// without an answer, and is handed over as soon as somebody takes it. Returns early when the pod is to stop.
    pub async fn add(&self, store: &Store, board: &Board, stop: &Stop) {
        let asked = format!("node-proxy/{}: has not answered yet; it waits for controller and CA", self.node);
        let (tell, mut told) = watch::channel(asked);
        let mut taken = tokio::spawn(self.clone().until_taken(tell, stop.clone()));
        loop {
            tokio::select! {
                _ = &mut taken => return,
                () = stop.asked() => return,
                () = tokio::time::sleep(PATIENCE) => {}
            }
            if !self.is_wanted(store) {
                return;
            }
            let message = told.borrow_and_update().clone();
            board.update(|facts| facts.hold(WAITING, message)).await;
        }
    }

    /// Tells the node's proxy that the pod is gone. A proxy that is not there finds out by itself.
    pub async fn remove(&self) {
        let request = Request::Remove { pod: self.pod.clone() };
        if let Err(error) = call(self.socket(), request, None).await {
            warn!(pod = %self.pod.name, namespace = %self.pod.namespace, %error, "the node proxy was not told that a pod is gone");
        }
    }

    async fn until_taken(self, tell: watch::Sender<String>, stop: Stop) {
        while !stop.is_asked() {
            match self.try_once().await {
                Ok(()) => return,
                Err(NotYet { component, message, remedy }) => {
                    tell.send_replace(format!("{component}: {message}; {remedy}"));
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn try_once(&self) -> Result<(), NotYet> {
        let request = Request::Add {
            pod: self.pod.clone(),
            netns_path: self.netns.path().to_owned(),
            addresses: self.addresses.clone(),
        };
        match call(self.socket(), request, Some(self.netns.clone())).await {
            Ok(Reply::Enrolled | Reply::NotEnrolled | Reply::Removed) => Ok(()),
            Ok(Reply::Wait { component, message, remedy }) => Err(NotYet { component, message, remedy }),
            Ok(Reply::Invalid { message }) => Err(NotYet {
                component: format!("node-proxy/{}", self.node),
                message: format!("refused the pod: {message}"),
                remedy: "this is a fault of the sandbox or the node proxy".to_owned(),
            }),
            Err(error) => Err(NotYet {
                component: format!("node-proxy/{}", self.node),
                message: format!("does not answer ({error})"),
                remedy: format!("see `culvert sandbox logs node-proxy/{}`", self.node),
            }),
        }
    }

    fn socket(&self) -> PathBuf {
        Files.enrolment_socket(&self.node)
    }

    fn is_wanted(&self, store: &Store) -> bool {
        let objects = store.objects();
        let pod = objects.find(Kind::Pod, &self.pod.namespace, &self.pod.name);
        let namespace = objects.namespace(&self.pod.namespace);
        pod.is_some_and(|pod| wanted(pod, namespace.map(AsRef::<Object>::as_ref)).is_enrolled())
    }
}

async fn call(socket: PathBuf, request: Request, netns: Option<Netns>) -> io::Result<Reply> {
    let call = move || enrolment::call(&socket, &request, netns.as_ref().map(AsFd::as_fd), ANSWER);
    tokio::task::spawn_blocking(call).await.map_err(io::Error::other)?
}
