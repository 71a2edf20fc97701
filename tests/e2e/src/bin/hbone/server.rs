//! The far end of tunnels, from outside the mesh's own code.

use crate::certificates::{CertificateArgs, identities};
use anyhow::Context;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use serde_json::json;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;

/// How the server treats its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Conduct {
    /// Connects every stream.
    Serve,
    /// Accepts TCP and never starts TLS.
    StallTls,
    /// Finishes TLS and never speaks HTTP/2.
    StallHttp2,
    /// Never answers a CONNECT.
    StallConnect,
    /// Answers 503.
    Refuse,
    /// Sends GOAWAY after the first stream of a tunnel, and serves it to its end.
    GoAway,
    /// Resets every stream after its first bytes.
    ResetStreams,
}

#[derive(Args)]
pub(crate) struct ServerArgs {
    #[arg(long)]
    listen: SocketAddr,
    /// Every stream is connected to this address, whatever it asked for.
    #[arg(long)]
    forward: SocketAddr,
    #[command(flatten)]
    certificate: CertificateArgs,
    #[arg(long, value_enum, default_value_t = Conduct::Serve)]
    conduct: Conduct,
}

/// Serves until stdin closes. Prints `{"event":"listening"}`, then a line per tunnel and per stream.
pub(crate) async fn run(args: ServerArgs) -> anyhow::Result<()> {
    let acceptor = TlsAcceptor::from(args.certificate.make()?.server()?);
    let socket = if args.listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // As ztunnel's: interception leads a SYN only to such a listener.
    socket2::SockRef::from(&socket).set_ip_transparent_v4(true)?;
    socket.bind(args.listen).context("bind")?;
    let listener = socket.listen(128)?;
    println!("{}", json!({"event": "listening"}));
    let (forward, conduct) = (args.forward, args.conduct);
    let serve = async {
        loop {
            let (tcp, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Err(error) = tunnel(tcp, acceptor, forward, conduct).await {
                    println!("{}", json!({"event": "tunnel failed", "error": format!("{error:#}")}));
                }
            });
        }
    };
    let stdin_closed = async {
        let mut buffer = [0; 64];
        let mut stdin = tokio::io::stdin();
        while stdin.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    };
    tokio::select! {
        result = serve => result,
        () = stdin_closed => Ok(()),
    }
}

async fn tunnel(
    tcp: TcpStream,
    acceptor: TlsAcceptor,
    forward: SocketAddr,
    conduct: Conduct,
) -> anyhow::Result<()> {
    tcp.set_nodelay(true)?;
    let from = tcp.peer_addr()?;
    if conduct == Conduct::StallTls {
        return hang(tcp).await;
    }
    let tls = acceptor.accept(tcp).await.context("TLS")?;
    let (_, session) = tls.get_ref();
    let peer = session.peer_certificates().map(identities).unwrap_or_default();
    println!("{}", json!({"event": "tunnel", "peer": peer, "from": from.to_string()}));
    if conduct == Conduct::StallHttp2 {
        return hang(tls).await;
    }
    let mut connection = h2::server::Builder::new()
        .initial_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_concurrent_streams(200)
        .max_header_list_size(64 << 10)
        .handshake::<_, Bytes>(tls)
        .await
        .context("HTTP/2")?;
    while let Some(accepted) = connection.accept().await {
        let (request, response) = accepted?;
        tokio::spawn(stream(request, response, forward, conduct));
        if conduct == Conduct::GoAway {
            connection.graceful_shutdown();
        }
    }
    Ok(())
}

/// Reads and never answers.
async fn hang(mut io: impl tokio::io::AsyncRead + Unpin) -> anyhow::Result<()> {
    let mut buffer = [0; 4096];
    while io.read(&mut buffer).await? > 0 {}
    println!("{}", json!({"event": "given up"}));
    Ok(())
}

async fn stream(
    request: Request<RecvStream>,
    mut response: SendResponse<Bytes>,
    forward: SocketAddr,
    conduct: Conduct,
) {
    let headers: serde_json::Map<String, serde_json::Value> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), json!(String::from_utf8_lossy(value.as_bytes()))))
        .collect();
    let (method, authority) =
        (request.method().to_string(), request.uri().authority().map(ToString::to_string));
    println!("{}", json!({"event": "stream", "method": method, "authority": authority, "headers": headers}));
    let answer = |status| {
        let mut answer = Response::new(());
        *answer.status_mut() = status;
        answer
    };
    if conduct == Conduct::StallConnect {
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    if conduct == Conduct::Refuse || request.method() != Method::CONNECT {
        let _ = response.send_response(answer(StatusCode::SERVICE_UNAVAILABLE), true);
        return;
    }
    let Ok(application) = TcpStream::connect(forward).await else {
        let _ = response.send_response(answer(StatusCode::SERVICE_UNAVAILABLE), true);
        return;
    };
    let Ok(outgoing) = response.send_response(answer(StatusCode::OK), false) else { return };
    // The tests look at both ends of the stream, not at this task.
    let _ = copy(request.into_body(), outgoing, application, conduct).await;
}

async fn copy(
    mut incoming: RecvStream,
    mut outgoing: SendStream<Bytes>,
    application: TcpStream,
    conduct: Conduct,
) -> anyhow::Result<()> {
    let (mut reader, mut writer) = application.into_split();
    let up = async {
        while let Some(chunk) = incoming.data().await {
            let chunk = chunk?;
            incoming.flow_control().release_capacity(chunk.len())?;
            writer.write_all(&chunk).await?;
        }
        writer.shutdown().await?;
        anyhow::Ok(())
    };
    let down = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = reader.read(&mut buffer).await?;
            // Small messages only: no wait for capacity.
            outgoing.send_data(Bytes::copy_from_slice(&buffer[..read]), read == 0)?;
            if conduct == Conduct::ResetStreams {
                outgoing.send_reset(h2::Reason::CANCEL);
                return Ok(());
            }
            if read == 0 {
                return anyhow::Ok(());
            }
        }
    };
    tokio::try_join!(up, down)?;
    Ok(())
}
