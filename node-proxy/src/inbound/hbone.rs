//! One CONNECT stream of a tunnel to the pod.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::FutureExt;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Request, Response, StatusCode};

use super::{Parties, connect_application, is_proxy_port, timeouts};
use crate::copy::{Copy, CopyError, Direction, Side, TunnelStream, write_some};
use crate::limits::ConnectionPermit;
use crate::reason::Reason;
use crate::state::model::Workload;
use crate::telemetry::{ConnectionMeta, ConnectionRecord, Failure, Security};
use crate::tunnel::early::{MOST_EARLY, TURNS_TOGETHER};
use crate::tunnel::headers;
use crate::tunnel::server::Client;
use crate::tunnel::window::Window;
use crate::worker::pod::PodHere;
use crate::worker::socket::CarriedSocket;
use crate::worker::{Context, spawn_bounded};

/// Bound of the future that exists once per stream.
const STREAM_FUTURE: usize = 1888;

/// A stream that a client has opened.
pub struct Stream {
    pub request: Request<RecvStream>,
    pub respond: SendResponse<Bytes>,
    pub window: Rc<Window>,
}

/// What answers a stream that is refused.
struct Refusal {
    status: StatusCode,
    failure: Failure,
}

impl Refusal {
    fn new(status: StatusCode, reason: Reason, message: impl std::fmt::Display) -> Self {
        Self { status, failure: Failure::new(reason, message) }
    }
}

/// Serves the stream in a task of its own, until it ends, is cut, or the pod is removed.
pub fn spawn(context: Rc<Context>, pod: Rc<PodHere>, client: Rc<Client>, stream: Stream) {
    // Boxed, because most of what it needs is not needed while the stream is carried.
    let opening = Box::pin(open(context, pod.clone(), client, stream));
    spawn_bounded::<STREAM_FUTURE, _>(async move {
        let _carrying = pod.state.carry();
        let serving = pin!(async {
            if let Some(opened) = opening.await {
                carry(&pod, opened).await;
            }
        });
        pod.inbound().run_until_cancelled(serving).await;
    });
}

/// A stream whose CONNECT is answered.
struct Opened {
    application: CarriedSocket,
    permit: ConnectionPermit,
    stream: TunnelStream,
    /// Counts what was delivered before the answer already.
    record: ConnectionRecord,
}

/// `None` when the stream is refused, which is accounted for.
async fn open(context: Rc<Context>, pod: Rc<PodHere>, client: Rc<Client>, stream: Stream) -> Option<Opened> {
    let Stream { request, mut respond, window } = stream;
    let telemetry = &context.shared.telemetry;
    let own = pod.pod.workload.load_full();
    let meta = meta(&context, own.clone(), &client, &request);
    let admitted = tokio::select! {
        biased;
        _ = poll_fn(|cx| respond.poll_reset(cx)) => {
            telemetry.refused(meta, Reason::PeerReset, &"the client reset the stream before it was answered");
            return None;
        }
        admitted = admit(&pod, &client, &own, &request) => admitted,
    };
    let Admitted { application, permit } = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            let mut response = Response::new(());
            *response.status_mut() = refusal.status;
            // Fails only if the client or the tunnel is gone.
            let _ = respond.send_response(response, true);
            telemetry.refused(meta, refusal.failure.reason, &refusal.failure.message);
            return None;
        }
    };
    let mut recv = request.into_body();
    let Delivered { carried, early } = match deliver_early(&application, &mut recv).await {
        Ok(delivered) => delivered,
        Err(error) => {
            telemetry.refused(meta, error.reason(), &error);
            return None;
        }
    };
    match answer(&mut respond, &own) {
        Ok(send) => {
            let record = telemetry.open(meta);
            if carried > 0 {
                record.received(carried as u64);
            }
            let stream = TunnelStream { send, recv, window, early };
            Some(Opened { application, permit, stream, record })
        }
        Err(error) => {
            telemetry.refused(meta, Reason::Tunnel, &error);
            None
        }
    }
}

