//! The process in charge: answers those that want to take over.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net;
use std::sync::Arc;
use std::time::Duration;

use culvert_identity::admin::AdminServer;
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Charge;
use super::connection::{Broken, Connection};
use super::wire::{Ask, Label, PROTOCOL, Tell, pages};
use crate::identity::Certificates;
use crate::worker::Workers;

/// For each word of the other process, and of ours to it.
const WORD: Duration = Duration::from_secs(5);
/// For the new process to hold all sockets: its pods are taken up before.
const TAKING: Duration = Duration::from_secs(20);
/// For the pods' manager to come to rest.
const REST: Duration = Duration::from_secs(10);
/// For the tasks that write files to write what they have.
const LAST_WRITES: Duration = Duration::from_secs(3);
/// Conversations at once; only one of them takes.
const CONVERSATIONS: usize = 8;
const ACCEPT_RETRY: Duration = Duration::from_millis(200);
/// Who wants to take over asks again within this time while it prepares.
const PREPARING: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What the manager of the pods is asked.
#[derive(Debug)]
pub enum Order {
    /// Come to rest, and offer what there is; an error says why not.
    Offer(oneshot::Sender<Result<Offer, String>>),
}

/// The pods are at rest. When this is dropped they go on; when it is taken they are another process's.
#[derive(Debug)]
pub struct Offer {
    pub sockets: Vec<(Label, OwnedFd)>,
    /// Answered when the manager has given up.
    pub taken: oneshot::Sender<oneshot::Sender<()>>,
}

/// Who wants to take over.
#[derive(Clone, Debug)]
pub struct Heirs(watch::Sender<Option<Instant>>);

impl Default for Heirs {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Heirs {
    fn seen(&self) {
        self.0.send_replace(Some(Instant::now()));
    }

    fn is_one_preparing(&self) -> bool {
        self.0.borrow().is_some_and(|seen| seen.elapsed() < PREPARING)
    }

    /// Waits up to `patience` for somebody who takes over, or until `needless` returns; then for who is about to. Returns when
    /// there is nobody.
    pub async fn gone(&self, patience: Duration, needless: impl Future<Output = ()>) {
        let _ = timeout(patience, needless).await;
        while self.is_one_preparing() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// What is given away, and what must end before.
pub struct Giver {
    pub charge: Charge,
    pub heirs: Heirs,
    pub certificates: Certificates,
    pub workers: Workers,
    pub manager: mpsc::Sender<Order>,
    pub admin: Arc<Mutex<Option<AdminServer>>>,
    /// Tasks that only the process in charge may run: how they are told to end, and whether they have.
    pub upkeep: (CancellationToken, TaskTracker),
}

impl Giver {
    /// Serves until another process has taken over, and then keeps its connection open: that this process has ended is
    /// how the other one knows that its connections have. Ends when cancelled.
    ///
    /// # Errors
    /// When the runtime does not take the socket.
    pub async fn serve(self, socket: OwnedFd, cancel: CancellationToken) -> io::Result<()> {
        let duplicate = socket.try_clone()?;
        let listener = UnixListener::from_std(net::UnixListener::from(socket))?;
        let giver = Arc::new(self);
        let (places, taking) = (Arc::new(Semaphore::new(CONVERSATIONS)), Arc::new(Semaphore::new(1)));
        let duplicate = Arc::new(duplicate);
        let mut conversations = JoinSet::new();
        // Of the one that has taken.
        let mut kept: Option<Connection> = None;
        loop {
            while let Some(ended) = conversations.try_join_next() {
                kept = kept.or(ended.ok().flatten());
            }
            let accept = async {
                let place = places.clone().acquire_owned().await.ok()?;
                Some((listener.accept().await, place))
            };
            let accepted = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = giver.charge.given_up() => break,
                accepted = accept => accepted,
            };
            match accepted {
                Some((Ok((stream, _)), place)) => {
                    let (giver, taking, own) = (giver.clone(), taking.clone(), duplicate.clone());
                    conversations.spawn(async move {
                        let _place = place;
                        giver.converse(stream, &taking, &own).await
                    });
                }
                Some((Err(error), _)) => {
                    tracing::warn!(%error, "cannot accept on the hand-over socket");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
                None => return Ok(()),
            }
        }
        drop((listener, duplicate));
        while let Some(ended) = cancel.run_until_cancelled(conversations.join_next()).await.flatten() {
            kept = kept.or(ended.ok().flatten());
        }
        cancel.cancelled().await;
        drop(kept);
        Ok(())
    }

    /// One conversation; what is returned is to be kept open.
    async fn converse(
        &self,
        stream: tokio::net::UnixStream,
        taking: &Semaphore,
        own: &OwnedFd,
    ) -> Option<Connection> {
        let connection = match Connection::new(stream) {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "the hand-over socket was opened by a stranger, who gets nothing");
                return None;
            }
        };
        match self.answer(&connection, taking, own).await {
            Ok(Ended::Asked) | Err(Broken::Closed) => None,
            Ok(Ended::Taken) => Some(connection),
            Err(error) => {
                tracing::warn!(%error, "a process that wanted to take over is refused; this one goes on");
                let refused = Tell::Refused { reason: error.to_string() };
                // Who is not there any more need not be told.
                let _ = connection.send(&refused, &[], WORD).await;
                None
            }
        }
    }

