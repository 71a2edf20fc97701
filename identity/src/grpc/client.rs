use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::tls::{self, ConfigError};
use crate::{Identity, TrustBundle};

const CONNECT: Duration = Duration::from_secs(5);
const HANDSHAKE: Duration = Duration::from_secs(5);
/// All of connecting, name lookup included.
const ALL_OF_CONNECTING: Duration = Duration::from_secs(12);
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_ANSWER: Duration = Duration::from_secs(5);
const PORT: u16 = 443;

/// Why a channel or a connection of it could not be had.
#[derive(Debug, Error)]
pub enum ChannelError {
    #[error("{0:?} is not a URL of a server: https://HOST:PORT is")]
    Url(String),
    #[error("connecting to {to}: {error}")]
    Connect { to: String, error: io::Error },
    #[error("connecting to {to}: no answer within {after:?}")]
    ConnectDeadline { to: String, after: Duration },
    #[error("TLS with {to}: {error}")]
    Handshake { to: String, error: io::Error },
    #[error("TLS with {to}: not finished within {after:?}")]
    HandshakeDeadline { to: String, after: Duration },
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// A channel to `url` (`https://HOST:PORT`), connected on first use and again after a failure, whose server must be
/// exactly `expected`. Each connection trusts the bundle that is the newest then; a dead one is noticed by HTTP/2
/// pings, every 10 s with 5 s for the answer.
///
/// # Errors
/// When the URL is not one.
pub fn channel(
    url: &str,
    expected: Identity,
    bundle: watch::Receiver<Arc<TrustBundle>>,
) -> Result<Channel, ChannelError> {
    let wrong = || ChannelError::Url(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    if uri.scheme_str() != Some("https") || uri.host().is_none() {
        return Err(wrong());
    }
    let endpoint = Endpoint::from(uri)
        .connect_timeout(ALL_OF_CONNECTING)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    let connector = tower::service_fn(move |uri: Uri| {
        let expected = expected.clone();
        let newest = bundle.borrow().clone();
        async move { connect(&uri, &expected, &newest).await.map(TokioIo::new) }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

async fn connect(
    uri: &Uri,
    expected: &Identity,
    bundle: &TrustBundle,
) -> Result<TlsStream<TcpStream>, ChannelError> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(PORT);
    let to = uri.authority().map(ToString::to_string).unwrap_or_default();
    let config = tls::grpc_client_config(expected, bundle)?;
    let tcp = match timeout(CONNECT, TcpStream::connect((host, port))).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(ChannelError::Connect { to, error }),
        Err(_) => return Err(ChannelError::ConnectDeadline { to, after: CONNECT }),
    };
    // Small messages; without it they wait for acknowledgements. The connection works without it too.
    let _ = tcp.set_nodelay(true);
    match timeout(HANDSHAKE, TlsConnector::from(config).connect(tls::no_server_name(), tcp)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(ChannelError::Handshake { to, error }),
        Err(_) => Err(ChannelError::HandshakeDeadline { to, after: HANDSHAKE }),
    }
}