fn meta(
    context: &Context,
    own: Arc<Workload>,
    client: &Client,
    request: &Request<RecvStream>,
) -> ConnectionMeta {
    let parties = Parties {
        client: client.address,
        identity: Some(client.identity.clone()),
        destination: headers::destination(request).unwrap_or(client.local),
        hbone: Some(client.local),
        security: Security::MutualTls,
    };
    super::meta(context, own, parties)
}

/// A stream that may be carried, with its connection to the application.
struct Admitted {
    application: CarriedSocket,
    permit: ConnectionPermit,
}

async fn admit(
    pod: &PodHere,
    client: &Client,
    own: &Workload,
    request: &Request<RecvStream>,
) -> Result<Admitted, Refusal> {
    let bad =
        |message: &dyn std::fmt::Display| Refusal::new(StatusCode::BAD_REQUEST, Reason::BadConnect, message);
    let destination = headers::destination(request).map_err(|error| bad(&error))?;
    if destination.ip() != client.local.ip() {
        return Err(bad(&format!("{destination} is not an address of this pod")));
    }
    if is_proxy_port(destination.port(), &pod.pod.interception) {
        let message = format!("{destination} is a port of the proxy");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, Reason::ProxyPort, message));
    }
    let unavailable = |failure| Refusal { status: StatusCode::SERVICE_UNAVAILABLE, failure };
    let permit = pod
        .pod
        .limits
        .connection()
        .map_err(|limit| unavailable(Failure::new(Reason::WorkloadLimit, limit)))?;
    let connect = timeouts(own).connect;
    let application = connect_application(&pod.pod, client.address.ip(), destination, connect)
        .await
        .map_err(unavailable)?;
    Ok(Admitted { application, permit })
}

/// What became of the bytes that came before the answer.
#[derive(Default)]
struct Delivered {
    carried: usize,
    /// Those that are still to be delivered.
    early: Bytes,
}

/// Delivers what a client has said already. Such a client waits for what the application says, so the answer to its CONNECT
/// is kept back a moment to travel with that.
///
/// # Errors
/// When the application or the tunnel is lost.
async fn deliver_early(application: &CarriedSocket, recv: &mut RecvStream) -> Result<Delivered, CopyError> {
    // An end or a reset is told again to whoever reads next.
    let Some(Some(Ok(mut early))) = poll_fn(|cx| recv.poll_data(cx)).now_or_never() else {
        return Ok(Delivered::default());
    };
    let carried =
        write_some(application, &early).map_err(|error| CopyError::Write { side: Side::Server, error })?;
    early.advance(carried);
    recv.flow_control()
        .release_capacity(carried)
        .map_err(|error| CopyError::TunnelLost { side: Side::Client, error })?;
    let mut turns = if early.is_empty() && carried < MOST_EARLY { TURNS_TOGETHER } else { 0 };
    while turns > 0 {
        turns = tokio::select! {
            biased;
            // An error is told again to whoever reads next.
            _ = application.readable() => 0,
            more = poll_fn(|cx| recv.poll_data(cx)) => {
                early = more.and_then(Result::ok).unwrap_or_default();
                0
            }
            () = tokio::task::yield_now() => turns - 1,
        };
    }
    Ok(Delivered { carried, early })
}

fn answer(respond: &mut SendResponse<Bytes>, own: &Workload) -> Result<SendStream<Bytes>, h2::Error> {
    let mut response = Response::new(());
    *response.headers_mut() = headers::response_headers(own);
    respond.send_response(response, false)
}

async fn carry(pod: &PodHere, opened: Opened) {
    let Opened { application, permit: _permit, stream, record } = opened;
    let count = |direction, bytes| match direction {
        Direction::ToServer => record.received(bytes),
        Direction::ToClient => record.sent(bytes),
    };
    let idle = timeouts(&pod.pod.workload.load()).half_closed_idle;
    let copy = Copy::new(&pod.pod.limits, idle, &count);
    let result = copy.tunnelled(application, Side::Server, stream).await;
    record.close(result.map_err(|error| Failure::new(error.reason(), error)));
}
