//! How a workload is to be reached while nobody has said so yet: never in plaintext because news of it is late.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::time::Instant;

use super::Outbound;
use crate::intercept::outbound_socket;
use crate::state::model::{TunnelProtocol, Workload};
use crate::worker::socket::connect;

impl Outbound {
    /// The workload once it is decided how to reach it, or as it was when that took too long: the controller has just
    /// started and has not heard of the workload's node yet.
    pub(super) async fn decided(&self, workload: &Arc<Workload>, address: IpAddr) -> Arc<Workload> {
        if self.may_be_enrolled_since(workload) {
            let tunnel = self.asked(address).await;
            return Arc::new(Workload { tunnel, ..Workload::clone(workload) });
        }
        if workload.tunnel != TunnelProtocol::Undecided {
            return workload.clone();
        }
        let mut changed = self.context.shared.snapshots.changed();
        let deadline = Instant::now() + self.timeouts().unknown_destination;
        loop {
            let snapshot = self.context.shared.snapshots.load_full();
            match snapshot.workload(&workload.uid) {
                Some(newer) if newer.tunnel != TunnelProtocol::Undecided => return newer.clone(),
                Some(_) | None => {}
            }
            match tokio::time::timeout_at(deadline, changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return workload.clone(),
            }
        }
    }

    /// What an earlier process kept may be older than the enrolment of a pod of another node, and no controller has said
    /// otherwise yet.
    fn may_be_enrolled_since(&self, workload: &Workload) -> bool {
        self.context.shared.snapshots.load().is_stale()
            && workload.tunnel == TunnelProtocol::Plaintext
            && workload.identity.is_some()
            && workload.own.is_none()
            && !workload.host_network
    }

    /// Asks the pod itself. Only a refusal says that it is not enrolled: while the node proxy of an enrolled pod is down,
    /// nobody answers at all.
    async fn asked(&self, address: IpAddr) -> TunnelProtocol {
        let pod = &self.pod.pod;
        let to = SocketAddr::new(address, pod.interception.hbone_port);
        let Ok(socket) = outbound_socket(&pod.netns, to, &pod.interception) else {
            return TunnelProtocol::Undecided;
        };
        match connect(socket, to, Instant::now() + self.timeouts().unknown_destination).await {
            Ok(_) => TunnelProtocol::Hbone,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => TunnelProtocol::Plaintext,
            Err(_) => TunnelProtocol::Undecided,
        }
    }
}
