//! Ports that speak plain TCP.

use crate::identity::PodIdentity;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const BUFFER: usize = 64 * 1024;

/// Sends back what it gets; the end of input ends the output.
pub(crate) async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        // An idle connection holds no buffer: tests keep tens of thousands open.
        stream.readable().await?;
        buffer.resize(BUFFER, 0);
        let read = match stream.try_read(&mut buffer) {
            Ok(0) => return stream.shutdown().await,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        stream.write_all(&buffer[..read]).await?;
        if read < BUFFER {
            buffer = Vec::new();
        }
    }
}

/// Speaks first: one line naming the pod, then [`echo`].
pub(crate) async fn banner(mut stream: TcpStream, identity: Arc<PodIdentity>) -> io::Result<()> {
    stream.write_all(format!("220 {} ready\r\n", identity.pod).as_bytes()).await?;
    echo(stream).await
}

/// Reads and throws away; at the end of input answers with the number of bytes, as one line.
pub(crate) async fn discard(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut total = 0_u64;
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            read => total += read as u64,
        }
    }
    stream.write_all(format!("{total}\n").as_bytes()).await?;
    stream.shutdown().await
}

/// Sends until the peer has had enough.
pub(crate) async fn chargen(mut stream: TcpStream) -> io::Result<()> {
    let block = vec![b'c'; BUFFER];
    loop {
        stream.write_all(&block).await?;
    }
}

/// Keeps the connection open and says nothing until the peer closes.
pub(crate) async fn silent(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 1024];
    while stream.read(&mut buffer).await? != 0 {}
    Ok(())
}

/// Resets after the first byte, or after a second without one.
pub(crate) async fn reset(mut stream: TcpStream) -> io::Result<()> {
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.read_u8()).await;
    abort(stream)
}

/// Closes with RST instead of FIN.
pub(crate) fn abort(stream: TcpStream) -> io::Result<()> {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}
