//! One CONNECT stream of a tunnel to the pod.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Request, Response, StatusCode};

use super::{Parties, connect_application, is_proxy_port, timeouts};
use crate::copy::{Copy, Direction, Side, TunnelStream};
use crate::limits::ConnectionPermit;
use crate::reason::Reason;
use crate::state::model::Workload;
use crate::telemetry::{ConnectionMeta, Failure, Security};
use crate::tunnel::headers;
use crate::tunnel::server::Client;
use crate::tunnel::window::Window;
use crate::worker::pod::PodHere;
use crate::worker::socket::CarriedSocket;
use crate::worker::{Context, spawn_bounded};

/// Bound of the future that exists once per stream.
const STREAM_FUTURE: usize = 3584;

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
    spawn_bounded::<STREAM_FUTURE, _>(async move {
        let cancel = pod.inbound();
        let serving = pin!(serve(context, pod, client, stream));
        cancel.run_until_cancelled(serving).await;
    });
}

async fn serve(context: Rc<Context>, pod: Rc<PodHere>, client: Rc<Client>, stream: Stream) {
    let Stream { request, mut respond, window } = stream;
    let own = pod.pod.workload.load_full();
    let _carrying = pod.state.carry();
    let meta = meta(&context, own.clone(), &client, &request);
    let admitted = tokio::select! {
        biased;
        _ = poll_fn(|cx| respond.poll_reset(cx)) => {
            let gone = "the client reset the stream before it was answered";
            return context.shared.telemetry.refused(meta, Reason::PeerReset, &gone);
        }
        admitted = Box::pin(admit(&pod, &client, &own, &request)) => admitted,
    };
    let refusal = match admitted {
        Ok(admitted) => match answer(&mut respond, &own) {
            Ok(send) => {
                let stream = TunnelStream::new(send, request.into_body(), window);
                return carry(&context, &pod, meta, admitted, stream).await;
            }
            Err(error) => return context.shared.telemetry.refused(meta, Reason::Tunnel, &error),
        },
        Err(refusal) => refusal,
    };
    let mut response = Response::new(());
    *response.status_mut() = refusal.status;
    // Fails only if the client or the tunnel is gone.
    let _ = respond.send_response(response, true);
    context.shared.telemetry.refused(meta, refusal.failure.reason, &refusal.failure.message);
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
    _permit: ConnectionPermit,
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
    Ok(Admitted { application, _permit: permit })
}

fn answer(respond: &mut SendResponse<Bytes>, own: &Workload) -> Result<SendStream<Bytes>, h2::Error> {
    let mut response = Response::new(());
    *response.headers_mut() = headers::response_headers(own);
    respond.send_response(response, false)
}

async fn carry(
    context: &Context,
    pod: &PodHere,
    meta: ConnectionMeta,
    admitted: Admitted,
    stream: TunnelStream,
) {
    let Admitted { application, _permit } = admitted;
    let record = context.shared.telemetry.open(meta);
    let count = |direction, bytes| match direction {
        Direction::ToServer => record.received(bytes),
        Direction::ToClient => record.sent(bytes),
    };
    let idle = timeouts(&pod.pod.workload.load()).half_closed_idle;
    let copy = Copy::new(&pod.pod.limits, idle, &count);
    let result = copy.tunnelled(application, Side::Server, stream).await;
    record.close(result.map_err(|error| Failure::new(error.reason(), error)));
}
