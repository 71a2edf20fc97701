//! After 101: the connection carries another protocol, WebSocket most often, and is copied like any other.

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

use super::client::Switched;
use super::serve::ClientConnection;
use super::upstream::Raw;
use crate::balance::InFlight;
use crate::copy::{Copy, Direction, Side};
use crate::limits::RequestPermit;
use crate::reason::Reason;
use crate::telemetry::{Failure, RequestRecord};
use crate::worker::socket::CarriedSocket;

/// A switch that both sides have agreed to. The request is counted when it ends.
pub struct Agreed {
    transport: oneshot::Receiver<Switched>,
    pub record: Option<RequestRecord>,
    pub in_flight: Option<(InFlight, RequestPermit)>,
}

impl Agreed {
    pub fn new(transport: oneshot::Receiver<Switched>) -> Self {
        Self { transport, record: None, in_flight: None }
    }

    /// Copies until both sides have closed. `sent` is what the client said beyond its request.
    pub async fn carry(self, connection: &ClientConnection, mut client: CarriedSocket, sent: Bytes) {
        let Self { transport, record, in_flight: _in_flight } = self;
        let Ok(Switched { mut io, received, record: carried }) = transport.await else {
            return end(
                record,
                Err(Failure::new(Reason::BackendReset, "the connection was lost when it switched")),
            );
        };
        let early = async {
            io.write_all(&sent).await?;
            client.write_all(&received).await
        };
        if let Err(error) = early.await {
            let failure = Failure::new(Reason::PeerReset, format!("when the connection switched: {error}"));
            carried.finish(Err(failure.clone()));
            return end(record, Err(failure));
        }
        let count = |direction, bytes| match direction {
            Direction::ToServer => carried.received(bytes),
            Direction::ToClient => carried.sent(bytes),
        };
        let outbound = &connection.outbound;
        let copy = Copy::new(&outbound.pod.pod.limits, outbound.timeouts().half_closed_idle, &count);
        let result = match io.into_raw() {
            Raw::Tunnel(stream, _lease) => copy.tunnelled(client, Side::Client, stream).await,
            Raw::Plain(server) => copy.between(client, server).await,
        };
        let result = result.map_err(|error| Failure::new(error.reason(), error));
        carried.finish(result.clone());
        end(record, result);
    }
}

fn end(record: Option<RequestRecord>, result: Result<(), Failure>) {
    let Some(mut record) = record else { return };
    if let Err(failure) = result {
        record.fail(failure);
    }
    record.finish();
}