    async fn answer(
        &self,
        connection: &Connection,
        taking: &Semaphore,
        own: &OwnedFd,
    ) -> Result<Ended, Broken> {
        let (hello, _) = connection.receive(WORD).await?;
        let Ask::Hello { protocol, version } = hello else { return Err(Broken::OutOfTurn) };
        if protocol != PROTOCOL {
            let reason =
                format!("hand-over protocol {protocol} of version {version}; this process speaks {PROTOCOL}");
            return Err(Broken::Refused(reason));
        }
        if !self.charge.is_held() {
            return Err(Broken::Refused("another process has just taken over; ask that one".into()));
        }
        self.heirs.seen();
        let welcome = Tell::Welcome { version: env!("CARGO_PKG_VERSION").to_owned() };
        connection.send(&welcome, &[], WORD).await?;
        match connection.receive(WORD).await?.0 {
            Ask::Identities => self.tell_identities(connection).await.map(|()| Ended::Asked),
            Ask::Sockets => match taking.try_acquire() {
                Ok(_taking) => self.give(connection, own).await.map(|()| Ended::Taken),
                Err(_) => Err(Broken::Refused("another process is taking over".into())),
            },
            Ask::Hello { .. } | Ask::Taken => Err(Broken::OutOfTurn),
        }
    }

    async fn tell_identities(&self, connection: &Connection) -> Result<(), Broken> {
        let statuses = self.certificates.statuses().into_iter();
        let in_force = statuses.filter(|status| status.not_after.is_some() && status.leases > 0);
        let mut pages = pages(in_force.map(|status| status.identity.to_string())).into_iter().peekable();
        while let Some(identities) = pages.next() {
            let tell = Tell::Identities { identities, more: pages.peek().is_some() };
            connection.send(&tell, &[], WORD).await?;
        }
        Ok(())
    }

    /// Until the other process has confirmed, everything here can be taken back by dropping the offer.
    async fn give(&self, connection: &Connection, own: &OwnedFd) -> Result<(), Broken> {
        let Offer { mut sockets, taken } = self.offer().await?;
        sockets.push((Label::HandOver, own.try_clone()?));
        sockets.extend(self.admin_socket()?);
        let count = sockets.len();
        send_sockets(connection, sockets).await?;
        // What has been said counts, also when this process was stopped in between.
        match connection.receive(TAKING).await {
            Ok((Ask::Taken, _)) => {}
            Ok(_) => return Err(Broken::OutOfTurn),
            Err(error) => {
                tracing::warn!(%error, "a process that was taking over is gone; this one goes on as before");
                return Err(error);
            }
        }
        tracing::info!(sockets = count, "another process has taken over; what is open here goes on");
        self.charge.give_up();
        let (done, given_up) = oneshot::channel();
        if taken.send(done).is_ok() {
            let _ = timeout(REST, given_up).await;
        }
        let (cancel, tasks) = &self.upkeep;
        cancel.cancel();
        tasks.close();
        if timeout(LAST_WRITES, tasks.wait()).await.is_err() {
            tracing::warn!("the last state could not be written before another process took over");
        }
        self.workers.retire().await;
        *self.admin.lock() = None;
        if let Err(error) = connection.send(&Tell::Yours, &[], WORD).await {
            tracing::error!(%error, "the process that has taken over does not answer: the node waits for the next one");
        }
        Ok(())
    }

    async fn offer(&self) -> Result<Offer, Broken> {
        let (reply, offered) = oneshot::channel();
        let offered = async {
            self.manager.send(Order::Offer(reply)).await.ok()?;
            offered.await.ok()
        };
        match timeout(REST, offered).await {
            Ok(Some(Ok(offer))) => Ok(offer),
            Ok(Some(Err(reason))) => Err(Broken::Refused(reason)),
            Ok(None) => Err(Broken::Refused("this process is ending".into())),
            Err(_) => Err(Broken::Refused(format!("the pods do not come to rest within {REST:?}"))),
        }
    }

    fn admin_socket(&self) -> io::Result<Option<(Label, OwnedFd)>> {
        let admin = self.admin.lock();
        let Some(admin) = admin.as_ref() else { return Ok(None) };
        let address: SocketAddr = admin.address();
        Ok(Some((Label::Admin { address }, admin.listener()?.into())))
    }
}

enum Ended {
    Asked,
    Taken,
}

async fn send_sockets(connection: &Connection, sockets: Vec<(Label, OwnedFd)>) -> Result<(), Broken> {
    let (labels, descriptors): (Vec<Label>, Vec<OwnedFd>) = sockets.into_iter().unzip();
    let mut descriptors = descriptors.iter();
    let mut pages = pages(labels).into_iter().peekable();
    while let Some(sockets) = pages.next() {
        let along: Vec<BorrowedFd<'_>> = descriptors.by_ref().take(sockets.len()).map(AsFd::as_fd).collect();
        let tell = Tell::Sockets { sockets, more: pages.peek().is_some() };
        connection.send(&tell, &along, WORD).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn took(future: impl Future<Output = ()>) -> Duration {
        let start = Instant::now();
        future.await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn somebody_is_waited_for_as_long_as_patience_lasts_or_is_needed() {
        let (heirs, long) = (Heirs::default(), Duration::from_secs(60));
        assert!(took(heirs.gone(long, std::future::pending())).await >= long);
        let needless = took(heirs.gone(long, tokio::time::sleep(Duration::from_secs(3)))).await;
        assert!(needless < long, "{needless:?}: nobody would miss anything");
        assert!(took(heirs.gone(Duration::ZERO, std::future::pending())).await < PREPARING);
    }

    #[tokio::test(start_paused = true)]
    async fn who_prepares_is_waited_for_whatever_patience_is_left() {
        let heirs = Heirs::default();
        heirs.seen();
        assert!(took(heirs.gone(Duration::ZERO, std::future::pending())).await >= PREPARING);
    }
}
