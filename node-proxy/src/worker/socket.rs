//! Sockets of carried connections: options, and the reset that every unorderly end must show to both sides.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

/// An idle connection is probed after this long, this often, this many times, before it counts as lost.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(180);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(75);
const KEEPALIVE_PROBES: u32 = 9;

/// A connected socket that is reset when it is dropped, unless [`CarriedSocket::finish`] says that both directions
/// were closed in order. So whatever goes wrong, and wherever a future is dropped, the side sees a reset, not an end.
#[derive(Debug)]
pub struct CarriedSocket {
    stream: TcpStream,
    finished: Cell<bool>,
}

impl CarriedSocket {
    /// Takes over a socket that is configured.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, finished: Cell::new(false) }
    }

    /// The end was orderly: dropping the socket closes it.
    pub fn finish(&self) {
        self.finished.set(true);
    }

    /// The address the client asked for, on a socket accepted by a transparent listener.
    ///
    /// # Errors
    /// When the socket is dead already.
    pub fn original_destination(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr().map(canonical)
    }
}

impl Deref for CarriedSocket {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl AsyncRead for CarriedSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for CarriedSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for CarriedSocket {
    fn drop(&mut self) {
        if !self.finished.get() {
            // Fails only for a socket that is gone already.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// No delay, keep-alive on. What a listener accepts is as the listener is.
///
/// # Errors
/// When the socket is dead already.
pub fn configure(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// Connects an unconnected socket until a deadline.
///
/// # Errors
/// Those of the connection; `TimedOut` at the deadline.
pub async fn connect(socket: TcpSocket, to: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    match tokio::time::timeout_at(deadline, socket.connect(to)).await {
        Ok(stream) => stream,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within the deadline")),
    }
}

/// IPv4-mapped IPv6 addresses as the IPv4 addresses they are.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Two ends of a loopback connection.
    pub async fn connected_pair() -> (CarriedSocket, CarriedSocket) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (one, other) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (CarriedSocket::new(one.unwrap()), CarriedSocket::new(other.unwrap().0))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::testing::connected_pair;
    use super::*;

    #[tokio::test]
    async fn a_socket_is_reset_unless_finished() {
        for finished in [false, true] {
            let (one, mut other) = connected_pair().await;
            other.stream.write_all(b"unread").await.unwrap();
            let mut buffer = [0; 6];
            one.readable().await.unwrap();
            assert_eq!(one.try_read(&mut buffer).unwrap(), 6);
            if finished {
                one.finish();
            }
            drop(one);
            let end = other.stream.read(&mut buffer).await;
            match finished {
                true => assert_eq!(end.unwrap(), 0),
                false => assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset),
            }
        }
    }

    #[tokio::test]
    async fn what_a_listener_accepts_is_configured_as_the_listener_is() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        configure(&listener).unwrap();
        let (_client, accepted) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (accepted, _) = accepted.unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_EVERY);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
    }

    #[test]
    fn mapped_addresses_are_unmapped() {
        assert_eq!(canonical("[::ffff:10.0.0.1]:80".parse().unwrap()), "10.0.0.1:80".parse().unwrap());
    }
}
