//! Opens a tunnel: connection from the client's namespace, TLS, the proof that the peer is who is expected, HTTP/2.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use culvert_identity::Identity;
use culvert_identity::tls::{no_server_name, peer};
use h2::client::{self, SendRequest};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::driver::{self, TunnelEnd};
use super::paced::Paced;
use super::window::{START, Window};
use super::{
    CLIENT_HEADERS, CONNECTION_WINDOW, MAX_FRAME, PENDING_RESETS, SEND_BUFFER, SMALL_FRAMES, TunnelError,
    retire_at,
};
use crate::identity::ActiveCertificate;
use crate::intercept::outbound_socket;
use crate::limits::WorkloadLimits;
use crate::pods::Pod;
use crate::state::model::Timeouts;
use crate::worker::socket::connect;

/// Where a tunnel leads and who must be there.
#[derive(Clone)]
pub struct Target {
    /// The destination pod's address and HBONE port.
    pub address: SocketAddr,
    pub identity: Identity,
}

/// A tunnel that is ready for streams. Its frames move only while [`Opened::driver`] runs.
pub struct Opened {
    pub sender: SendRequest<Bytes>,
    pub window: Rc<Window>,
    /// No new streams from then on: a certificate is about to end.
    pub retire_at: Instant,
    pub driver: Driver,
}

/// Runs until the tunnel has ended.
pub type Driver = Pin<Box<dyn Future<Output = Result<(), TunnelEnd>>>>;

/// Dials from inside the client pod's namespace, so that network policies see the two pods.
///
/// # Errors
/// The step that failed.
pub async fn dial(
    pod: &Pod,
    certificate: &ActiveCertificate,
    target: &Target,
    timeouts: Timeouts,
) -> Result<Opened, TunnelError> {
    let to = target.address;
    let socket = outbound_socket(&pod.netns, to, &pod.interception)
        .map_err(|error| TunnelError::Socket(Arc::new(error)))?;
    let stream = connect(socket, to, Instant::now() + timeouts.connect)
        .await
        .map_err(|error| TunnelError::Connect { to, error: Arc::new(error) })?;
    open(stream, certificate, target, timeouts, pod.limits.clone()).await
}

/// The same on any transport.
pub(super) async fn open<T>(
    transport: T,
    certificate: &ActiveCertificate,
    target: &Target,
    timeouts: Timeouts,
    limits: Arc<WorkloadLimits>,
) -> Result<Opened, TunnelError>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (stream, peer_end) = secure(transport, certificate, target, timeouts.tls_handshake).await?;
    let retire_at = retire_at(SystemTime::now(), peer_end.min(certificate.not_after));
    open_http2(stream, target.address, limits, timeouts.tunnel_handshake, retire_at).await
}

async fn secure<T: AsyncRead + AsyncWrite + Unpin>(
    transport: T,
    certificate: &ActiveCertificate,
    target: &Target,
    after: Duration,
) -> Result<(TlsStream<Paced<T>>, SystemTime), TunnelError> {
    let to = target.address;
    let connector = TlsConnector::from(certificate.client.clone());
    let stream = match timeout(after, connector.connect(no_server_name(), Paced::new(transport))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(TunnelError::Tls { to, error: Arc::new(error) }),
        Err(_) => return Err(TunnelError::TlsTimeout { to, after }),
    };
    let proven = peer(stream.get_ref().1).map_err(|error| TunnelError::NoPeer { to, error })?;
    if proven.identity != target.identity {
        let expected = target.identity.clone();
        return Err(TunnelError::PeerIdentity { to, expected, actual: proven.identity });
    }
    Ok((stream, proven.not_after))
}

pub(super) async fn open_http2<T>(
    stream: T,
    to: SocketAddr,
    limits: Arc<WorkloadLimits>,
    after: Duration,
    retire_at: Instant,
) -> Result<Opened, TunnelError>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let handshake = builder().handshake::<_, Bytes>(stream);
    let (sender, connection) = match timeout(after, handshake).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return Err(TunnelError::Http2 { to, error: Arc::new(error) }),
        Err(_) => return Err(TunnelError::Http2Timeout { to, after }),
    };
    let window = Window::new(limits);
    let driver = Box::pin(driver::run_client(Box::new(connection), window.clone(), after));
    Ok(Opened { sender, window, retire_at, driver })
}

fn builder() -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .initial_window_size(START)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(CLIENT_HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES)
        .max_concurrent_reset_streams(PENDING_RESETS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        // Counted over the life of a tunnel, so any number would end a long-lived one in the end.
        .max_local_error_reset_streams(None)
        .enable_push(false);
    builder
}
