use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpConnectInfo};

const HANDSHAKE: Duration = Duration::from_secs(5);
const MOST_HANDSHAKES: usize = 128;
const MOST_CONNECTIONS: usize = 8192;
/// Connections ready before the server takes them.
const BACKLOG: usize = 64;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_ANSWER: Duration = Duration::from_secs(5);
const LARGEST_HEADERS: u32 = 16 * 1024;
const MOST_REQUESTS_PER_CONNECTION: u32 = 256;

/// A server of the control plane with our bounds: pings every 10 s, 5 s for the answer; 256 requests at a time on a
/// connection; 16 KiB of headers.
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_ANSWER))
        .max_concurrent_streams(MOST_REQUESTS_PER_CONNECTION)
        .http2_max_header_list_size(LARGEST_HEADERS)
}

/// A connection whose handshake is done.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    info: TcpConnectInfo,
    /// Counts this connection while it lives.
    _place: OwnedSemaphorePermit,
}

/// The connections of `listener`, for tonic's `serve_with_incoming`. Handshakes run beside each other, 128 at most,
/// 5 s each, with the newest configuration; one that fails is logged and dropped. At most 8192 connections are open;
/// beyond that, and when descriptors run out, newcomers wait. Ends when the stream is dropped.
pub fn incoming(
    listener: TcpListener,
    config: watch::Receiver<Arc<ServerConfig>>,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        tokio::select! {
            () = accept(listener, config, ready.clone()) => {}
            () = ready.closed() => {}
        }
    });
    ReceiverStream::new(connections)
}

async fn accept(
    listener: TcpListener,
    config: watch::Receiver<Arc<ServerConfig>>,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let handshakes = Arc::new(Semaphore::new(MOST_HANDSHAKES));
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut pause = FIRST_PAUSE;
    loop {
        let (Ok(place), Ok(turn)) =
            (places.clone().acquire_owned().await, handshakes.clone().acquire_owned().await)
        else {
            return; // Nobody closes them.
        };
        match listener.accept().await {
            Ok((tcp, _)) => {
                pause = FIRST_PAUSE;
                let acceptor = TlsAcceptor::from(config.borrow().clone());
                tokio::spawn(serve_handshake(acceptor, tcp, place, turn, ready.clone()));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                // Most likely descriptors or memory: accepting at once would spin.
                tracing::warn!(%error, pause_ms = pause.as_millis(), "connections cannot be accepted");
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

async fn serve_handshake(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    place: OwnedSemaphorePermit,
    turn: OwnedSemaphorePermit,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let info = tcp.connect_info();
    let peer = info.remote_addr();
    // As in the client: only slower without it.
    let _ = tcp.set_nodelay(true);
    let stream = match timeout(HANDSHAKE, acceptor.accept(tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(?peer, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(?peer, "TLS handshake took too long"),
    };
    drop(turn);
    // An error means that the server is gone; so is the connection then.
    let _ = ready.send(Ok(Connection { stream, info, _place: place })).await;
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
