//! Starting after another process of the same node: by taking over from it, or without it.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::Duration;

use culvert_identity::admin::Check;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Flags, Parts, complete_state, tasks};
use crate::handover::{Inheritance, Lost, Predecessor, Succession};
use crate::pods::{Manager, ManagerError};
use crate::worker::Workers;

/// After a failed attempt the process in charge has this long for its own work.
const RETRY: Duration = Duration::from_secs(2);

/// What a process starts with.
pub(super) struct Start {
    pub manager: Manager,
    /// Of the hand-over socket.
    pub hand_over: Option<OwnedFd>,
    pub admin: Option<(SocketAddr, TcpListener)>,
}

/// Takes over from the process in charge, if there is one, and is in charge when it returns. Until then that one is, and goes
/// on whatever happens here.
pub(super) async fn start(
    predecessor: Option<Predecessor>,
    flags: &Flags,
    parts: &Parts,
    workers: &Workers,
    (check, state): (&Check, &Check),
) -> Result<Start, ManagerError> {
    if let Some(predecessor) = predecessor {
        check.missing("the last node proxy is in charge until this one can take over");
        complete_state(&parts.snapshots, state).await;
        while let Ok(leases) = predecessor.certificates(&parts.certificates).await.inspect_err(|Lost(why)| {
            warn!(why, "the last node proxy does not hand over; starting without it");
        }) {
            match take_over(&predecessor, flags, parts, workers).await {
                Ok(start) => {
                    drop(leases);
                    info!("took over from the last node proxy, which carries what it had accepted");
                    return Ok(start);
                }
                Err(Lost(why)) => {
                    warn!(why, "the last node proxy has not handed over; asking again");
                    sleep(RETRY).await;
                }
            }
        }
    }
    let succession = Succession { charge: parts.charge.clone(), ..Succession::none() };
    let manager = tasks::manager(flags, parts, workers, succession)?;
    Ok(Start { manager, hand_over: None, admin: None })
}

async fn take_over(
    predecessor: &Predecessor,
    flags: &Flags,
    parts: &Parts,
    workers: &Workers,
) -> Result<Start, Lost> {
    let (taking, mut inheritance): (_, Inheritance) = predecessor.take().await?;
    let (hand_over, admin) = (inheritance.hand_over.take(), inheritance.admin.take());
    let last_gone = CancellationToken::new();
    let succession = Succession { charge: parts.charge.clone(), inheritance, last_gone: last_gone.clone() };
    let mut manager =
        tasks::manager(flags, parts, workers, succession).map_err(|error| Lost(error.to_string()))?;
    manager.take_over().await;
    match taking.confirm(last_gone).await {
        Ok(()) => {
            parts.charge.take();
            Ok(Start { manager, hand_over, admin })
        }
        Err(lost) => {
            manager.abandon().await;
            Err(lost)
        }
    }
}
