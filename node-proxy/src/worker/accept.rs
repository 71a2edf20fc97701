//! Accepts connections: one loop per listener, on the pod's home worker.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::pod::PodHere;
use super::thread::{Context, Handed};
use super::{load, thread};
use crate::handover::wire;
use crate::limits::ConnectionPermit;
use crate::outbound::gateway::GatewayPort;

/// Which of a pod's listeners accepted a connection.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Outbound,
    Inbound,
    Hbone,
    Gateway(GatewayPort),
}

impl Kind {
    pub fn to_wire(&self) -> wire::Kind {
        match self {
            Self::Outbound => wire::Kind::Outbound,
            Self::Inbound => wire::Kind::Inbound,
            Self::Hbone => wire::Kind::Hbone,
            Self::Gateway(_) => wire::Kind::Gateway,
        }
    }
}

/// Connections accepted in a row before the other tasks of the worker get a turn.
const IN_A_ROW: usize = 16;
/// Connections taken from the queue of a listener that is closed.
const MOST_WAITING: usize = 4096;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// What an error of `accept` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// One connection died while it waited; the next one is as good as ever.
    Connection,
    /// Descriptors or memory are exhausted: pause, connections wait in the listener's queue.
    Exhausted,
    /// The listener itself.
    Listener,
}

fn trouble(error: &io::Error) -> Trouble {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Trouble::Exhausted,
        Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP | Errno::FAULT) => {
            Trouble::Listener
        }
        _ => Trouble::Connection,
    }
}

/// Accepts until the pod is removed, `stop` says so, or the listener is unusable; not before this process is in charge.
pub(super) async fn run(
    context: Rc<Context>,
    pod: Rc<PodHere>,
    listener: Rc<TcpListener>,
    kind: Kind,
    stop: CancellationToken,
) {
    tokio::select! {
        () = context.shared.charge.begun() => {}
        () = stop.cancelled() => return,
        () = pod.cancel.cancelled() => return,
    }
    let mut pause = FIRST_PAUSE;
    let mut in_a_row = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return take_waiting(&context, &pod, listener, &kind),
            () = pod.cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                pause = FIRST_PAUSE;
                place(&context, &pod, socket, peer, kind.clone());
            }
            Err(error) => match trouble(&error) {
                Trouble::Connection => {}
                Trouble::Exhausted => {
                    context.shared.telemetry.accept_paused();
                    if pause == FIRST_PAUSE {
                        tracing::warn!(workload = %pod.pod.uid, %error, "cannot accept connections, trying again");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Trouble::Listener => {
                    tracing::error!(workload = %pod.pod.uid, ?kind, %error, "a listener is unusable");
                    return;
                }
            },
        }
        in_a_row += 1;
        if in_a_row >= IN_A_ROW {
            in_a_row = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// Connections that the kernel has established already would be reset when a listener is closed. Clients of a Gateway are
/// outside the mesh and see such a reset; captured ones are dropped with everything else that drains.
fn take_waiting(context: &Rc<Context>, pod: &Rc<PodHere>, listener: Rc<TcpListener>, kind: &Kind) {
    // They wait for the process that has taken over.
    if context.shared.charge.is_given_up() {
        return;
    }
    let Kind::Gateway(_) = kind else { return };
    let Some(Ok(listener)) = Rc::into_inner(listener).map(TcpListener::into_std) else { return };
    // Not without end: a flood must not hold the worker.
    for _ in 0..MOST_WAITING {
        let Ok((socket, peer)) = listener.accept() else { return };
        if socket.set_nonblocking(true).is_ok()
            && let Ok(socket) = TcpStream::from_std(socket)
        {
            place(context, pod, socket, peer, kind.clone());
        }
    }
}

/// Starts serving the connection, here or on a less busy worker. Over the workload's limit it is refused.
fn place(context: &Rc<Context>, pod: &Rc<PodHere>, socket: TcpStream, peer: SocketAddr, kind: Kind) {
    let permit = match pod.pod.limits.connection() {
        Ok(permit) => permit,
        Err(limit) => return thread::refuse_over_limit(context, pod, socket, peer, kind, limit),
    };
    let busy: Vec<u32> = context.peers.iter().map(|peer| peer.load.busy()).collect();
    let chosen = load::choose(context.index, &busy);
    if chosen == context.index {
        return thread::serve(context, pod, socket, peer, kind, permit);
    }
    match hand_over(context, chosen, pod, socket, peer, &kind, permit) {
        Ok(()) => {}
        Err(Some((socket, permit))) => thread::serve(context, pod, socket, peer, kind, permit),
        Err(None) => {}
    }
}

/// Gives the socket back when the other worker's queue is full, and nothing when the socket is dead.
fn hand_over(
    context: &Context,
    chosen: usize,
    pod: &PodHere,
    socket: TcpStream,
    peer: SocketAddr,
    kind: &Kind,
    permit: ConnectionPermit,
) -> Result<(), Option<(TcpStream, ConnectionPermit)>> {
    let Some(sender) = context.peers[chosen].handed.upgrade() else { return Err(Some((socket, permit))) };
    let Ok(place) = sender.try_reserve() else { return Err(Some((socket, permit))) };
    let socket = socket.into_std().map_err(|_| None)?;
    place.send(Handed { state: pod.state.clone(), socket, peer, kind: kind.clone(), permit });
    context.shared.telemetry.connection_handed_over();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exhaustion_pauses_and_a_dead_connection_does_not() {
        for (errno, expected) in [
            (Errno::MFILE, Trouble::Exhausted),
            (Errno::NFILE, Trouble::Exhausted),
            (Errno::NOBUFS, Trouble::Exhausted),
            (Errno::CONNABORTED, Trouble::Connection),
            (Errno::NETUNREACH, Trouble::Connection),
            (Errno::PERM, Trouble::Connection),
            (Errno::BADF, Trouble::Listener),
        ] {
            assert_eq!(trouble(&errno.into()), expected, "{errno:?}");
        }
    }
}
