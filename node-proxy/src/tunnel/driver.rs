//! Runs an open tunnel: its frames, its keep-alive, its windows.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::{Ping, PingPong, client};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use super::window::Window;
use super::{PING_EVERY, PING_TIMEOUT};

/// Why a tunnel ended.
#[derive(Debug, Error)]
pub enum TunnelEnd {
    #[error(transparent)]
    Http2(#[from] h2::Error),
    #[error("no answer to a PING within {0:?}")]
    Silent(Duration),
}

/// Resolves when the peer does not answer. The first PING goes out at once and must be answered by `first`: so a peer
/// that never sends its settings is found out.
pub(super) async fn silence(mut ping: PingPong, first: Duration) -> TunnelEnd {
    let mut patience = first;
    loop {
        match tokio::time::timeout(patience, ping.ping(Ping::opaque())).await {
            Ok(Ok(_)) => tokio::time::sleep(PING_EVERY).await,
            Ok(Err(error)) => return error.into(),
            Err(_) => return TunnelEnd::Silent(patience),
        }
        patience = PING_TIMEOUT;
    }
}

/// Runs the client's end until the tunnel has ended: because of an error, or because nobody holds it any more.
pub(super) async fn run_client<T>(
    mut connection: Box<client::Connection<T, Bytes>>,
    window: Rc<Window>,
    first_answer: Duration,
) -> Result<(), TunnelEnd>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let Some(ping) = connection.ping_pong() else { return Ok((&mut *connection).await?) };
    let mut silence = pin!(silence(ping, first_answer));
    loop {
        tokio::select! {
            biased;
            ended = &mut *connection => return Ok(ended?),
            size = window.due() => {
                // Fails while the last change is not acknowledged; a stream that still wants one asks again.
                if connection.set_initial_window_size(size).is_ok() {
                    window.applied(size);
                }
            }
            end = &mut silence => return Err(end),
        }
    }
}
